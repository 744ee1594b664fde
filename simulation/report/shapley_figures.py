"""Figures on what a run's predictions rest on: how far each modality moves them, pooled and per site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulation.report.figures import Drawing, Interval, interval_figure, site_variable

__all__ = ["shapley_drawings"]

_SCALES = {
    "share": (
        "Share of the sum over modalities",
        "Share of each modality in what predictions rest on, pooled and per site",
    ),
    "mean": (
        "Mean absolute Shapley value",
        "Mean absolute Shapley value of each modality, pooled and per site",
    ),
}


def shapley_drawings(shapley: Mapping[str, Any], sites: Sequence[str]) -> list[Drawing]:
    """A row for each modality, a mark for all sites and one for each site.

    ``shapley`` is that of a result's test metrics.
    """
    told = shapley.get("sites") or {}
    groups = [(shapley.get("pooled") or {}, "ink", "D")]
    groups += [
        (told[site], site_variable(position), "o") for position, site in enumerate(sites) if site in told
    ]
    drawn = []
    for scale, (title, label) in _SCALES.items():
        marks = [
            Interval(name, values[scale], None, None, colour, marker)
            for found, colour, marker in groups
            for name, values in found.items()
            if values[scale] is not None
        ]
        if marks:
            drawn.append(Drawing(title, label, interval_figure(f"shapley-{scale}", label, marks, 0.0)))
    return drawn
