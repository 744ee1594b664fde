"""Counters and histograms over all runs; they keep their counts when a run is deleted."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Final

__all__ = ["BUCKETS", "Durations", "Tally"]

BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)  # upper bounds in seconds


class Durations:
    """A histogram of durations over `BUCKETS`."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)  # the last is unbounded
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds


class Tally:
    """Values by metric name and label values.

    Example:
        >>> tally = Tally()
        >>> tally.add("mmare_rounds_started_total", ("ixi",))
        >>> tally.counts["mmare_rounds_started_total"][("ixi",)]
        1.0
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[tuple[str, ...], float]] = defaultdict(lambda: defaultdict(float))
        self.durations: dict[str, dict[tuple[str, ...], Durations]] = defaultdict(
            lambda: defaultdict(Durations)
        )

    def add(self, metric: str, labels: tuple[str, ...], amount: float = 1.0) -> None:
        """Increase a counter."""
        self.counts[metric][labels] += amount

    def observe(self, metric: str, labels: tuple[str, ...], seconds: float) -> None:
        """Count one duration."""
        self.durations[metric][labels].observe(seconds)
