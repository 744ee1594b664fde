"""What of the answers is summed under ``secure_sum``: the numbers of one kind of answer in one fixed order.

A site's vector has the same layout whatever it holds: zeros stand for what its rows did not exercise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mmare.metrics.attribution import AttributionState
from mmare.metrics.calibration import CalibrationState
from mmare.metrics.state import N_BINS
from mmare.models.blocks import block_tensors
from mmare.models.phases import phase_at
from mmare.study.choices import Scaling
from mmare.study.outcome import N_TIMES
from mmare.study.strategy_options import strategy_options
from mmare.tasks.registry import task_of
from mmare.wire.messages import (
    EVENT_TIMES,
    Evaluation,
    Moments,
    SecureSum,
    Split,
    Statistics,
    WireError,
)
from mmare.wire.sharing import federated_blocks
from mmare.wire.tensors import trained_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.models.blocks import Block
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study
    from mmare.tasks.base import State
    from mmare.wire.messages import Request, Update

__all__ = [
    "SumLayout",
    "attribution_of",
    "calibration_of",
    "evaluation_layout",
    "evaluation_of",
    "evaluation_values",
    "moments_layout",
    "moments_of",
    "moments_values",
    "sum_layout",
    "training_layout",
    "training_values",
    "within",
]

_MOST_CELLS = 1024 * N_BINS  # of the largest tensors of all patterns: 17 MB a site
_SUMS = ("over", "total", "squares")
_GRID = "/calibration"
_ATTRIBUTION = "/attribution"


@dataclass(frozen=True)
class SumLayout:
    """Named arrays of float64 in one vector."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def length(self) -> int:
        """Numbers in the vector."""
        return sum(map(math.prod, self.shapes.values()))

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """The vector ``(length,)``; zeros where a value is absent.

        Example:
            >>> layout = SumLayout({"a": (), "b": (2,)})
            >>> layout.pack({"b": torch.tensor([1.0, 2.0])}).tolist()
            [0.0, 1.0, 2.0]
        """
        vector = torch.zeros(self.length, dtype=torch.float64)
        for name, place in self.unpack(vector).items():
            if name in values:
                place.copy_(values[name])
        return vector

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector, by name."""
        pieces = torch.split(vector, [math.prod(shape) for shape in self.shapes.values()])
        return {
            name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }


def moments_layout(study: Study) -> SumLayout:
    """Of scaling moments."""
    shapes: dict[str, tuple[int, ...]] = {}
    for modality in study.modalities:
        if modality.scaling is not Scaling.SITE:
            shapes[f"{modality.name}/n"] = ()
            shapes |= {f"{modality.name}/{name}": (modality.width,) for name in _SUMS}
        if modality.scaling is Scaling.COMBAT:
            shapes[f"{modality.name}/between"] = (modality.width,)
    if study.survival is not None:
        shapes[EVENT_TIMES] = (N_TIMES,)
    return SumLayout(shapes)


def moments_values(statistics: Statistics) -> dict[str, Tensor]:
    """A site's moments."""
    values = {}
    for each in statistics.moments:
        values[f"{each.modality}/n"] = torch.tensor(float(each.n))
        for name in (*_SUMS, "between"):
            values[f"{each.modality}/{name}"] = torch.tensor(getattr(each, name), dtype=torch.float64)
    if statistics.events is not None:
        values[EVENT_TIMES] = torch.tensor(statistics.events.total, dtype=torch.float64)
    return values


def moments_of(sums: Mapping[str, Tensor], study: Study) -> Statistics:
    """The moments of all sites together."""
    events = _events_of(sums) if study.survival is not None else None
    return Statistics("", tuple(_pooled(modality, sums) for modality in study.modalities), events)


def _pooled(modality: ModalitySpec, sums: Mapping[str, Tensor]) -> Moments:
    """Of one modality; without the differences between sites, where its deviation is that within them."""
    name = modality.name
    if modality.scaling is Scaling.SITE:
        zeros = (0.0,) * modality.width
        return Moments(name, 0, zeros, zeros)
    over, total, squares = (sums[f"{name}/{each}"].tolist() for each in _SUMS)
    over = [*map(round, over)]
    if modality.scaling is Scaling.COMBAT:
        squares = within(over, total, squares, sums[f"{name}/between"].tolist())
    return Moments(name, round(sums[f"{name}/n"].item()), tuple(total), tuple(squares), tuple(over))


def _events_of(sums: Mapping[str, Tensor]) -> Moments:
    counts = tuple(sums[EVENT_TIMES].round().tolist())
    return Moments(EVENT_TIMES, round(sum(counts)), counts, counts)


def within(
    over: Sequence[float], total: Sequence[float], squares: Sequence[float], between: Sequence[float]
) -> list[float]:
    """Sums of squares of pooled rows without the differences between sites.

    Args:
        over: Rows of all sites by feature.
        total: Their sums.
        squares: Their sums of squares.
        between: Sum over the sites of `Moments.between`.

    Example:
        >>> one, other = Moments("ct", 2, (2.0,), (4.0,)), Moments("ct", 2, (10.0,), (52.0,))
        >>> within([4], [12.0], [56.0], [one.between[0] + other.between[0]])
        [40.0]
    """
    return [
        square - apart + sum_ * sum_ / n if n else 0.0
        for n, sum_, square, apart in zip(over, total, squares, between, strict=True)
    ]


def training_layout(model: MultimodalModel, study: Study, round_number: int) -> SumLayout:
    """Of a round's updates: weight, exposure and weighted change of every block that the round trains."""
    shapes: dict[str, tuple[int, ...]] = {"samples": (), "loss": ()}
    tensors = trained_tensors(model)
    for block in _of_round(model, study, round_number):
        shapes |= {f"{block.name}/weight": (), f"{block.name}/exposure": ()}
        for name, value in block_tensors((block,), tensors).items():
            shapes[f"{block.name}/{name}"] = tuple(value.shape)
    return SumLayout(shapes)


def training_values(
    model: MultimodalModel, study: Study, update: Update, changes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A site's part of a round; ``changes`` by name of tensor, as `block_tensors` names them."""
    options = strategy_options(study.federation.strategy, study.federation.options)
    samples, tensors = update.samples, trained_tensors(model)
    loss = (update.train_loss or 0.0) * samples
    values = {"samples": torch.tensor(float(samples)), "loss": torch.tensor(loss)}
    for block in _of_round(model, study, update.round):
        if block.name not in update.blocks:
            continue
        exposure = update.exposures[block.name]
        weight = options.vote(samples, exposure)
        values[f"{block.name}/weight"] = torch.tensor(weight, dtype=torch.float64)
        values[f"{block.name}/exposure"] = torch.tensor(float(exposure))
        for name in block_tensors((block,), tensors):
            values[f"{block.name}/{name}"] = changes[name].double() * weight
    return values


def evaluation_layout(
    study: Study,
    splits: Sequence[Split],
    *,
    patterns: bool,
    calibration: bool = False,
    shapley: bool = False,
) -> SumLayout:
    """Of the metric states of splits, and if asked of every presence pattern, unless they are too many.

    With ``calibration`` also of the losses on its grid, with ``shapley`` of test rows and sums by modality.
    """
    task = task_of(study)
    state = task.shapes()
    fits = max(map(math.prod, state.values())) << len(study.modalities) <= _MOST_CELLS
    groups = ["", *(_patterns(len(study.modalities)) if patterns and fits else ())]
    grid = tuple(CalibrationState.empty(len(study.classes)).losses.shape) if calibration else ()
    return SumLayout(
        {f"{split}{_GRID}": grid for split in splits if calibration}
        | {
            f"{split}{_ATTRIBUTION}": (2, len(study.modalities))
            for split in splits
            if shapley and split is Split.TEST
        }
        | {
            f"{split}/{group}/{name}": shape
            for split in splits
            for group in groups
            for name, shape in {**state, "withheld": (task.n_strata,)}.items()
        }
    )


def evaluation_values(evaluations: Sequence[Evaluation], study: Study) -> dict[str, Tensor]:
    """A site's metric states."""
    values: dict[str, Tensor] = {}
    task = task_of(study)
    for each in evaluations:
        for group, content in {"": each.state, **each.patterns}.items():
            state = task.read(content)
            for part in task.PARTS:
                values[f"{each.split}/{group}/{part}"] = getattr(state, part).double()
            withheld = torch.zeros(task.n_strata)
            withheld[list(state.withheld)] = 1.0
            values[f"{each.split}/{group}/withheld"] = withheld
        if each.calibration:
            grid = CalibrationState.from_dict(each.calibration, len(study.classes))
            values[f"{each.split}{_GRID}"] = grid.losses
        if each.attribution:
            moved = AttributionState.from_dict(each.attribution, len(study.modalities))
            values[f"{each.split}{_ATTRIBUTION}"] = torch.stack([moved.rows.double(), moved.moved])
    return values


def evaluation_of(sums: Mapping[str, Tensor], split: Split, study: Study) -> dict[str, State]:
    """The pooled states of a split, by presence pattern; under an empty name that of all rows.

    Raises:
        WireError: If the sums are no metric state.
    """
    task = task_of(study)
    found: dict[str, State] = {}
    for name in sums:
        if not (name.startswith(f"{split}/") and name.endswith("/withheld")):
            continue
        group = name.split("/")[1]
        parts = {each: sums[f"{split}/{group}/{each}"] for each in task.PARTS}
        try:
            state = task.restored(parts, tuple(sums[name].round().nonzero().flatten().tolist()))
        except ValueError as error:
            raise WireError(str(error)) from None
        if not group or state.n:
            found[group] = state
    return found


def calibration_of(sums: Mapping[str, Tensor], split: Split) -> CalibrationState | None:
    """The pooled losses of a split on the calibration grid, if they were asked for."""
    losses = sums.get(f"{split}{_GRID}")
    if losses is None:
        return None
    counts = sums[f"{split}//confusion"].sum(dim=1).round().long()
    return CalibrationState(counts, losses)


def attribution_of(sums: Mapping[str, Tensor], split: Split) -> AttributionState | None:
    """How far modalities move predictions of all sites' rows, if it was asked for."""
    found = sums.get(f"{split}{_ATTRIBUTION}")
    return None if found is None else AttributionState(found[0].round().long(), found[1])


def sum_layout(model: MultimodalModel, study: Study, request: Request) -> SumLayout:
    """Of the answers to a request, the same for every site that it goes to."""
    if request.sum is SecureSum.MOMENTS:
        return moments_layout(study)
    asked = {
        "patterns": request.patterns,
        "calibration": request.calibration,
        "shapley": request.shapley,
    }
    shapes = dict(evaluation_layout(study, request.splits, **asked).shapes)
    if request.sum is SecureSum.ROUND:
        shapes |= training_layout(model, study, request.round).shapes
    return SumLayout(shapes)


def _of_round(model: MultimodalModel, study: Study, round_number: int) -> list[Block]:
    trained = phase_at(model.phases(), round_number).blocks
    return [block for block in federated_blocks(model, study) if block.name in trained]


def _patterns(modalities: int) -> list[str]:
    return [f"{number:0{modalities}b}" for number in range(1, 2**modalities)]
