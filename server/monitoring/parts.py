"""Parts of the state of a run: one site and one round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmare.host.metric_labels import OTHER
from mmare.study.outcome import headline_of
from server.store.events import SiteLeftOut, SiteUpdate

__all__ = ["RoundState", "SiteState", "count", "number", "one_of", "rows_ratios"]


@dataclass
class SiteState:
    """State of a site that takes part; small counts are withheld."""

    last_seen: float = 0.0  # last accepted answer, seconds since the epoch
    answer: SiteUpdate | None = None  # last one after the roll call
    samples: int | None = None  # training rows
    samples_change: float | None = None  # of these at the last roll call that changed them, by those before
    modality_samples: dict[str, int] = field(default_factory=dict)  # training rows with the modality
    norm: float | None = None  # of its last update
    train_loss: float | None = None  # likewise
    missed: int = 0  # consecutive rounds from which it was left out
    left_out: dict[str, float] = field(default_factory=dict)  # time of the last, per code
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # per split and metric

    def claim(self, samples: int | None) -> None:
        """What the site says at a roll call."""
        if self.samples and samples and samples != self.samples:
            self.samples_change = samples / self.samples
        self.samples = samples


@dataclass
class RoundState:
    """State of one round, with values as in the journal."""

    number: int = 0
    started: bool = False  # whether the journal has its start
    updates: dict[str, SiteUpdate] = field(default_factory=dict)  # of sites that trained, by id
    summed_loss: float | None = None  # training loss over all sites, under secure sums
    left_out: list[SiteLeftOut] = field(default_factory=list)
    phases: Mapping[str, Any] = field(default_factory=dict)  # seconds, up to the next model
    checkpoint_s: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)  # validation of the model after the round

    @property
    def loss(self) -> float | None:
        """Training loss, weighted by the sites' samples."""
        if self.summed_loss is not None:
            return self.summed_loss
        losses = [
            (each.samples, each.train_loss) for each in self.updates.values() if each.train_loss is not None
        ]
        samples = sum(n for n, _ in losses)
        return sum(n * loss for n, loss in losses) / samples if samples else None

    @property
    def score(self) -> float | None:
        """Pooled validation metric by which rounds are shown."""
        pooled = self.metrics.get("pooled", {})
        return number(pooled.get(headline_of(pooled)))

    @property
    def seconds(self) -> float:
        """Duration up to the next model."""
        return sum(number(seconds) or 0.0 for seconds in self.phases.values())


def rows_ratios(sites: Mapping[str, SiteState]) -> dict[str, float]:
    """Per site, its training rows over the median of the others', where both are told.

    Example:
        >>> rows_ratios({"ash": SiteState(samples=40), "birch": SiteState(samples=20), "cedar": SiteState()})
        {'ash': 2.0, 'birch': 0.5}
    """
    told = {name: site.samples for name, site in sites.items() if site.samples}
    others = {name: [rows for other, rows in told.items() if other != name] for name in told}
    return {name: rows / statistics.median(others[name]) for name, rows in told.items() if others[name]}


def number(value: object) -> float | None:
    """A finite number, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def count(value: object) -> int | None:
    """A non-negative integer, if it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def one_of(names: tuple[str, ...], value: object) -> str:
    """A value of a closed set, otherwise `OTHER`."""
    return str(value) if value in names else OTHER
