"""Kaplan-Meier curves of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mmare.study.study import Study
from simulation.report.figures import STYLE, Drawing, colour_holder, dress, to_svg

__all__ = ["risk_group_drawings"]


@mpl.rc_context(STYLE)
def risk_group_drawings(found: Mapping[str, Any] | None, study: Study) -> list[Drawing]:
    """Curves of patients by predicted risk, as `mmare.metrics.survival_curves.risk_groups` gives them."""
    if not found or study.survival is None:
        return []
    figure = Figure(figsize=(5.0, 3.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.09, right=0.97, top=0.95, bottom=0.15)
    dress(axes, grid="y")
    groups = found["groups"]
    for place, group in enumerate(groups):
        times = np.linspace(0, study.survival.follow_up, len(group["curve"]))
        last = place == len(groups) - 1
        name = "highest" if last else "middle" if place else "lowest"
        axes.step(
            times,
            group["curve"],
            where="post",
            color=colour_holder("ink" if last else "muted"),
            linewidth=2.2 if last else 1.4,
            linestyle="-" if place else "--",
            label=f"{name} risk, {group['events']} events of {group['n']}",
        )
    axes.legend(loc="upper right", frameon=False, fontsize=9.5, labelcolor=colour_holder("ink"))
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(study.survival.unit)
    title = "Share without the event, by predicted risk"
    return [Drawing(title, title, to_svg(figure, "risk-groups", title))]
