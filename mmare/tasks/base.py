"""What every task offers: loss, strata, metric states that merge, metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

__all__ = ["State", "Task"]


class State(Protocol):
    """Sums over rows whose first axis is the stratum; states of disjoint rows can be merged."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows per stratum."""

    @property
    def n(self) -> int:
        """All rows."""

    @property
    def withheld(self) -> tuple[int, ...]:
        """Strata that a site left out because they have too few rows."""

    def merge(self, other: Self) -> Self:
        """The state of the rows of both."""

    def withhold(self, min_count: int) -> Self:
        """Without strata of fewer than ``min_count`` rows."""

    def without(self, strata: Iterable[int], /) -> Self:
        """Without some strata."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""


S = TypeVar("S", bound=State)


class Task(nn.Module, ABC, Generic[S]):
    """What a model's outputs ``(B, K)`` mean. Its buffers and parameters, if any, travel with the model.

    Args:
        outputs: K.
        strata: Groups of rows that a state counts separately.
    """

    PARTS: ClassVar[tuple[str, ...]]  # tensors of a state
    COUNTS: ClassVar[tuple[str, ...]]  # those that count rows
    CENTRES: ClassVar[bool] = False  # whether a linear term reads inputs less their means

    def __init__(self, outputs: int, strata: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.n_strata = strata

    @property
    def descent(self) -> float | None:
        """Step of gradient descent of its own parameters, if there are any."""
        return None

    @property
    def residual(self) -> float | None:
        """Mean square of the loss's gradient in an output where nothing is learned yet; None if unknown."""
        return None

    @abstractmethod
    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean loss of outputs ``(B, K)`` and labels ``(B,)``."""

    @abstractmethod
    def agreement(self, whole: Tensor, subset: Tensor, temperature: float) -> Tensor:
        """Loss of self-distillation between outputs ``(B, K)``; ``whole`` is the teacher without gradient."""

    @abstractmethod
    def prediction(self, logits: Tensor) -> Tensor:
        """What outputs ``(B, K)`` say of each patient, ``(B, …)``."""

    @abstractmethod
    def stratum(self, label: Tensor) -> Tensor:
        """The stratum ``(B,)`` int64 of each label."""

    @abstractmethod
    def state(self, logits: Tensor, label: Tensor) -> S:
        """The state of rows; a ValueError if an output is not finite."""

    @abstractmethod
    def empty(self) -> S:
        """The state of no rows."""

    @abstractmethod
    def read(self, content: object) -> S:
        """What `State.to_dict` wrote elsewhere; a ValueError if it is damaged."""

    @abstractmethod
    def restored(self, parts: Mapping[str, Tensor], withheld: tuple[int, ...]) -> S:
        """The state of float64 sums by the names in ``PARTS``; a ValueError if no rows can have them."""

    @abstractmethod
    def coarsened(self, state: S, limit: int) -> S:
        """The state with bins joined until each holds ``limit`` rows."""

    @abstractmethod
    def told(self, state: S) -> Tensor:
        """Rows of every bin that a state tells, each with those that cannot be told from it; ``(C,)``."""

    @abstractmethod
    def compute(self, state: S, of_all: S | None = None) -> dict[str, Any]:
        """Metrics, ``None`` where undefined; ``of_all`` is the state of all sites, by default this one."""

    @abstractmethod
    def detailed(self, state: S, seed: int, of_all: S | None = None) -> dict[str, Any]:
        """Metrics with the error of binning and, under ``ci95``, bootstrap intervals drawn from ``seed``."""

    def described(self, state: S) -> dict[str, Any]:  # noqa: ARG002 - nothing by default
        """What is told of the rows of all sites beside metrics."""
        return {}

    def paired(self, first: Tensor, second: Tensor, label: Tensor) -> tuple[float, ...]:  # noqa: ARG002 - of classes
        """Sums of `mmare.metrics.paired` of two models' outputs ``(N, K)``; none of classes."""
        return ()

    @abstractmethod
    def most_characters(self, cell: int, number: int) -> int:
        """Of a state in JSON, where a bin with its count and a number take so many."""

    def merge(self, states: Sequence[S]) -> S:
        """The state of all rows, merged in the given order: float addition is not associative."""
        return reduce(lambda one, other: one.merge(other), states, self.empty())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors of a state."""
        empty = self.empty()
        return {part: tuple(getattr(empty, part).shape) for part in self.PARTS}
