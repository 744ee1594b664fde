"""How far each modality moves a model's predictions: sums of absolute Shapley values, which can be merged.

Letters: B patients, M modalities, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

import torch

from mmare.metrics.state import MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["AttributionState", "merge_attributions"]

DECIMALS: Final = 4  # of a sum


@dataclass(frozen=True, eq=False, repr=False)
class AttributionState:
    """Of a set of patients; states of disjoint sets can be merged.

    Args:
        rows: ``(M,)`` int64, patients who have the modality.
        moved: ``(M,)`` float64, sum over them of the probability that the modality moves: half the sum over
            classes of its absolute Shapley values, of two classes the absolute value of one.
    """

    rows: Tensor
    moved: Tensor

    @classmethod
    def empty(cls, modalities: int) -> AttributionState:
        """The state of nobody."""
        return cls(torch.zeros(modalities, dtype=torch.int64), torch.zeros(modalities, dtype=torch.float64))

    @classmethod
    def of(cls, shares: Tensor, present: Tensor) -> AttributionState:
        """Of Shapley values ``(B, M, K)`` of probabilities, 0 where ``present`` ``(B, M)`` is not.

        Example:
            >>> shares = torch.tensor([[[-0.2, 0.2], [0.1, -0.1]], [[0.4, -0.4], [0.0, 0.0]]])
            >>> AttributionState.of(shares, torch.tensor([[True, True], [True, False]])).to_dict()
            {'rows': [2, 1], 'moved': [0.6, 0.1]}
        """
        moved = shares.detach().double().abs().sum(dim=(0, 2)) / 2
        return cls(present.sum(dim=0), (moved * 10**DECIMALS).round() / 10**DECIMALS)

    def merge(self, other: AttributionState) -> AttributionState:
        """The state of the patients of both."""
        return AttributionState(self.rows + other.rows, self.moved + other.moved)

    def compute(self, names: Iterable[str]) -> dict[str, dict[str, float | int | None]]:
        """By modality: rows, its share of all that was moved, and what it moves of a patient who has it."""
        total = self.moved.sum().item()
        return {
            name: {
                "n": rows,
                "share": moved / total if total > 0 else None,
                "mean": moved / rows if rows else None,
            }
            for name, rows, moved in zip(names, self.rows.tolist(), self.moved.tolist(), strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """The state for JSON."""
        return {"rows": self.rows.tolist(), "moved": self.moved.tolist()}

    @classmethod
    def from_dict(cls, content: object, modalities: int) -> AttributionState:
        """Validate and read what `to_dict` wrote on another machine.

        Raises:
            ValueError: If it differs from the format, or no rows have such sums.
        """
        if not (isinstance(content, Mapping) and content.keys() == {"rows", "moved"}):
            raise ValueError("an attribution state must be a table of rows and moved")
        rows, moved = content["rows"], content["moved"]
        if not all(isinstance(values, list) and len(values) == modalities for values in (rows, moved)):
            raise ValueError(f"an attribution state must be of {modalities} modalities")
        if any(type(n) is not int or not 0 <= n <= MAX_ROWS for n in rows):
            raise ValueError("rows must be whole numbers of at least 0")
        if any(type(value) not in {int, float} for value in moved):
            raise ValueError("moved must be numbers")
        found = cls(torch.tensor(rows, dtype=torch.int64), torch.tensor(moved, dtype=torch.float64))
        possible = (found.moved >= 0) & (found.moved <= found.rows + 10**-DECIMALS)  # false for NaN
        if not possible.all():
            raise ValueError("a modality moves more probability than its patients have")
        return found


def merge_attributions(states: Iterable[AttributionState], modalities: int) -> AttributionState:
    """Merge in the given order."""
    return reduce(AttributionState.merge, states, AttributionState.empty(modalities))
