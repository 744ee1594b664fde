"""What a metric is, for the exporters of both ends: a name, a type, a sentence and labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Kind", "Metric", "Sample", "metrics_table"]


class Kind(StrEnum):
    """What Prometheus calls the type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: As it is exposed; a counter with ``_total``.
        kind: Its type.
        text: One sentence.
        labels: In order.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One value: of which metric, of which labels."""

    metric: str
    labels: tuple[str, ...]
    value: float


def metrics_table(metrics: Iterable[Metric]) -> str:
    """Metrics as a table in Markdown, as it stands in ``deploy/README.md``.

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
