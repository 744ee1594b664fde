"""Calibration without rows: sums of losses on a grid of temperatures and shifts, and the best between them.

Letters: B rows, K classes, T temperatures, C classes whose logit is shifted (of two classes the second, which
shifts the first the other way; else each), S shifts, G = T C S points of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

import torch

from mmare.metrics.decisions import Calibration
from mmare.metrics.state import BINARY, MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = [
    "LOSSES",
    "SHIFTS",
    "TEMPERATURES",
    "CalibrationState",
    "grid_shape",
    "merge_calibration",
]

TEMPERATURES: Final = tuple(2 ** (step / 6) for step in range(-12, 19))  # 1/4 to 8
SHIFTS: Final = tuple(step / 5 for step in range(-15, 16))  # -3 to 3: odds of 1/20 to 20
PRIOR_SD: Final = 0.5  # of log temperature and of a shift about 0; measured in tests/bench
LOSSES: Final = ("log_loss", "brier")
DECIMALS: Final = 4  # of a sum
_LOG_STEP: Final = math.log(TEMPERATURES[1] / TEMPERATURES[0])
_SHIFT_STEP: Final = SHIFTS[1] - SHIFTS[0]
_OFFSETS: Final = torch.linspace(-1, 1, 201, dtype=torch.float64)  # from a point of the grid, in steps
_MOST_NUMBERS: Final = 2**22  # rows x classes x shifts at a time


def grid_shape(n_classes: int) -> tuple[int, int, int]:
    """``(T, C, S)``."""
    return len(TEMPERATURES), 1 if n_classes == BINARY else n_classes, len(SHIFTS)


@dataclass(frozen=True, eq=False, repr=False)
class CalibrationState:
    """Losses of a set of rows at every point of the grid; states of disjoint sets can be merged.

    Args:
        counts: ``(K,)`` int64, rows by true class.
        losses: ``(K, 2, G)`` float64 sums by true class of log-loss (nats) and Brier score, as
            `mmare.metrics.state.MetricState` defines them.
    """

    counts: Tensor
    losses: Tensor
    withheld: tuple[int, ...] = field(default=(), kw_only=True)

    @classmethod
    def empty(cls, n_classes: int) -> CalibrationState:
        """The state of no rows."""
        shape = (n_classes, len(LOSSES), math.prod(grid_shape(n_classes)))
        return cls(torch.zeros(n_classes, dtype=torch.int64), torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, limit: int = 0) -> CalibrationState:
        """The state of logits ``(B, K)`` and labels ``(B,)``.

        So many sums would tell the logits of single rows. With a ``limit`` above 1 the rows of a class are
        therefore microaggregated first (Domingo-Ferrer & Mateo-Sanz 2002): sorted by the probability of their
        class, and at least ``limit`` neighbours replaced by two points that have their mean and, along its
        main axis, their variance. Their mean alone would make a model look better calibrated than it is.

        Example:
            >>> state = CalibrationState.of(torch.tensor([[0.0, 2.0]] * 2000), torch.arange(2000) % 2)
            >>> round(state.means_at(Calibration(2.0, (0.0, -1.0)))["log_loss"], 4)  # a coin's
            0.6931
        """
        k = logits.shape[1]
        logits, labels = logits.detach().to("cpu", torch.float64), labels.detach().cpu()
        found = cls.empty(k)
        for true in range(k):
            rows = logits[labels == true]
            if len(rows):
                centred, weights = _microaggregated(rows, true, limit)
                found.losses[true] = _losses(centred, weights, true).flatten(1)
        return cls(labels.bincount(minlength=k), (found.losses * 10**DECIMALS).round() / 10**DECIMALS)

    def without(self, classes: Iterable[int]) -> CalibrationState:
        """The state without some classes, which are named as withheld."""
        hidden = sorted(classes)
        counts, losses = self.counts.clone(), self.losses.clone()
        counts[hidden], losses[hidden] = 0, 0.0
        return CalibrationState(counts, losses, withheld=tuple(sorted({*self.withheld, *hidden})))

    def merge(self, other: CalibrationState) -> CalibrationState:
        """The state of the rows of both."""
        withheld = tuple(sorted({*self.withheld, *other.withheld}))
        return CalibrationState(self.counts + other.counts, self.losses + other.losses, withheld=withheld)

    def fit(self) -> Calibration | None:
        """The most probable calibration, by log-loss and prior; ``None`` if a class has no rows.

        The prior is normal about no change. The smallest loss of some dozen rows alone is worse on other rows
        than no calibration; from some hundred on the prior hardly matters.
        """
        if not all(self.counts.tolist()):
            return None
        n_classes = len(self.counts)
        surprise = self.losses[:, 0].sum(dim=0) + _surprise_of_prior(n_classes)
        place = torch.unravel_index(surprise.argmin(), grid_shape(n_classes))
        temperature, shifted, shift = (int(each) for each in place)
        at = _inner(temperature, len(TEMPERATURES)), _inner(shift, len(SHIFTS))
        weights = _parabola(_OFFSETS)  # (N, 3)
        between = weights @ _around(surprise, n_classes, shifted, at) @ weights.T  # (N, N)
        row, column = torch.unravel_index(between.argmin(), between.shape)
        bias = [0.0] * n_classes
        bias[1 if n_classes == BINARY else shifted] = SHIFTS[at[1]] + float(_OFFSETS[column]) * _SHIFT_STEP
        return Calibration(TEMPERATURES[at[0]] * math.exp(float(_OFFSETS[row]) * _LOG_STEP), tuple(bias))

    def means_at(self, calibration: Calibration) -> dict[str, float]:
        """Mean losses after a calibration that `fit` could give, over at least one row."""
        n_classes = len(self.counts)
        class_ = max(range(n_classes), key=lambda each: abs(calibration.bias[each]))
        places = (
            math.log(calibration.temperature / TEMPERATURES[0]) / _LOG_STEP,
            (calibration.bias[class_] - SHIFTS[0]) / _SHIFT_STEP,
        )
        at = _inner(round(places[0]), len(TEMPERATURES)), _inner(round(places[1]), len(SHIFTS))
        over = [_parabola(torch.tensor(p - a, dtype=torch.float64)) for p, a in zip(places, at, strict=True)]
        sums = self.losses.sum(dim=0) / self.counts.sum()  # (2, G)
        shifted = 0 if n_classes == BINARY else class_
        return {
            name: float(over[0] @ _around(each, n_classes, shifted, at) @ over[1])
            for name, each in zip(LOSSES, sums, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """The state for JSON; a class without rows is ``None``."""
        return {
            "grid": list(grid_shape(len(self.counts))),
            "classes": [
                {"n": n, **{name: sums.tolist() for name, sums in zip(LOSSES, losses, strict=True)}}
                if n
                else None
                for n, losses in zip(self.counts.tolist(), self.losses, strict=True)
            ],
            "withheld": list(self.withheld),
        }

    @classmethod
    def from_dict(cls, content: object, n_classes: int) -> CalibrationState:
        """Validate and read what `to_dict` wrote on another machine.

        Raises:
            ValueError: If anything differs from the format, or a sum is impossible.
        """
        shape = list(grid_shape(n_classes))
        if not (isinstance(content, Mapping) and content.keys() == {"grid", "classes", "withheld"}):
            raise ValueError("a calibration state must be a table of grid, classes and withheld")
        classes, withheld = content["classes"], content["withheld"]
        if content["grid"] != shape or not isinstance(classes, list) or len(classes) != n_classes:
            raise ValueError(f"a calibration state must be on the grid {shape} of {n_classes} classes")
        if not isinstance(withheld, list) or not set(withheld) <= set(range(n_classes)):
            raise ValueError("withheld names classes that there are not")
        found = cls.empty(n_classes)
        for true, entry in enumerate(classes):
            if entry is not None:
                found.counts[true], found.losses[true] = _read_class(entry, shape)
        return cls(found.counts, found.losses, withheld=tuple(sorted(withheld)))


def _inner(place: int, size: int) -> int:
    """The nearest point that has neighbours on both sides."""
    return min(max(place, 1), size - 2)


def _around(values: Tensor, n_classes: int, shifted: int, at: tuple[int, int]) -> Tensor:
    """Values ``(G,)`` of one shifted class at a temperature, a shift and their neighbours, ``(3, 3)``."""
    plane = values.reshape(grid_shape(n_classes))[:, shifted]
    return plane[at[0] - 1 : at[0] + 2, at[1] - 1 : at[1] + 2]


def _parabola(offset: Tensor) -> Tensor:
    """Weights ``(…, 3)`` of the points -1, 0 and 1 in the parabola through them at offsets ``(…)``."""
    return torch.stack([offset * (offset - 1) / 2, 1 - offset.square(), offset * (offset + 1) / 2], dim=-1)


def _surprise_of_prior(n_classes: int) -> Tensor:
    """``(G,)`` nats, 0 where nothing changes."""
    shape = grid_shape(n_classes)
    spread = torch.tensor(TEMPERATURES, dtype=torch.float64).log()[:, None, None].square()  # (T, 1, 1)
    shift = torch.tensor(SHIFTS, dtype=torch.float64).square()  # (S,)
    return ((spread + shift).expand(shape) / (2 * PRIOR_SD**2)).flatten()


def merge_calibration(states: Iterable[CalibrationState], n_classes: int) -> CalibrationState:
    """Merge in the given order."""
    return reduce(CalibrationState.merge, states, CalibrationState.empty(n_classes))


def _read_class(entry: object, shape: list[int]) -> tuple[int, Tensor]:
    if not (isinstance(entry, Mapping) and entry.keys() == {"n", *LOSSES}):
        raise ValueError(f"a class of a calibration state must be a table of n, {', '.join(LOSSES)}")
    n = entry["n"]
    if not (type(n) is int and 0 < n <= MAX_ROWS):
        raise ValueError("rows of a class must be a whole number above 0")
    parts = []
    for name in LOSSES:
        values = entry[name]
        if (
            not isinstance(values, list)
            or {*map(type, values)} - {int, float}
            or len(values) != math.prod(shape)
        ):
            raise ValueError(f"{name} must be {math.prod(shape)} numbers")
        parts.append(torch.tensor(values, dtype=torch.float64))
    sums = torch.stack(parts)
    if not (sums.isfinite().all() and (sums >= 0).all() and (sums[1] <= 2 * n + 1).all()):
        raise ValueError("losses that no rows have")
    return n, sums


def _microaggregated(rows: Tensor, true: int, limit: int) -> tuple[Tensor, Tensor]:
    """Centred logits ``(G, K)`` of rows, or of points that stand for groups, and their weights ``(G,)``."""
    rows = rows - rows.mean(dim=1, keepdim=True)
    if limit <= 1:
        return rows, torch.ones(len(rows), dtype=torch.float64)
    rows = rows[rows.log_softmax(dim=1)[:, true].argsort()]
    cuts = [limit] * (len(rows) // limit - 1)
    points, weights = [], []
    for group in torch.split(rows, [*cuts, len(rows) - sum(cuts)]):  # the last group takes the rest
        middle = group.mean(dim=0)
        _, spread, direction = torch.linalg.svd(group - middle, full_matrices=False)
        step = spread[0] / math.sqrt(len(group)) * direction[0]  # one standard deviation along its main axis
        points += [middle - step, middle + step]
        weights += [len(group) / 2] * 2
    return torch.stack(points), torch.tensor(weights, dtype=torch.float64)


def _losses(rows: Tensor, weights: Tensor, true: int) -> Tensor:
    """Weighted sums ``(2, T, C, S)`` of rows ``(G, K)`` of one true class.

    With u = softmax(z / t), a shift s of class c gives p_k = u_k e^(s [k = c]) / (1 + (e^s - 1) u_c).
    """
    k = rows.shape[1]
    shape = grid_shape(k)
    shifted = torch.arange(1, 2) if k == BINARY else torch.arange(k)  # (C,)
    shift = torch.tensor(SHIFTS, dtype=torch.float64)  # (S,)
    grow = shift.exp() - 1  # (S,)
    own = (shifted == true).double()[:, None] * shift  # (C, S), the shift of the true class itself
    found = torch.zeros(len(LOSSES), *shape, dtype=torch.float64)
    for chunk in torch.split(torch.arange(len(rows)), max(1, _MOST_NUMBERS // (shape[1] * shape[2]))):
        weight = weights[chunk]
        for at, temperature in enumerate(TEMPERATURES):
            logs = (rows[chunk] / temperature).log_softmax(dim=1)  # (G, K)
            u = logs.exp()
            part = u[:, shifted, None]  # (G, C, 1)
            whole = 1 + grow * part  # (G, C, S)
            surprise = whole.log() - logs[:, true, None, None] - own  # (G, C, S)
            squares = (
                u.square().sum(dim=1)[:, None, None] + (grow * (grow + 2)) * part.square()
            ) / whole.square()
            error = squares - 2 * (-surprise).exp() + 1  # (G, C, S), summed over classes
            error = (error / 2 if k == BINARY else error).clamp_min(0)
            found[0, at] += torch.einsum("g,gcs->cs", weight, surprise)
            found[1, at] += torch.einsum("g,gcs->cs", weight, error)
    return found
