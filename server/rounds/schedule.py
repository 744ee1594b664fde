"""Step sizes over rounds: the factor that the server sends with every request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from mmare.study.choices import Schedule

if TYPE_CHECKING:
    from mmare.study.specs import TrainingSpec

__all__ = ["Plateau", "rate_factor"]

COSINE_END: Final = 0.005  # of the step size, as DRIM ends: 1e-3 to 5e-6
PLATEAU_PATIENCE: Final = 3  # rounds, as HyperMM
PLATEAU_FACTOR: Final = 0.3
PLATEAU_THRESHOLD: Final = 1e-4  # relative: a loss must be lower by more to count


@dataclass(frozen=True)
class Plateau:
    """Lower the step size where the validation loss stopped falling (torch's ReduceLROnPlateau).

    Args:
        best: Lowest loss so far; nothing before the first.
        bad: Rounds since.
        factor: Of the step size.

    Example:
        >>> state = Plateau()
        >>> for loss in (1.0, 1.0, 1.0, 1.0, 1.0):
        ...     state = state.after(loss)
        >>> state.factor
        0.3
    """

    best: float | None = None
    bad: int = 0
    factor: float = 1.0

    def after(self, loss: float | None) -> Plateau:
        """The state once a round's pooled validation loss is known."""
        if loss is not None and (self.best is None or loss < self.best * (1 - PLATEAU_THRESHOLD)):
            return Plateau(loss, 0, self.factor)
        if self.bad + 1 > PLATEAU_PATIENCE:
            return Plateau(self.best, 0, self.factor * PLATEAU_FACTOR)
        return Plateau(self.best, self.bad + 1, self.factor)

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Plateau:
        """What `to_dict` gave; the beginning where there is nothing."""
        return cls(**content)


def rate_factor(training: TrainingSpec, round_number: int, plateau: Plateau) -> float:
    """Of the study's step sizes in a round, counted from 1."""
    if training.schedule is Schedule.COSINE:
        done = (round_number - 1) / training.rounds
        return COSINE_END + (1 - COSINE_END) * 0.5 * (1 + math.cos(math.pi * done))
    return plateau.factor if training.schedule is Schedule.PLATEAU else 1.0
