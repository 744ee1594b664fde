"""Training phases: which blocks are trained in which rounds, by which losses and optimisers.

Most models have one phase with one objective. HyperMM and AdaCoMed train one part first and freeze it; DRIM
trains its discriminators with another optimiser. Only the blocks of a phase travel in its rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Loss = Callable[[Tensor, Tensor, Tensor, Generator], Tensor]

__all__ = ["Objective", "Phase", "last_phase_start", "phase_at"]


@dataclass(frozen=True)
class Objective:
    """A loss and the blocks that its optimiser trains."""

    loss: Loss  # of scaled rows (B, W), presence (B, M), labels (B,) and a generator
    blocks: tuple[str, ...]  # names
    # Differences from ``[training]``: optimizer, learning_rate, weight_decay
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """Consecutive rounds in which some blocks are trained.

    The last phase lasts until the run ends. Only its rounds can be selected and count for patience.
    """

    name: str  # unique in the model
    objectives: tuple[Objective, ...]  # in this order in every batch
    rounds: int | None = None  # ``None``: the last phase

    @property
    def blocks(self) -> frozenset[str]:
        """Names of the trained blocks."""
        return frozenset(name for objective in self.objectives for name in objective.blocks)


def last_phase_start(phases: Sequence[Phase]) -> int:
    """The first round of the last phase, from 1."""
    return 1 + sum(phase.rounds or 0 for phase in phases[:-1])


def phase_at(phases: Sequence[Phase], round_number: int) -> Phase:
    """The phase of a round, from 1.

    Example:
        >>> warm, main = Phase("warm", (), rounds=2), Phase("main", ())
        >>> [phase_at((warm, main), number).name for number in (1, 2, 3, 99)]
        ['warm', 'warm', 'main', 'main']
    """
    ends = 0
    for phase in phases[:-1]:
        ends += phase.rounds or 0
        if round_number <= ends:
            return phase
    return phases[-1]
