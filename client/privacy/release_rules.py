"""Rules for what an approved study may release, and the check of an answer against them.

The rules are independent of the trainer: the tensors follow from the study's model and the round's phase, the
possible exposures of a block from the site's rows, the groups to disclose from the limit. Updates are checked
at both ends, here to protect the patients, in ``server/rounds/update_checks.py`` to protect the average.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from client.encoders.registry import encoder_notes
from client.privacy.accountant import public_rows
from client.privacy.extra_answers import check_attribution, check_calibration, check_events
from mmare.metrics.paired import N_SUMS
from mmare.models.blocks import block_tensors, without_parameters
from mmare.models.phases import phase_at
from mmare.models.registry import build_model
from mmare.study.choices import Scaling, TaskName, Untouched, Wire
from mmare.tasks.registry import task_of
from mmare.wire.messages import (
    Comparison,
    Counts,
    Evaluation,
    Layout,
    RollCall,
    Split,
    Statistics,
    Task,
    Unmasked,
    Update,
)
from mmare.wire.sharing import local_parameters, on_wire
from mmare.wire.tensors import global_tensors, layout_of, trained_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from mmare.study.study import Study
    from mmare.wire.messages import Request, TensorSpec

__all__ = ["Answer", "Facts", "ReleaseError", "StudyRules", "check_answer", "told_rows"]

Answer = RollCall | Statistics | Update | Comparison | Unmasked

_KINDS: Final[Mapping[Task, type]] = {
    Task.DESCRIBE: RollCall,
    Task.STATISTICS: Statistics,
    Task.TRAIN: Update,
    Task.EVALUATE: Update,
    Task.COMPARE: Comparison,
    Task.UNMASK: Unmasked,
}
_CELLS: Final = 4  # per class of a comparison: both models right, only the first, only the second, neither
_FINGERPRINT: Final = re.compile(r"[A-Za-z0-9][^\s\\]{0,499}")  # of an encoder: one word, no absolute path
_PHASES: Final = {"evaluate", "train"}  # of a round, timed
_PIECE: Final = 1 << 15  # numbers


class ReleaseError(ValueError):
    """An answer that the approved study does not release; the message is for the site's own log."""


@dataclass(frozen=True)
class Facts:
    """What the site knows independently of an answer."""

    site: str  # id
    limit: int  # smallest group to disclose: the larger of the site's and the study's
    train_rows: int


@dataclass(frozen=True)
class _Part:
    """One tensor of a block."""

    spec: TensorSpec  # as sent
    source: str  # received tensor that it updates
    column: int | None  # of that tensor


class StudyRules:
    """The tensors that a study's model can send; keeps no model.

    Raises:
        StudyError: If the study names an unknown model.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        model = build_model(study)
        local = local_parameters(model, study)
        tensors = trained_tensors(model)
        blocks = {block.name: block for block in model.blocks()}
        federated = without_parameters(blocks.values(), local)
        self.received = layout_of(global_tensors(model, without=local))
        self._phases = tuple(
            replace(phase, objectives=tuple(replace(each, loss=_no_loss) for each in phase.objectives))
            for phase in model.phases()
        )
        self._most = {name: block.most for name, block in blocks.items()}
        self._parts: dict[str, tuple[_Part, ...]] = {}
        for block in federated:
            sent = block_tensors((block,), tensors)
            specs = layout_of(on_wire(sent, sent, study.federation.wire)).tensors
            self._parts[block.name] = tuple(
                _Part(spec, name, block.column) for spec, name in zip(specs, block.parameters, strict=True)
            )

    def most_bytes(self) -> int:
        """Largest size of the tensors of a round."""
        return max(self._layout(self._of_round(phase.blocks)).size for phase in self._phases)

    def most_numbers(self) -> int:
        """Largest number of parameters of a round."""
        return max(
            sum(
                math.prod(part.spec.shape)
                for name in self._of_round(phase.blocks)
                for part in self._parts[name]
            )
            for phase in self._phases
        )

    def check_blocks(self, update: Update) -> Layout:
        """The layout of an update's tensors; raises `ReleaseError` for impossible blocks or exposures."""
        trained = phase_at(self._phases, update.round).blocks
        _require(set(update.exposures) == trained, "exposures of other blocks than the round's")
        for name, count in update.exposures.items():
            most = update.samples * self._most[name]
            _require(0 <= count <= most, f"exposure {count} of block {name}, expected 0 to {most}")
        stay = self.study.federation.untouched is Untouched.STAY
        wanted = [name for name in self._of_round(trained) if update.exposures[name] > 0 or not stay]
        _require(list(update.blocks) == wanted, "tensors of other blocks than those that were exercised")
        layout = self._layout(wanted)
        _require(update.layout == layout.fingerprint, "tensors of another layout")
        return layout

    def change(self, update: Update, layout: Layout, sent: NDArray[np.uint8], received: bytes) -> float:
        """L2 norm of the change that the tensors ``sent`` make; infinite if a value is not finite.

        Args:
            update: The update with these tensors.
            layout: Of ``sent``.
            sent: ``(bytes,)``.
            received: Tensors that the round started from.

        Raises:
            ReleaseError: If the length is wrong or there are bytes between the tensors.
        """
        _require(len(sent) == layout.size, f"{len(sent)} bytes of tensors, expected {layout.size}")
        _require(len(received) == self.received.size, "tensors without those that they update")
        origin = np.frombuffer(received, dtype=np.uint8)
        starts = dict(zip((spec.name for spec in self.received.tensors), self.received.offsets, strict=False))
        specs = {spec.name: spec for spec in self.received.tensors}
        parts = [part for name in update.blocks for part in self._parts[name]]
        total = 0.0
        with np.errstate(all="ignore"):  # a non-finite result is valid
            for part, (start, end) in zip(parts, pairwise(layout.offsets), strict=True):
                stop = start + part.spec.size
                _require(end == stop or not sent[stop:end].any(), "bytes between the tensors")
                value = _view(sent, start, part.spec)
                before = None
                if self.study.federation.wire is Wire.FLOAT32:
                    before = _view(origin, starts[part.source], specs[part.source])
                    before = before if part.column is None else before[:, part.column]
                total += _squares(value.reshape(-1), None if before is None else before.reshape(-1))
        return math.sqrt(total) if math.isfinite(total) else math.inf

    def _of_round(self, trained: frozenset[str]) -> list[str]:
        return [name for name in self._parts if name in trained]

    def _layout(self, blocks: Sequence[str]) -> Layout:
        return Layout(tuple(part.spec for name in blocks for part in self._parts[name]))


def check_answer(answer: Answer, request: Request, rules: StudyRules, facts: Facts) -> tuple[str, ...]:
    """Check an answer except for its tensors, and return its kinds of content for the audit log.

    Raises:
        ReleaseError: If the study does not release all of it.
    """
    _require(type(answer) is _KINDS[request.task], f"{type(answer).__name__} for {request.task}")
    _require(answer.site == facts.site, "the id of another site")
    if isinstance(answer, RollCall):
        return _roll_call(answer, rules.study, facts)
    if isinstance(answer, Statistics):
        return _statistics(answer, rules.study, facts)
    if isinstance(answer, Comparison):
        return _comparison(answer, rules.study, facts)
    if isinstance(answer, Unmasked):
        return ("shares",)
    return _update(answer, request, rules.study, facts)


def _roll_call(call: RollCall, study: Study, facts: Facts) -> tuple[str, ...]:
    names = {modality.name for modality in study.modalities}
    _require(call.study_hash == study.hash, "the hash of another study")
    _require(call.software == version("federated-mmare"), "another software version")
    _require(set(call.encoders) <= names, "an encoder of a modality that the study does not have")
    _require(all(map(_FINGERPRINT.fullmatch, call.encoders.values())), "an invalid encoder fingerprint")
    _require(call.notes == encoder_notes(study, call.encoders), "notes that differ from the encoders' own")
    enough = told_rows(study, facts.train_rows, facts.limit)
    if study.privacy.hides_counts:
        _require(call.counts == Counts(), "counts, which the study hides")
    _require(call.samples == enough, f"{call.samples} train rows, expected {enough}")
    splits, patterns = call.counts.splits, call.counts.patterns
    known = {split.value for split in Split}
    _require(set(splits) | set(patterns) <= known, "counts of a split that the study does not have")
    for split, sizes in splits.items():
        _require(set(sizes) == set(study.classes), "counts of other classes than the study's")
        _sizes(sizes, facts.limit, total_told=split == Split.TRAIN)
        by_pattern = patterns.get(split, {})
        _sizes(by_pattern, facts.limit, total_told=True)
        for name in by_pattern:
            _pattern(name, study)
        hidden = any(size is None for size in sizes.values())
        _require(not hidden or not any(by_pattern.values()), "patterns that disclose a withheld class")
    _require(set(patterns) <= set(splits), "patterns of a split without class sizes")
    return ("counts", "encoders")


def told_rows(study: Study, train_rows: int, limit: int) -> int:
    """Train rows as a roll call tells them; 0 where they are too few to train on."""
    if train_rows < limit:
        return 0
    if study.privacy.secure_sum:
        return min(train_rows, 1)
    return train_rows if study.privacy.dp is None else public_rows(train_rows)


def _statistics(statistics: Statistics, study: Study, facts: Facts) -> tuple[str, ...]:
    names = [moments.modality for moments in statistics.moments]
    _require(names == [modality.name for modality in study.modalities], "moments of other modalities")
    for moments, modality in zip(statistics.moments, study.modalities, strict=True):
        _large(moments.n, facts.limit)
        _require(moments.n == 0 or study.privacy.dp is None, "moments, which have no noise")
        _require(moments.n == 0 or modality.scaling is not Scaling.SITE, "moments that stay here")
        sums = (*moments.total, *moments.squares)
        wide = len(moments.total) == len(moments.squares) == len(moments.over) == modality.width
        _require(wide, f"moments of {modality.name} of the wrong width")
        _require(all(map(math.isfinite, sums)), f"moments of {modality.name} are not finite")
        for over, total, squares in zip(moments.over, moments.total, moments.squares, strict=True):
            _large(over, facts.limit)
            possible = over <= moments.n and (over > 0 or not (total or squares))
            _require(possible, f"sums of {modality.name} over rows that are not there")
    if statistics.events is None and study.survival is None:
        return ("moments",)
    try:
        check_events(statistics.events, study, facts.limit)
    except ValueError as error:
        raise ReleaseError(str(error)) from None
    return ("moments", "event times")


def _comparison(comparison: Comparison, study: Study, facts: Facts) -> tuple[str, ...]:
    _require(set(comparison.cells) <= set(study.classes), "a comparison of other classes")
    for cells in comparison.cells.values():
        _require(len(cells) == _CELLS and min(cells) >= 0, "cells that are not counts")
        _large(sum(cells), facts.limit)
    if comparison.sums:
        _require(study.task is not TaskName.CLASSIFICATION, "sums of a comparison of classes")
        rows = comparison.sums[0]
        _require(len(comparison.sums) == N_SUMS and rows.is_integer(), "sums of another comparison")
        _large(int(rows), facts.limit)
    return ("comparison",)


def _update(update: Update, request: Request, study: Study, facts: Facts) -> tuple[str, ...]:
    _require(update.round == request.round, "the update of another round")
    found = tuple(evaluation.split for evaluation in update.evaluations)
    _require(found == request.splits, "metrics of other splits than those requested")
    for evaluation in update.evaluations:
        _evaluation(evaluation, request, study, facts.limit)
    _require(update.norm is None, "a norm, which only the gate measures")
    _require(set(update.seconds) <= _PHASES, "seconds of an unknown phase")
    _require(all(0 <= value < math.inf for value in update.seconds.values()), "invalid seconds")
    what = tuple(f"metrics {split}" for split in found)
    what += tuple(f"calibration {each.split}" for each in update.evaluations if each.calibration)
    what += tuple(f"Shapley values {each.split}" for each in update.evaluations if each.attribution)
    if not request.train:
        bare = Update(update.site, update.round, evaluations=update.evaluations, seconds=update.seconds)
        _require(update == bare, "training results that were not requested")
        return what
    private = study.privacy.dp is not None
    rows = public_rows(facts.train_rows) if private else facts.train_rows
    draws = rows * study.training.local_epochs
    _require(update.samples == draws, f"{update.samples} draws, expected {draws}")
    _require(facts.train_rows >= facts.limit, "an update from fewer rows than the limit")
    loss = update.train_loss
    _require(loss is None if private else loss is not None and math.isfinite(loss), "a loss that is not told")
    _require(not private or set(update.exposures.values()) == {draws}, "exposures, which have no noise")
    _require(
        (update.trained is not None) == request.gap, "metrics of the trained model missing or not requested"
    )
    if update.trained is not None:
        _require(update.trained.split is Split.VAL, "metrics of the trained model on another split")
        plain = replace(request, patterns=False, subsets=False, calibration=False, shapley=False)
        _evaluation(update.trained, plain, study, facts.limit)
        what += ("metrics trained",)
    return (*what, "update")


def _evaluation(evaluation: Evaluation, request: Request, study: Study, limit: int) -> None:
    """Check the metric states of a split: no class is small, in a disclosed or in the withheld groups."""
    whole = _counts(evaluation.state, study, limit)
    _require(request.patterns or not evaluation.patterns, "patterns that were not requested")
    _require(request.subsets or not evaluation.subsets, "subsets that were not requested")
    _require(request.calibration or not evaluation.calibration, "calibration that was not requested")
    _require(request.shapley or not evaluation.attribution, "Shapley values that were not requested")
    disclosed = {name: _group(name, state, study, limit) for name, state in evaluation.patterns.items()}
    for index, count in enumerate(whole if disclosed else ()):
        rest = count - sum(counts[index] for counts in disclosed.values())
        _require(rest >= 0, "patterns of more rows than the split has")
        _large(rest, limit)
    for name, state in evaluation.subsets.items():
        _group(name, state, study, limit)
    try:
        if evaluation.calibration:
            check_calibration(evaluation, whole, study)
        if evaluation.attribution:
            check_attribution(evaluation, whole, disclosed, study, limit)
    except ValueError as error:
        raise ReleaseError(str(error)) from None


def _group(name: str, state: Mapping[str, Any], study: Study, limit: int) -> tuple[int, ...]:
    _pattern(name, study)
    return _counts(state, study, limit)


def _counts(content: Mapping[str, Any], study: Study, limit: int) -> tuple[int, ...]:
    """Rows per stratum of a metric state, after checking it."""
    task = task_of(study)
    try:
        state = task.read(content)
    except ValueError as error:
        raise ReleaseError(f"an invalid metric state: {error}") from None
    for count in state.counts:
        _large(count, limit)
    rows = task.told(state) if limit > 1 else torch.zeros(0)
    _require(not ((rows > 0) & (rows < limit)).any(), "a bin of too few scores")
    counts: tuple[int, ...] = state.counts
    return counts


def _pattern(name: str, study: Study) -> None:
    known = len(name) == len(study.modalities) and set(name) <= {"0", "1"} and "1" in name
    _require(known, "a presence pattern that the study does not have")


def _sizes(sizes: Mapping[str, int | None], limit: int, *, total_told: bool) -> None:
    """Check that no size of a partition is small or follows from the disclosed ones and a total."""
    disclosed = [size for size in sizes.values() if size is not None]
    for size in disclosed:
        _large(size, limit)
    alone = len(sizes) - len(disclosed) == 1
    _require(
        not total_told or not alone or not any(disclosed), "one withheld size, which follows from the others"
    )


def _large(size: int, limit: int) -> None:
    _require(size == 0 or size >= limit, f"a group of {size}, smaller than {limit}")


def _require(fine: object, sentence: str) -> None:
    if not fine:
        raise ReleaseError(sentence)


def _squares(value: NDArray[Any], before: NDArray[Any] | None) -> float:
    """Sum of squares of ``value``, or of its difference from ``before``; in pieces that fit the cache."""
    total = 0.0
    for start in range(0, len(value), _PIECE):
        part = slice(start, start + _PIECE)
        piece = value[part].astype(np.float32) if before is None else value[part] - before[part]
        total += float(np.dot(piece, piece))
    return total


def _view(run: NDArray[np.uint8], start: int, spec: TensorSpec) -> NDArray[Any]:
    return run[start : start + spec.size].view(spec.dtype).reshape(spec.shape)


def _no_loss(_scaled: Tensor, _present: Tensor, _label: Tensor, _generator: Generator) -> Tensor:
    raise RuntimeError("release rules do not train")
