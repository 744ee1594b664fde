"""Prometheus metrics as the exporters of both ends declare them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Kind", "Metric", "Sample", "metrics_table"]


class Kind(StrEnum):
    """Prometheus metric type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """A metric family."""

    name: str  # as exposed; a counter with ``_total``
    kind: Kind
    text: str  # one sentence
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One value of a metric."""

    metric: str
    labels: tuple[str, ...]
    value: float


def metrics_table(metrics: Iterable[Metric]) -> str:
    """The Markdown table of metrics in ``deploy/README.md``.

    Example:
        >>> print(metrics_table([Metric("mmare_runs", Kind.GAUGE, "Runs.", ("study",))]))
        | metric | type | labels | what it is |
        |---|---|---|---|
        | `mmare_runs` | gauge | study | Runs. |
    """
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '-'} | {metric.text} |"
        for metric in metrics
    ]
    return "\n".join(("| metric | type | labels | what it is |", "|---|---|---|---|", *rows))
