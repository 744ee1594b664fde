"""The site service: the one place where data, trainer and gate meet.

It answers the calls of `mmare.wire.messages.Task`. Every caller, a relay in the same process or a worker
behind a socket, passes a header and flat bytes and gets the same back. Failures become a code.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from client.data.site_table import SiteTable
from client.encoders.registry import encoder_notes
from client.privacy.approvals import FixedApprovals
from client.privacy.gate import Gate, budgeted
from client.privacy.noise import noise_source
from client.privacy.release_rules import told_rows
from client.telemetry.seen import unobserved
from client.training.arrivals import check_arrival, keep_arrival
from client.training.cohort import counts_of, events_of, moments_of
from client.training.evaluate import compare, evaluate, groups_of, logits_of
from client.training.kept.kept_parts import place_local, revert_untouched, state_of
from client.training.optimizers import PhaseOptimizers
from client.training.own_scaling import keep_scaling, scale_own
from client.training.private_scores import evaluate_privately
from client.training.private_trainer import train_privately
from client.training.scans import weighed
from client.training.summands import summands_of
from client.training.trainer import ProximalTerm, train_round
from mmare.errors import MmareError, SiteCode, SiteError
from mmare.models.blocks import block_tensors, without_parameters
from mmare.models.phases import phase_at
from mmare.randomness import generator_for
from mmare.study.choices import TaskName
from mmare.study.strategy_options import FedProxOptions, strategy_options
from mmare.wire.limits import MOST_REQUEST, RUN_NAME
from mmare.wire.messages import (
    Comparison,
    Counts,
    Layout,
    Refusal,
    Request,
    RollCall,
    Split,
    Statistics,
    Task,
    Update,
    WireError,
    decode,
    encode,
)
from mmare.wire.received import flat_of
from mmare.wire.sharing import keeps_state, local_parameters, on_wire, steps_at_coordinator
from mmare.wire.sums import sum_layout
from mmare.wire.tensors import (
    copy_tensors,
    global_tensors,
    layout_of,
    pack,
    trained_tensors,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from client.data.dataset import SiteData
    from client.privacy.masker import Masker
    from client.privacy.release_rules import Answer
    from client.telemetry.seen import Observer
    from client.training.kept.state import StateStore
    from client.training.model_pool import ModelPool
    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study
    from mmare.wire.messages import Masked

__all__ = ["SiteService"]

LOG = logging.getLogger(__name__)


class SiteService:
    """Answers the server's calls on one site's data.

    Args:
        site: Id.
        table: The site's data, or what reads them for a study; called once per study.
        store: Keeps optimiser moments between rounds.
        models: Shared by the services of one process.
        min_count: The site's own limit; the larger of this and the study's applies.
        approved: Hashes of approved studies.
        gate: Replaces ``min_count`` and ``approved`` where the site has an audit log and limits of its own.
        observe: Called with every answer before it passes the gate; what it gets stays at the site.
    """

    def __init__(
        self,
        site: str,
        table: SiteTable | Callable[[Study], SiteData],
        store: StateStore,
        models: ModelPool,
        min_count: int = 0,
        approved: frozenset[str] = frozenset(),
        gate: Gate | None = None,
        observe: Observer = unobserved,
    ) -> None:
        self._site = site
        self._table = table if isinstance(table, SiteTable) else SiteTable(table)
        self._store = store
        self._models = models
        self._gate = gate or Gate(site, FixedApprovals(approved), min_count)
        self._min_count = self._gate.min_count
        self._observe = observe

    def __call__(self, header: str, payload: bytes) -> tuple[str, bytes]:
        """Answer one message; every failure becomes a code, its detail stays in the site's log."""
        self._models.apply_threads()  # gRPC and the simulation call from their own threads
        request = None
        try:
            request = decode(Request, header, MOST_REQUEST)
            answer, tensors = self.answer(request, payload)
            released = self._gate.release(
                request,
                payload,
                answer,
                tensors,
                self._table.train_rows,
                self._table.version,
                partial(self._protect, request, payload),
            )
            keep_arrival(request, payload, self._store)
        except SiteError as error:
            code = error.code
        except WireError:
            LOG.exception("message refused")
            code = SiteCode.MESSAGE
        except MmareError:
            LOG.exception("the site's data or the study cannot be used")
            code = SiteCode.DATA
        except (Exception, SystemExit):  # only a code may leave, whatever it is
            LOG.exception("unexpected failure")
            code = SiteCode.INTERNAL
        else:
            return released
        self._gate.refuse(request, code)
        return encode(Refusal(code)), b""

    def prepare(self, study: Study) -> None:
        """Read the site's data now, so that errors reach the local user.

        Raises:
            DataError: If they cannot be used; names file, row, found and expected.
            BudgetError: If the site's budget does not allow the study, or its data cannot carry it.
        """
        self._models.apply_threads()
        self._gate.plan(study, "", len(self._table.data(study).rows[Split.TRAIN]))

    def answer(self, request: Request, payload: bytes) -> tuple[Answer, Tensor | None]:
        """Answer a request with a header and, after training, the changed tensors as flat uint8 bytes.

        The answer has not passed the gate, which also measures the norm of the change.

        Raises:
            SiteError: If the study is not approved, or training fails.
            DataError: If the data cannot be used.
            WireError: If the run name is invalid, or the payload does not fit the study's model.
        """
        if not RUN_NAME.fullmatch(request.run):
            raise WireError("the run name is invalid")
        study = self._gate.check(request, payload)
        begun = self._gate.begun_with(request.run)
        if change := self._table.change(begun):
            LOG.warning("the table changed")
            self._gate.note_change(request, change)
        answer, tensors = self._compute(request, study, payload, self._table.data(study, begun))
        self._observe(study, request, answer)
        return answer, tensors

    def _compute(
        self, request: Request, study: Study, payload: bytes, data: SiteData
    ) -> tuple[Answer, Tensor | None]:
        if request.task is Task.DESCRIBE:
            return self._describe(request, study, data), None
        if request.task is Task.STATISTICS:
            limit = self._limit(study)
            events = events_of(study, data, limit, self._table)
            return Statistics(self._site, moments_of(study, data, limit, self._table), events), None
        if request.task is Task.UNMASK:
            return self._masker_of().reveal(request, study), None
        with self._models.borrow(study) as model:
            sent = global_tensors(model, without=local_parameters(model, study))
            layout = layout_of(sent)
            if layout.fingerprint != request.layout:
                raise WireError(f"layout {request.layout}, expected {layout.fingerprint}")
            size = layout.size * (2 if request.task is Task.COMPARE else 1)
            if len(payload) != size:  # before it is copied
                raise WireError(f"{len(payload)} bytes of tensors, expected {size}")
            if request.task is Task.COMPARE:
                return self._compare(study, data, model, layout, payload), None
            flat = flat_of(payload)
            check_arrival(request, study, flat, layout, self._store, self._models.origin(study))
            received = unpack(flat, layout)
            copy_tensors(sent, received)
            scale_own(model, data)
            update, tensors = self._round(request, study, data, model, received)
            if request.final:
                keep_scaling(model, payload, self._store)
        if request.final and not study.federation.local:  # local parts belong to the site's model
            self._store.drop(request.run)
        elif request.final:
            self._store.keep(request.run)
        return update, tensors

    def _round(
        self,
        request: Request,
        study: Study,
        data: SiteData,
        model: MultimodalModel,
        received: dict[str, Tensor],
    ) -> tuple[Update, Tensor | None]:
        began = time.perf_counter()
        limit = self._limit(study)
        kept = self._kept(request, study)
        before = {**received, **place_local(model, study, kept, partial(self._models.origin, study))}
        rows = data.rows[Split.TRAIN]
        with budgeted():
            plan = self._gate.plan(study, request.run, len(rows))
        noise = noise_source(self._table.secret, self._site, request, study, (received, kept, data.tensors()))
        evaluations = tuple(
            evaluate(
                model,
                data,
                split,
                limit,
                patterns=request.patterns,
                subsets=request.subsets,
                calibration=request.calibration,
                shapley=request.shapley and split is Split.TEST,
            )
            if plan is None
            else evaluate_privately(model, data, split, limit, plan.histogram_noise, noise(split))
            for split in request.splits
        )
        evaluated = time.perf_counter()
        update = Update(
            self._site, request.round, evaluations=evaluations, seconds={"evaluate": evaluated - began}
        )
        if not request.train:
            return update, None
        optimizers = PhaseOptimizers(
            model,
            phase_at(model.phases(), request.round),
            study.training,
            request.rate_factor,
            gradients=steps_at_coordinator(study),
        )
        optimizers.restore(kept)
        pull = _pull(study, received)
        if plan is None:
            generator = generator_for(study.seed, self._site, request.round)
            trained = train_round(model, optimizers, data, rows, study, generator, pull).of_enough(limit)
        else:
            trained = train_privately(model, optimizers, data, rows, study, plan, noise("train"), pull)
        blocks, moments = revert_untouched(model, optimizers, trained, study, before, kept)
        local = local_parameters(model, study)
        sent = without_parameters(blocks, local)
        changed, origin = (block_tensors(sent, tensors) for tensors in (trained_tensors(model), received))
        after = evaluate(model, data, Split.VAL, limit) if request.gap else None
        finished = time.perf_counter()
        if keeps_state(study):
            state = state_of(model, study, moments)
            self._store.save(request.run, request.round, state, request.state_round, request.keep_round)
        upload = on_wire(changed, origin, study.federation.wire)
        return Update(
            site=self._site,
            round=request.round,
            samples=trained.samples,
            exposures=trained.exposures,
            blocks=tuple(block.name for block in sent),
            evaluations=evaluations,
            trained=after,
            train_loss=trained.loss,
            seconds={"evaluate": evaluated - began, "train": finished - evaluated},
            layout=layout_of(upload).fingerprint,
        ), pack(upload)

    def _protect(
        self, request: Request, received: bytes, study: Study, answer: Update | Statistics, payload: bytes
    ) -> tuple[Masked, bytes]:
        """Mask an answer, as it passed the gate, for a secure sum."""
        with self._models.borrow(study) as model:
            layout = sum_layout(model, study, request)
            values = summands_of(request, received, study, answer, payload, model)
        masked, sent = self._masker_of().protect(request, study, layout.pack(values))
        return replace(masked, seconds=answer.seconds if isinstance(answer, Update) else {}), sent

    def _masker_of(self) -> Masker:
        if self._gate.masker is None:
            raise SiteError(SiteCode.SUM)
        return self._gate.masker

    def _compare(
        self, study: Study, data: SiteData, model: MultimodalModel, layout: Layout, payload: bytes
    ) -> Comparison:
        """Compare two models, sent one after the other, on the test rows."""
        if study.federation.local:
            raise WireError("models with parts that stay at the sites cannot be compared")
        run = flat_of(payload)
        rows = data.rows[Split.TEST]
        label = data.label[rows]
        outputs = []
        for half in (run[: layout.size], run[layout.size :]):
            copy_tensors(global_tensors(model), unpack(half, layout))
            scale_own(model, data)
            embedding = weighed(model, data.embedding, data.bags)
            outputs.append(logits_of(model, embedding, rows, data.present[rows]))
        hidden = groups_of(data, Split.TEST, model.task, self._limit(study)).classes
        if study.task is TaskName.CLASSIFICATION:
            right = [each.argmax(dim=1) == label for each in outputs]
            return compare(self._site, right[0], right[1], label, study.classes, hidden)
        first, second = outputs
        return Comparison(self._site, sums=() if hidden else model.task.paired(first, second, label))

    def _limit(self, study: Study) -> int:
        """The smallest group of patients that may leave: the larger of the site's and the study's."""
        return max(self._min_count, study.privacy.min_count)

    def _kept(self, request: Request, study: Study) -> dict[str, Tensor]:
        """The state stored after the round that the server resumes from."""
        needed = study.federation.local or (request.train and keeps_state(study))
        if request.state_round is None or not needed:
            return {}
        kept = self._store.load(request.run, request.state_round)
        if kept is None:
            raise SiteError(SiteCode.STATE)
        return kept

    def _describe(self, request: Request, study: Study, data: SiteData) -> RollCall:
        limit = self._limit(study)
        samples = len(data.rows[Split.TRAIN])
        hides = study.privacy.hides_counts  # the coordinator learns no size of a single site
        with budgeted():
            self._gate.plan(study, request.run, samples)
        if study.start is not None:
            self._models.origin(study)  # refused now rather than in the first round
        return RollCall(
            site=self._site,
            study_hash=study.hash,
            software=version("federated-mmare"),
            encoders=data.encoders,
            counts=Counts() if hides else counts_of(study, data, limit),
            samples=told_rows(study, samples, limit),
            held_rounds=self._store.held(request.run),
            notes=encoder_notes(study, data.encoders),
            public_key=self._masker_of().public_key if study.privacy.secure_sum else "",
        )


def _pull(study: Study, received: dict[str, Tensor]) -> ProximalTerm | None:
    options = strategy_options(study.federation.strategy, study.federation.options)
    return ProximalTerm(options.mu, received) if isinstance(options, FedProxOptions) else None
