"""Counters and histograms over all runs; they keep their counts when a run is deleted."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Final

from mmare.errors import Ending, Reason, SiteCode

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

    def begin_study(self, study: str) -> None:
        """Export a study's counters from 0, since Prometheus sees no increase in a first sample."""
        for name in ("runs_finished", "rounds_started", "rounds_finished", "checkpoints_damaged"):
            self.add(f"mmare_{name}_total", (study,), 0.0)
        for ending in Ending:
            self.add("mmare_rounds_failed_total", (study, ending.value), 0.0)
            if ending is not Ending.STOPPED:  # a killed run logs no failure
                self.add("mmare_runs_failed_total", (study, ending.value), 0.0)

    def begin_site(self, study: str, site: str) -> None:
        """Likewise for a site."""
        for name in ("received_bytes", "sent_bytes", "updates"):
            self.add(f"mmare_site_{name}_total", (study, site), 0.0)
        for reason in (*Reason, *SiteCode):
            self.add("mmare_site_left_out_total", (study, site, reason.value), 0.0)

    def add(self, metric: str, labels: tuple[str, ...], amount: float = 1.0) -> None:
        """Increase a counter."""
        self.counts[metric][labels] += amount

    def observe(self, metric: str, labels: tuple[str, ...], seconds: float) -> None:
        """Count one duration."""
        self.durations[metric][labels].observe(seconds)
