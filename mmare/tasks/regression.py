"""A number: one output, in parts of the study's range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mmare.metrics.paired import error_sums
from mmare.metrics.regression import RegressionState
from mmare.tasks.base import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["Regression"]


class Regression(Task[RegressionState]):
    """Labels ``(B,)`` are float targets; the output is the target in quarters of its range, from the middle.

    Args:
        low: Lower end.
        high: Upper end.
    """

    PARTS = ("rows", "sums")
    COUNTS = ("rows",)

    def __init__(self, low: float, high: float) -> None:
        super().__init__(1, 1)
        self.centre, self.spread = (low + high) / 2, (high - low) / 4

    def standard(self, label: Tensor) -> Tensor:
        """Targets ``(B,)`` in quarters of the range, from -2 to 2."""
        return (label - self.centre) / self.spread

    def prediction(self, logits: Tensor) -> Tensor:
        """Targets ``(B,)``."""
        return logits[:, 0] * self.spread + self.centre

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Half the mean squared error."""
        return functional.mse_loss(logits[:, 0], self.standard(label).to(logits)) / 2

    def agreement(self, whole: Tensor, subset: Tensor, temperature: float) -> Tensor:  # noqa: ARG002 - of classes
        """Half the mean squared difference."""
        return functional.mse_loss(subset, whole.detach()) / 2

    def stratum(self, label: Tensor) -> Tensor:
        """All rows are alike."""
        return torch.zeros(len(label), dtype=torch.int64)

    def state(self, logits: Tensor, label: Tensor) -> RegressionState:
        """As of `Task`."""
        return RegressionState.of(logits[:, 0], self.standard(label.double()))

    def empty(self) -> RegressionState:
        """As of `Task`."""
        return RegressionState.empty()

    def read(self, content: object) -> RegressionState:
        """As of `Task`."""
        return RegressionState.from_dict(content)

    def restored(self, parts: Mapping[str, Tensor], withheld: tuple[int, ...]) -> RegressionState:
        """As of `Task`."""
        rows = parts["rows"].round().long()
        if rows.item() < 0:
            raise ValueError("a sum of counts below zero")
        return RegressionState(rows, parts["sums"], withheld=withheld)

    def coarsened(self, state: RegressionState, limit: int) -> RegressionState:  # noqa: ARG002 - it has no bins
        """The state: it has no bins."""
        return state

    def told(self, state: RegressionState) -> Tensor:
        """As of `Task`."""
        return state.rows

    def compute(self, state: RegressionState, of_all: RegressionState | None = None) -> dict[str, Any]:  # noqa: ARG002 - rows stand alone
        """As of `Task`."""
        return state.compute(self.spread)

    def detailed(
        self,
        state: RegressionState,
        seed: int,  # noqa: ARG002 - nothing is drawn
        of_all: RegressionState | None = None,  # noqa: ARG002 - rows stand alone
    ) -> dict[str, Any]:
        """As of `Task`; intervals are those of the normal limit."""
        return {**state.compute(self.spread), "ci95": state.intervals(self.spread)}

    def paired(self, first: Tensor, second: Tensor, label: Tensor) -> tuple[float, ...]:
        """Of negative absolute errors."""
        return error_sums((self.prediction(first.double()), self.prediction(second.double())), label.double())

    def most_characters(self, cell: int, number: int) -> int:
        """As of `Task`."""
        return cell + 16 * number
