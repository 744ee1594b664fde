"""Figures of a grid's report, after Figures 5.3 to 5.5 of the thesis: radar, metric by rate, metric by size.

Drawn as those of `simulation.figures`: inline SVG in the page's colours, one colour and dash per method.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from simulation.figures import STYLE, colour_holder, dress, shorten, site_dash, to_svg

__all__ = ["Dot", "Shape", "Trend", "radar_figure", "rate_figure", "size_figure"]

_RINGS = 4
_NAME_CHARS = 30
_SIDE_IN = 4.4
_WIDTH_IN = 5.0
_TICKS = (1, 2, 5)  # per decade of an axis of parameters


@dataclass(frozen=True)
class Shape:
    """The values of a method on the spokes of a radar; it is left out where one is ``None``."""

    values: Sequence[float | None]
    position: int


@dataclass(frozen=True)
class Trend:
    """A method over missing rates: (rate, mean, sd)."""

    points: Sequence[tuple[float, float, float | None]]
    position: int


@dataclass(frozen=True)
class Dot:
    """A method by its trainable parameters."""

    name: str
    parameters: int
    value: float
    sd: float | None
    position: int


@mpl.rc_context(STYLE)
def radar_figure(name: str, title: str, spokes: Sequence[str], shapes: Sequence[Shape]) -> str:
    """Draw methods as polygons over metrics; the centre is not zero and is written at the rings.

    Args:
        name: Unique in the page; ids in the drawing start with it.
        title: What a screen reader says of it.
        spokes: Names of the metrics, clockwise from the top; at least three.
        shapes: One per method.

    Returns:
        An ``<svg>`` element.
    """
    figure = Figure(figsize=(_WIDTH_IN, _SIDE_IN))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-1.5, 1.5)
    axes.set_ylim(-1.25, 1.25)
    whole = [
        (shape, [value for value in shape.values if value is not None])
        for shape in shapes
        if None not in shape.values
    ]
    told = [value for _, values in whole for value in values] or [0.0, 1.0]
    low = max(0.0, math.floor(10 * min(told) - 0.5) / 10)  # a little room below the lowest
    high = min(1.0, math.ceil(10 * max(told)) / 10)
    corners = [
        (math.sin(2 * math.pi * place / len(spokes)), math.cos(2 * math.pi * place / len(spokes)))
        for place in range(len(spokes))
    ]
    _web(axes, spokes, corners, (low, high))
    for shape, values in whole:
        reach = [(value - low) / (high - low) for value in values]
        around = [*range(len(spokes)), 0]
        colour = colour_holder(shape.position)
        x = [corners[place][0] * reach[place] for place in around]
        y = [corners[place][1] * reach[place] for place in around]
        (line,) = axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=3.5)
        if dash := site_dash(shape.position):
            line.set_dashes(dash)
    return to_svg(figure, name, title)


@mpl.rc_context(STYLE)
def rate_figure(name: str, title: str, trends: Sequence[Trend]) -> str:
    """Draw a metric against the missing rate; bars are one standard deviation over seeds.

    Args:
        name: Unique in the page.
        title: What a screen reader says of it.
        trends: One per method.

    Returns:
        An ``<svg>`` element.
    """
    figure = Figure(figsize=(_WIDTH_IN, 3.6))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.1, right=0.97, top=0.96, bottom=0.14)
    dress(axes, grid="y")
    rates = sorted({rate for trend in trends for rate, _, _ in trend.points})
    least = min((after - before for before, after in itertools.pairwise(rates)), default=0.2)
    for number, trend in enumerate(trends):
        shift = (number - (len(trends) - 1) / 2) * least * 0.02  # so that bars do not cover each other
        x = [rate + shift for rate, _, _ in trend.points]
        y = [value for _, value, _ in trend.points]
        colour = colour_holder(trend.position)
        (line,) = axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4.5)
        if dash := site_dash(trend.position):
            line.set_dashes(dash)
        for place, (_, value, sd) in zip(x, trend.points, strict=True):
            if sd is not None:
                axes.plot([place] * 2, [value - sd, value + sd], color=colour, linewidth=1.0, alpha=0.8)
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:.4g} %"))
    axes.set_xlabel("missing rate")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    return to_svg(figure, name, title)


@mpl.rc_context(STYLE)
def size_figure(name: str, title: str, dots: Sequence[Dot]) -> str:
    """Draw a metric against trainable parameters on a log axis; bars are one standard deviation over seeds.

    Args:
        name: Unique in the page.
        title: What a screen reader says of it.
        dots: One per method, named in the drawing.

    Returns:
        An ``<svg>`` element.
    """
    figure = Figure(figsize=(_WIDTH_IN, 3.6))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.1, right=0.97, top=0.96, bottom=0.14)
    dress(axes, grid="both")
    axes.set_xscale("log")
    for dot in dots:
        colour, size = colour_holder(dot.position), dot.parameters / 1e6
        axes.plot([size], [dot.value], marker="o", markersize=7.5, color=colour, linestyle="")
        if dot.sd is not None:
            axes.plot([size] * 2, [dot.value - dot.sd, dot.value + dot.sd], color=colour, linewidth=1.4)
    sizes = [dot.parameters / 1e6 for dot in dots]
    axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    decades = range(math.floor(math.log10(min(sizes) / 1.6)), math.ceil(math.log10(max(sizes) * 1.6)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([tick * 10.0**decade for decade in decades for tick in _TICKS]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g} M"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlabel("trainable parameters")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.margins(y=0.12)
    _label(axes, dots)
    return to_svg(figure, name, title)


def _web(
    axes: Axes,
    spokes: Sequence[str],
    corners: Sequence[tuple[float, float]],
    limits: tuple[float, float],
) -> None:
    """Rings with their values, spokes with their names."""
    low, high = limits
    closed = [*corners, corners[0]]
    for ring in range(1, _RINGS + 1):
        part = ring / _RINGS
        axes.plot(
            [part * x for x, _ in closed],
            [part * y for _, y in closed],
            color=colour_holder("grid"),
            linewidth=0.8,
        )
        value = f"{low + part * (high - low):.3g}"
        beside = (0.03, part - 0.02)
        axes.annotate(value, beside, fontsize=8.5, color=colour_holder("muted"), va="top", zorder=5)
    for name, (x, y) in zip(spokes, corners, strict=True):
        axes.plot([0, x], [0, y], color=colour_holder("grid"), linewidth=0.8)
        side = "center" if abs(x) < 0.1 else ("left" if x > 0 else "right")  # noqa: PLR2004 - nearly upright
        axes.annotate(name, (1.1 * x, 1.1 * y), ha=side, va="center", color=colour_holder("ink"))


def _label(axes: Axes, dots: Sequence[Dot]) -> None:
    """Names beside their dots, towards the middle, each below the one that it would cover."""
    low, high = axes.get_ylim()
    left, right = (math.log10(edge) for edge in axes.get_xlim())
    line = (high - low) * 0.062
    taken: list[tuple[float, float]] = []  # heights of names that are there already, with their place
    for dot in sorted(dots, key=lambda dot: -dot.value):
        place = (math.log10(dot.parameters / 1e6) - left) / (right - left)
        height = dot.value
        while any(abs(height - other) < line and abs(place - there) < 0.35 for other, there in taken):  # noqa: PLR2004 - of the width, about a name
            height -= line / 4
        taken.append((height, place))
        before = place > 0.6  # noqa: PLR2004 - a name to the right would leave the drawing
        axes.annotate(
            shorten(dot.name, _NAME_CHARS),
            (dot.parameters / 1e6, height),
            xytext=(-8 if before else 8, 0),
            textcoords="offset points",
            ha="right" if before else "left",
            va="center",
            fontsize=9.5,
            color=colour_holder("ink"),
        )
