"""Metrics of predicted numbers as sums that sites send and the server adds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from mmare.metrics.reading import fields, items, real, require, whole
from mmare.metrics.state import MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["RegressionState"]

SUMS: Final = 8  # of |e|, e^2, e^4, y, y^2, p, p^2, yp with the error e = p - y
LARGEST: Final = 1e30  # of a sum
_SPREAD: Final = 1.959964  # deviations of a normal distribution that hold 95 %
_TOLERANCE: Final = 1e-6  # relative, when received sums are compared


@dataclass(frozen=True, eq=False, repr=False)
class RegressionState:
    """Sums over targets y and predictions p of rows; states of disjoint rows can be merged.

    Args:
        rows: ``(1,)`` int64.
        sums: ``(1, 8)`` float64, of abs(e), e^2, e^4, y, y^2, p, p^2 and y p, where e = p - y.
        withheld: ``(0,)`` if a site left out its rows because they are too few.

    Example:
        >>> state = RegressionState.of(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 4.0]))
        >>> found = state.compute(1.0)
        >>> round(found["mae"], 3), round(found["rmse"], 3), round(found["r2"], 3)
        (0.333, 0.577, 0.786)
    """

    rows: Tensor
    sums: Tensor
    withheld: tuple[int, ...] = field(default=(), kw_only=True)

    @classmethod
    def empty(cls) -> RegressionState:
        """The state of no rows."""
        return cls(torch.zeros(1, dtype=torch.int64), torch.zeros(1, SUMS, dtype=torch.float64))

    @classmethod
    def of(cls, predicted: Tensor, target: Tensor) -> RegressionState:
        """The state of predictions ``(B,)`` and targets ``(B,)``.

        Raises:
            ValueError: If one is not finite, or too large.
        """
        p, y = (each.detach().cpu().double() for each in (predicted, target))
        e = p - y
        sums = torch.stack([each.sum() for each in (e.abs(), e**2, e**4, y, y**2, p, p**2, y * p)])
        if not bool((sums.abs() < LARGEST).all()):  # NaN compares as false
            raise ValueError("predictions and targets must be finite")
        return cls(torch.tensor([len(p)]), sums[None])

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows."""
        return (self.n,)

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.rows)

    def merge(self, other: RegressionState) -> RegressionState:
        """The state of the rows of both."""
        withheld = tuple(sorted({*self.withheld, *other.withheld}))
        return RegressionState(self.rows + other.rows, self.sums + other.sums, withheld=withheld)

    def withhold(self, min_count: int) -> RegressionState:
        """The state as it may leave a site."""
        return self.without([0] if 0 < self.n < min_count else [])

    def without(self, strata: Iterable[int]) -> RegressionState:
        """The state of no rows, if the only stratum is to be left out."""
        hidden = sorted(strata)
        empty = RegressionState.empty()
        return RegressionState(empty.rows, empty.sums, withheld=(0,)) if hidden else self

    def compute(self, spread: float) -> dict[str, float | int | None]:
        """The metrics of the rows, ``None`` where undefined; errors times ``spread``.

        ``r2`` is the share of the targets' variance that is explained, below zero where their mean predicts
        better; it needs two different targets. ``slope`` is that of the targets over the predictions, 1 where
        these are neither too extreme nor too timid. ``log_loss`` is half the mean squared error without
        ``spread``: the negative log-likelihood of errors of that deviation, but for a constant.
        """
        n = self.n
        if n == 0:
            return {"n": 0, **dict.fromkeys(("r2", "mae", "rmse", "slope", "log_loss"))}
        absolute, square, _, y, yy, p, pp, yp = (value / n for value in self.sums[0].tolist())
        of_targets, of_predictions, both = yy - y * y, pp - p * p, yp - y * p
        return {
            "n": n,
            "r2": 1 - square / of_targets if of_targets > _TOLERANCE * yy else None,
            "mae": absolute * spread,
            "rmse": math.sqrt(max(square, 0.0)) * spread,
            "slope": both / of_predictions if of_predictions > _TOLERANCE * pp else None,
            "log_loss": square / 2,
        }

    def intervals(self, spread: float) -> dict[str, list[float] | None]:
        """95 % intervals ``[low, high]`` of the two errors, by their normal limit."""
        n = self.n
        if n < 2:  # noqa: PLR2004 - one row has no deviation
            return {"mae": None, "rmse": None}
        absolute, square, fourth = (value / n for value in self.sums[0, :3].tolist())
        reach = _SPREAD * math.sqrt(max(square - absolute**2, 0.0) / n)
        reach_of_square = _SPREAD * math.sqrt(max(fourth - square**2, 0.0) / n)
        ends = [math.sqrt(max(square + sign * reach_of_square, 0.0)) * spread for sign in (-1, 1)]
        return {"mae": [max(absolute - reach, 0.0) * spread, (absolute + reach) * spread], "rmse": ends}

    def to_dict(self) -> dict[str, Any]:
        """The state for JSON."""
        return {"n": self.n, "sums": self.sums[0].tolist(), "withheld": list(self.withheld)}

    @classmethod
    def from_dict(cls, content: object) -> RegressionState:
        """Validate and read what `to_dict` wrote on another machine.

        Raises:
            ValueError: If anything differs from the format, or no rows have such sums.
        """
        n, sums, withheld = fields(content, ("n", "sums", "withheld"), "the state")
        rows = whole(n, MAX_ROWS, "n")
        values = [real(value, -LARGEST, LARGEST, "sums") for value in items(sums, SUMS, "sums")]
        left_out = tuple(whole(each, 0, "withheld") for each in items(withheld, None, "withheld"))
        table = torch.tensor([values], dtype=torch.float64)
        return _possible(cls(torch.tensor([rows]), table, withheld=left_out[:1]))


def _possible(state: RegressionState) -> RegressionState:
    """The state, if some rows have its sums."""
    n = state.n
    absolute, square, fourth, y, yy, p, pp, yp = state.sums[0].tolist()
    slack = 1 + _TOLERANCE
    require(n > 0 or not state.sums.any(), "sums without rows")
    require(min(absolute, square, fourth, yy, pp) >= 0, "a sum of squares below zero")
    for total, squares in ((absolute, square), (square, fourth), (y, yy), (p, pp)):
        require(total**2 <= n * squares * slack + _TOLERANCE, "sums that no rows have")
    gap = abs(yy + pp - 2 * yp - square)
    require(gap <= _TOLERANCE * max(yy + pp, 1.0), "sums of errors that are not those of the predictions")
    return state
