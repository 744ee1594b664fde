"""The site service: the one place where data, trainer and gate meet.

It answers the calls of `mmare.wire.messages.Task`. Every caller, a relay in the same process or a worker
behind a socket, passes a header and flat bytes and gets the same back. Failures become a code.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from client.data.site_table import SiteTable
from client.encoders.registry import encoder_notes
from client.privacy.approvals import FixedApprovals
from client.privacy.gate import Gate, budgeted
from client.privacy.moments_record import patient_marks
from client.privacy.noise import noise_source
from client.privacy.release_rules import told_rows
from client.telemetry.seen import unobserved
from client.training.arrivals import check_arrival, keep_arrival
from client.training.evaluate import compare, evaluate, groups_of, pattern_names, predicted_right
from client.training.optimizers import PhaseOptimizers
from client.training.private_scores import evaluate_privately
from client.training.private_trainer import train_privately
from client.training.trainer import ProximalTerm, train_round
from mmare.errors import MmareError, SiteCode, SiteError
from mmare.models.adapters import moment_rows
from mmare.models.blocks import block_tensors, without_parameters
from mmare.models.phases import phase_at
from mmare.models.registry import build_model
from mmare.randomness import generator_for
from mmare.study.choices import OptimizerState, Scaling, Untouched
from mmare.study.strategy_options import FedProxOptions, strategy_options
from mmare.wire.limits import MOST_REQUEST, RUN_NAME
from mmare.wire.messages import (
    Comparison,
    Counts,
    Layout,
    Moments,
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
from mmare.wire.sharing import keeps_state, local_parameters, on_wire
from mmare.wire.sums import evaluation_values, moments_values, sum_layout, training_values
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
    from client.training.model_pool import ModelPool
    from client.training.state import StateStore
    from client.training.trainer import TrainedRound
    from mmare.models.base import MultimodalModel
    from mmare.models.blocks import Block
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study
    from mmare.wire.messages import Masked

__all__ = ["SiteService"]

LOG = logging.getLogger(__name__)

LOCAL = "local/"  # prefix, in a stored state, of parameters that stay at the site


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
            return self._statistics(study, data), None
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
            received = unpack(torch.frombuffer(bytearray(payload), dtype=torch.uint8), layout)
            check_arrival(request, study, received, self._store, self._models)
            copy_tensors(sent, received)
            update, tensors = self._round(request, study, data, model, received)
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
        limit = max(self._min_count, study.privacy.min_count)
        kept = self._kept(request, study)
        before = {**received, **_place_local(model, study, kept)}
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
            model, phase_at(model.phases(), request.round), study.training, request.rate_factor
        )
        optimizers.restore(kept)
        pull = _pull(study, received)
        if plan is None:
            generator = generator_for(study.seed, self._site, request.round)
            trained = train_round(model, optimizers, data, rows, study, generator, pull).of_enough(limit)
        else:
            trained = train_privately(model, optimizers, data, rows, study, plan, noise("train"), pull)
        blocks, moments = _revert_untouched(model, optimizers, trained, study, before, kept)
        local = local_parameters(model, study)
        sent = without_parameters(blocks, local)
        changed, origin = (block_tensors(sent, tensors) for tensors in (trained_tensors(model), received))
        after = evaluate(model, data, Split.VAL, limit) if request.gap else None
        finished = time.perf_counter()
        state = {f"{LOCAL}{name}": value for name, value in trained_tensors(model).items() if name in local}
        if study.training.optimizer_state is OptimizerState.KEEP:
            state |= moments
        if keeps_state(study):
            self._store.save(
                request.run, request.round, _owned(state, local), request.state_round, request.keep_round
            )
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
            if isinstance(answer, Statistics):
                values = moments_values(answer)
            else:
                values = evaluation_values(answer.evaluations, study)
                if request.train:
                    values |= training_values(
                        model, study, answer, _changes(model, study, answer, received, payload)
                    )
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
        run = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        right = []
        for half in (run[: layout.size], run[layout.size :]):
            copy_tensors(global_tensors(model), unpack(half, layout))
            right.append(predicted_right(model, data, Split.TEST))
        limit = max(self._min_count, study.privacy.min_count)
        label = data.label[data.rows[Split.TEST]]
        hidden = groups_of(data, Split.TEST, len(study.classes), limit).classes
        return compare(self._site, right[0], right[1], label, study.classes, hidden)

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
        limit = max(self._min_count, study.privacy.min_count)
        splits: dict[str, dict[str, int | None]] = {}
        patterns: dict[str, dict[str, int | None]] = {}
        for split in Split:
            rows = data.rows[split]
            labels = Counter(data.label[rows].tolist())
            shown = groups_of(data, split, len(study.classes), limit)
            splits[split] = {
                name: None if index in shown.classes else labels[index]
                for index, name in enumerate(study.classes)
            }
            patterns[split] = {
                name: None if name in shown.patterns else count
                for name, count in sorted(Counter(pattern_names(data.present[rows])).items())
            }
        samples = len(data.rows[Split.TRAIN])
        hides = study.privacy.hides_counts  # the coordinator learns no size of a single site
        with budgeted():
            self._gate.plan(study, request.run, samples)
        return RollCall(
            site=self._site,
            study_hash=study.hash,
            software=version("federated-mmare"),
            encoders=data.encoders,
            counts=Counts() if hides else Counts(splits, patterns),
            samples=told_rows(study, samples, limit),
            held_rounds=self._store.held(request.run),
            notes=encoder_notes(study, data.encoders),
            public_key=self._masker_of().public_key if study.privacy.secure_sum else "",
        )

    def _statistics(self, study: Study, data: SiteData) -> Statistics:
        rows = data.rows[Split.TRAIN]
        limit = max(self._min_count, study.privacy.min_count)
        found = []
        for slot, modality in enumerate(study.modalities):
            chosen = rows[data.present[rows, slot]]
            values = moment_rows(data.embedding[slot][chosen], Scaling(modality.scaling))  # (n, W)
            if len(values) < limit or study.privacy.dp is not None:  # sums have no noise
                values = values[:0]
            moments = Moments(
                modality.name,
                len(values),
                tuple(values.sum(dim=0).tolist()),
                tuple(values.square().sum(dim=0).tolist()),
            )
            if len(values) > 0 and limit > 1:
                patients = [data.patients[row] if data.patients else str(row) for row in chosen.tolist()]
                marks = patient_marks(patients, values, self._table.secret())
                moments = self._table.record.settle(moments, marks, limit)
            found.append(moments if moments.n >= limit else _no_moments(modality))
        return Statistics(self._site, tuple(found))


def _no_moments(modality: ModalitySpec) -> Moments:
    zeros = (0.0,) * modality.width
    return Moments(modality.name, 0, zeros, zeros)


def _pull(study: Study, received: dict[str, Tensor]) -> ProximalTerm | None:
    options = strategy_options(study.federation.strategy, study.federation.options)
    return ProximalTerm(options.mu, received) if isinstance(options, FedProxOptions) else None


def _place_local(model: MultimodalModel, study: Study, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Load the parts that stay at this site: as stored, or initialised as at every site.

    Raises:
        SiteError: If the stored state has other parts.
    """
    local = local_parameters(model, study)
    if not local:
        return {}
    values = {name.removeprefix(LOCAL): kept[name] for name in kept if name.startswith(LOCAL)}
    if not values:
        fresh = trained_tensors(build_model(study))
        values = {name: fresh[name] for name in local}
    if set(values) != local:
        raise SiteError(SiteCode.STATE)
    copy_tensors({name: value for name, value in trained_tensors(model).items() if name in local}, values)
    return values


def _revert_untouched(
    model: MultimodalModel,
    optimizers: PhaseOptimizers,
    trained: TrainedRound,
    study: Study,
    before: dict[str, Tensor],
    kept: dict[str, Tensor],
) -> tuple[list[Block], dict[str, Tensor]]:
    """Revert what no sample, or too few patients, exercised; returns the changed blocks and moments to store.

    What drifts is sent all the same, but not what too few patients changed.
    """
    blocks = [block for block in model.blocks() if block.name in optimizers.phase.blocks]
    drifts = study.federation.untouched is Untouched.DRIFT
    exercised = [block for block in blocks if trained.exposures[block.name] > 0]
    untouched = [
        block
        for block in blocks
        if (block.name in trained.small if drifts else trained.exposures[block.name] == 0)
    ]
    copy_tensors(block_tensors(untouched, trained_tensors(model)), block_tensors(untouched, before))
    return blocks if drifts else exercised, optimizers.untouched(untouched, kept)


def _changes(
    model: MultimodalModel, study: Study, update: Update, received: bytes, payload: bytes
) -> dict[str, Tensor]:
    """What an update's tensors change, by name."""
    local = local_parameters(model, study)
    sent = [block for block in without_parameters(model.blocks(), local) if block.name in update.blocks]
    flat = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in (received, payload)]
    origin = block_tensors(sent, unpack(flat[0], layout_of(global_tensors(model, without=local))))
    changed = unpack(flat[1], layout_of(origin))
    return {name: changed[name] - value for name, value in origin.items()}


def _owned(state: dict[str, Tensor], local: frozenset[str]) -> dict[str, Tensor]:
    """A state that training will not change: parameters are copied, moments die with their optimiser."""
    lent = {f"{LOCAL}{name}" for name in local}
    return {name: value.to("cpu", copy=name in lent).contiguous() for name, value in state.items()}
