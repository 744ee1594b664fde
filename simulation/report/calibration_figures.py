"""Figures on how far a run's probabilities can be taken at their word, and for which decisions they help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulation.report.figures import STYLE, Drawing, colour_holder, dress, to_svg

__all__ = [
    "Curve",
    "calibration_drawings",
    "decision_curves",
    "decision_figure",
    "reliability_curves",
    "reliability_figure",
]

_SIZE_IN = (4.2, 3.6)
_WAYS = {"before": ("muted", 1.4, "o"), "after": ("ink", 2.0, "D")}
_LOWEST = -0.05  # net benefit: below, nobody would use the model


@dataclass(frozen=True)
class Curve:
    """Points of a line, at least one, and how it is drawn."""

    points: Sequence[tuple[float, float]]
    colour: str  # CSS variable without its dashes
    width: float = 1.8
    marker: str = "o"
    dashes: Sequence[float] = ()


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


def reliability_figure(reliability: Mapping[str, Any], title: str) -> str:
    """Draw the bins ``before`` and, if there are any, ``after`` calibration as an ``<svg>`` element."""
    curves = [
        Curve([(each["mean"], each["observed"]) for each in reliability[way]["bins"]], *style)
        for way, style in _WAYS.items()
        if way in reliability
    ]
    return reliability_curves("reliability", title, curves)


def decision_figure(curve: Sequence[Mapping[str, float]], title: str) -> str:
    """Draw net benefit by threshold probability as an ``<svg>`` element; below zero it is cut off."""
    model, treat_all = ([(each["threshold"], each[key]) for each in curve] for key in ("model", "all"))
    return decision_curves("decision", title, [Curve(model, "ink", 2.0)], treat_all)


@mpl.rc_context(STYLE)
def reliability_curves(name: str, title: str, curves: Sequence[Curve]) -> str:
    """Draw observed against predicted probability; ids in the drawing start with ``name``."""
    figure, axes = _axes("predicted", "observed")
    axes.plot([0, 1], [0, 1], color=colour_holder("muted"), linewidth=1.0, dashes=(4, 4))
    for curve in curves:
        _draw(axes, curve)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    return to_svg(figure, name, title)


@mpl.rc_context(STYLE)
def decision_curves(
    name: str, title: str, curves: Sequence[Curve], treat_all: Sequence[tuple[float, float]]
) -> str:
    """Draw net benefit by threshold probability; ids in the drawing start with ``name``."""
    figure, axes = _axes("threshold probability", "net benefit")
    axes.axhline(0, color=colour_holder("muted"), linewidth=1.0)
    _draw(axes, Curve(treat_all, "muted", 1.4, "", (4, 3)))
    for curve in curves:
        _draw(axes, replace(curve, marker=""))
    axes.set_xlim(0, 1)
    highest = max(
        benefit for points in (treat_all, *(each.points for each in curves)) for _, benefit in points
    )
    axes.set_ylim(_LOWEST, max(highest, 0.0) + 0.05)
    return to_svg(figure, name, title)


def _draw(axes: Axes, curve: Curve) -> None:
    x, y = zip(*curve.points, strict=True)
    colour = colour_holder(curve.colour)
    (line,) = axes.plot(x, y, color=colour, linewidth=curve.width, marker=curve.marker, markersize=5)
    if curve.dashes:
        line.set_dashes(curve.dashes)


def _axes(below: str, beside: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_IN)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.16, right=0.97, top=0.97, bottom=0.14)
    dress(axes, grid="both")
    axes.set_xlabel(below)
    axes.set_ylabel(beside, color=colour_holder("muted"))
    return figure, axes
