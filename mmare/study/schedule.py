"""Learning rates over rounds: the factor that the server sends with every request, and a site checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from mmare.study.choices import Schedule

if TYPE_CHECKING:
    from mmare.study.specs import TrainingSpec

__all__ = ["Plateau", "is_rate_factor", "rate_factor"]

COSINE_END: Final = 0.005  # final factor, as in DRIM: 1e-3 to 5e-6
PLATEAU_PATIENCE: Final = 3  # rounds, as in HyperMM
PLATEAU_FACTOR: Final = 0.3
PLATEAU_THRESHOLD: Final = 1e-4  # relative improvement that counts
ROUNDING: Final = 1e-9  # relative, between the two ends


@dataclass(frozen=True)
class Plateau:
    """Lower the learning rate when the validation loss stops falling (torch's ReduceLROnPlateau).

    Example:
        >>> state = Plateau()
        >>> for loss in (1.0, 1.0, 1.0, 1.0, 1.0):
        ...     state = state.after(loss)
        >>> state.factor
        0.3
    """

    best: float | None = None  # lowest loss so far
    bad: int = 0  # rounds since
    factor: float = 1.0

    def after(self, loss: float | None) -> Plateau:
        """The state after a round with this pooled validation loss."""
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
        """Reverse `to_dict`; an empty mapping gives the initial state."""
        return cls(**content)


def rate_factor(training: TrainingSpec, round_number: int, plateau: Plateau) -> float:
    """Factor of the study's learning rates in a round, counted from 1."""
    if training.schedule is Schedule.COSINE:
        done = (round_number - 1) / training.rounds
        return COSINE_END + (1 - COSINE_END) * 0.5 * (1 + math.cos(math.pi * done))
    return plateau.factor if training.schedule is Schedule.PLATEAU else 1.0


def is_rate_factor(training: TrainingSpec, round_number: int, factor: float) -> bool:
    """Whether `rate_factor` can give this in a round, whatever the losses before it were.

    Example:
        >>> from mmare.study.specs import TrainingSpec
        >>> plateau = TrainingSpec(schedule=Schedule.PLATEAU)
        >>> is_rate_factor(plateau, 5, 0.3), is_rate_factor(plateau, 6, 0.3), is_rate_factor(plateau, 6, 0.2)
        (False, True, False)
    """
    drops = 0
    if training.schedule is Schedule.PLATEAU:
        validated = max(round_number - 2, 0)  # the model that a round starts from is not yet
        drops = validated // (PLATEAU_PATIENCE + 1)
    return any(
        math.isclose(
            factor,
            rate_factor(training, round_number, Plateau(factor=PLATEAU_FACTOR**drop)),
            rel_tol=ROUNDING,
        )
        for drop in range(drops + 1)
    )
