"""What is trained in which rounds: stretches of rounds, in each the losses with an optimiser of their own.

Most models have one phase with one objective. HyperMM and AdaCoMed train one part first and freeze it; DRIM
has discriminators beside the model, which another optimiser steps. Only the blocks of a phase travel in its
rounds.
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
    """A loss and the blocks that its optimiser steps: one share of a training step.

    Args:
        loss: Of scaled rows ``(B, W)``, presence ``(B, M)``, labels ``(B,)`` and a generator.
        blocks: Names of the blocks that it trains.
        training: Keys of ``[training]`` that differ for this optimiser: optimizer, learning_rate,
            weight_decay.
    """

    loss: Loss
    blocks: tuple[str, ...]
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A stretch of rounds in which some blocks are trained; only those travel.

    Args:
        name: Unique in the model.
        objectives: One after the other in every batch.
        rounds: How many; nothing for the last phase, which lasts until the run ends. Only its models can be
            selected, and only its rounds count for patience.
    """

    name: str
    objectives: tuple[Objective, ...]
    rounds: int | None = None

    @property
    def blocks(self) -> frozenset[str]:
        """Names of the blocks that are trained."""
        return frozenset(name for objective in self.objectives for name in objective.blocks)


def last_phase_start(phases: Sequence[Phase]) -> int:
    """The first round of the last phase, from 1."""
    return 1 + sum(phase.rounds or 0 for phase in phases[:-1])


def phase_at(phases: Sequence[Phase], round_number: int) -> Phase:
    """The phase that a round belongs to.

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
