"""Figures on how far a run's probabilities can be taken at their word, and for which decisions they help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulation.report.figures import STYLE, Drawing, colour_holder, dress, to_svg

__all__ = ["calibration_drawings", "decision_figure", "reliability_figure"]

_SIZE_IN = (4.2, 3.6)
_WAYS = {"before": ("muted", 1.4, "o"), "after": ("ink", 2.0, "D")}
_LOWEST = -0.05  # net benefit: below, nobody would use the model


def calibration_drawings(report: Mapping[str, Any]) -> list[Drawing]:
    """Reliability and decision curve of what `server.release.decide.decide` reports, as far as it goes."""
    drawn = []
    reliability = report.get("calibration", {}).get("reliability")
    if reliability:
        label = f"Observed against predicted probability on the {reliability['rows']} rows, by ten bins"
        drawn.append(Drawing("Reliability", label, reliability_figure(reliability, label)))
    if curve := report.get("decision_curve"):
        label = "Net benefit by threshold probability on the test rows: model, treating all, treating none"
        drawn.append(Drawing("Decision curve", label, decision_figure(curve, label)))
    return drawn


@mpl.rc_context(STYLE)
def reliability_figure(reliability: Mapping[str, Any], title: str) -> str:
    """Draw the bins ``before`` and, if there are any, ``after`` calibration as an ``<svg>`` element."""
    figure, axes = _axes("predicted", "observed")
    axes.plot([0, 1], [0, 1], color=colour_holder("muted"), linewidth=1.0, dashes=(4, 4))
    for way, (colour, width, marker) in _WAYS.items():
        bins = reliability.get(way, {}).get("bins", ())
        axes.plot(
            [each["mean"] for each in bins],
            [each["observed"] for each in bins],
            color=colour_holder(colour),
            linewidth=width,
            marker=marker,
            markersize=5,
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    return to_svg(figure, "reliability", title)


@mpl.rc_context(STYLE)
def decision_figure(curve: Sequence[Mapping[str, float]], title: str) -> str:
    """Draw net benefit by threshold probability as an ``<svg>`` element; below zero it is cut off."""
    figure, axes = _axes("threshold probability", "net benefit")
    threshold = [each["threshold"] for each in curve]
    axes.axhline(0, color=colour_holder("muted"), linewidth=1.0)
    axes.plot(
        threshold, [each["all"] for each in curve], color=colour_holder("muted"), linewidth=1.4, dashes=(4, 3)
    )
    axes.plot(threshold, [each["model"] for each in curve], color=colour_holder("ink"), linewidth=2.0)
    axes.set_xlim(0, 1)
    highest = max(max(each["all"], each["model"]) for each in curve)
    axes.set_ylim(_LOWEST, max(highest, 0.0) + 0.05)
    return to_svg(figure, "decision", title)


def _axes(below: str, beside: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_IN)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.16, right=0.97, top=0.97, bottom=0.14)
    dress(axes, grid="both")
    axes.set_xlabel(below)
    axes.set_ylabel(beside, color=colour_holder("muted"))
    return figure, axes
