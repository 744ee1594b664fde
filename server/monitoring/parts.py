"""What the state of a run says of one site and of one round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmare.host.metric_labels import OTHER
from server.store.events import SiteLeftOut, SiteUpdate

__all__ = ["RoundState", "SiteState", "count", "number", "one_of"]


@dataclass
class SiteState:
    """What is known of a site that takes part.

    Args:
        last_seen: Seconds since the epoch of its last accepted answer.
        answer: The last one after the roll call.
        samples: Train rows; nothing where they are too few to be shown.
        modality_samples: Train rows that have a modality, where neither they nor the others are too few.
        norm: Of its last update.
        train_loss: Of its last update.
        missed: Rounds in a row that it was left out of.
        left_out: Per code, when it was last left out.
        scores: Per split and metric, over enough rows.
    """

    last_seen: float = 0.0
    answer: SiteUpdate | None = None
    samples: int | None = None
    modality_samples: dict[str, int] = field(default_factory=dict)
    norm: float | None = None
    train_loss: float | None = None
    missed: int = 0
    left_out: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class RoundState:
    """What is known of one round; sites by id, numbers as the journal has them.

    Args:
        number: Of the round.
        started: Whether its start was seen.
        updates: Of the sites that trained.
        left_out: Of the others.
        phases: Seconds of each phase up to the next model.
        checkpoint_s: Seconds of writing it to disk.
        metrics: Validation of the model after the round.
    """

    number: int = 0
    started: bool = False
    updates: dict[str, SiteUpdate] = field(default_factory=dict)
    left_out: list[SiteLeftOut] = field(default_factory=list)
    phases: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_s: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Train loss over the sites' samples."""
        told = [(each.samples, each.train_loss or 0.0) for each in self.updates.values()]
        samples = sum(n for n, _ in told)
        return sum(n * loss for n, loss in told) / samples if samples else None

    @property
    def score(self) -> float | None:
        """Pooled validation balanced accuracy."""
        return number(self.metrics.get("pooled", {}).get("balanced_accuracy"))

    @property
    def seconds(self) -> float:
        """Up to the next model."""
        return sum(number(seconds) or 0.0 for seconds in self.phases.values())


def number(value: object) -> float | None:
    """A finite number, or nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def count(value: object) -> int | None:
    """A whole number that is not negative, or nothing."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def one_of(names: tuple[str, ...], value: object) -> str:
    """A value of a closed set."""
    return str(value) if value in names else OTHER
