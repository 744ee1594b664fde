"""The answers of a round: one per site, or only their secure sum; the round loop asks both the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from server.rounds.round_metrics import SplitStates, joined_states

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mmare.study.study import Study
    from mmare.wire.messages import Split
    from server.rounds.global_model import Averaging
    from server.rounds.requests import Reply
    from server.rounds.secure_sums import Summed

__all__ = ["Collected", "Replies", "SumOf"]


class Collected(Protocol):
    """What the sites answered in a round."""

    @property
    def sites(self) -> Collection[str]:
        """Sites that answered."""

    @property
    def trained(self) -> Collection[str]:
        """Sites whose update goes into the next model."""

    @property
    def train_seconds(self) -> float:
        """Of all sites."""

    @property
    def bytes_up(self) -> int:
        """Received."""

    @property
    def bytes_down(self) -> int:
        """Sent."""

    @property
    def summed(self) -> Mapping[str, Any]:
        """What a journal line on the next model tells besides, under secure sums."""

    def states(self, split: Split) -> SplitStates:
        """Metric states of a split."""

    def step(
        self, averaging: Averaging, own_losses: Mapping[str, float], rate_factor: float
    ) -> dict[str, int]:
        """Make the next model; exposure per block."""

    def own_losses(self, averaging: Averaging) -> dict[str, float]:
        """As of `Averaging`."""


@dataclass(frozen=True)
class Replies:
    """One answer per site."""

    study: Study
    replies: Mapping[str, Reply]
    bytes_down: int

    @property
    def sites(self) -> Collection[str]:
        """As of `Collected`."""
        return self.replies

    @property
    def trained(self) -> dict[str, Reply]:
        """As of `Collected`."""
        return {site: reply for site, reply in self.replies.items() if reply.spooled is not None}

    @property
    def train_seconds(self) -> float:
        """As of `Collected`."""
        return sum(reply.update.seconds.get("train", 0.0) for reply in self.trained.values())

    @property
    def bytes_up(self) -> int:
        """As of `Collected`."""
        return sum(reply.size for reply in self.replies.values())

    @property
    def summed(self) -> Mapping[str, Any]:
        """As of `Collected`; the lines on single sites tell all."""
        return {}

    def states(self, split: Split) -> SplitStates:
        """As of `Collected`."""
        return joined_states(
            [reply.states[split] for reply in self.replies.values() if split in reply.states],
            len(self.study.classes),
        )

    def step(
        self, averaging: Averaging, own_losses: Mapping[str, float], rate_factor: float
    ) -> dict[str, int]:
        """As of `Collected`."""
        return averaging.step(self.trained, own_losses, rate_factor)

    def own_losses(self, averaging: Averaging) -> dict[str, float]:
        """As of `Collected`."""
        return averaging.own_losses(self.trained)


@dataclass(frozen=True)
class SumOf:
    """A secure sum; nothing is known of a single site but that it answered."""

    study: Study
    sums: Summed
    trained: tuple[str, ...]

    @property
    def sites(self) -> Collection[str]:
        """As of `Collected`."""
        return self.sums.sites

    @property
    def train_seconds(self) -> float:
        """As of `Collected`."""
        return self.sums.train_seconds

    @property
    def bytes_up(self) -> int:
        """As of `Collected`."""
        return self.sums.bytes_up

    @property
    def bytes_down(self) -> int:
        """As of `Collected`."""
        return self.sums.bytes_down

    @property
    def summed(self) -> Mapping[str, Any]:
        """As of `Collected`."""
        told = self.study.privacy.dp is None
        return {"samples": self.sums.samples, "train_loss": self.sums.train_loss if told else None}

    def states(self, split: Split) -> SplitStates:
        """As of `Collected`."""
        return self.sums.states(split, self.study)

    def step(
        self,
        averaging: Averaging,
        own_losses: Mapping[str, float],  # noqa: ARG002
        rate_factor: float,
    ) -> dict[str, int]:
        """As of `Collected`; no strategy of secure sums asks for losses of single sites."""
        return averaging.step_by_sums(self.sums, rate_factor)

    def own_losses(self, averaging: Averaging) -> dict[str, float]:  # noqa: ARG002
        """As of `Collected`."""
        return {}
