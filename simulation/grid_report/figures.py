"""Drawings of a grid's report: from arms and their colours to figures, where there is something to draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from simulation.grid_report.method_tables import Keys, line_name
from simulation.grid_report.records import Arm, GridRecord, Method
from simulation.report.figures import (
    STYLE,
    Drawing,
    Interval,
    colour_holder,
    dress,
    interval_figure,
    shorten,
    site_dash,
    to_svg,
)
from simulation.report.results import HEADLINE

__all__ = ["Dot", "Trend", "curves", "drawings", "forests", "radar_figure", "rate_figure", "size_figure"]

_CROWD = 10  # methods beyond which a radar is a tangle
_SPOKES = 3  # fewer make no area
_RINGS = 4
_NAME_CHARS = 30
_SIDE_IN = 4.4
_WIDTH_IN = 5.0
_TICKS = (1, 2, 5)  # per decade of an axis of parameters
_NEAR = 0.35  # of the width of a drawing: about a name


@dataclass(frozen=True)
class Trend:
    """A method over missing rates: (rate, mean, sd)."""

    points: list[tuple[float, float, float | None]]
    position: int


@dataclass(frozen=True)
class Dot:
    """A method by its trainable parameters."""

    name: str
    parameters: int
    value: float
    sd: float | None
    position: int


def forests(
    grid: GridRecord, identity: str, groups: Mapping[str, Sequence[Arm]], keys: Keys
) -> Iterator[Drawing]:
    """Headline metrics of each group's methods as marks with bars of one standard deviation."""
    for number, (title, arms) in enumerate(groups.items()):
        if len(arms) < 2 or not any(grid.done[arm] for arm in arms):  # noqa: PLR2004 - nothing to compare
            continue
        for metric in ("balanced_accuracy", "auc"):
            marks = []
            for arm in arms:
                found = grid.values.estimate(arm, metric)
                name, colour = grid.name(arm.method), keys[arm].variable
                marks.append(Interval(name, found.value, found.low, found.high, colour))
            name = f"{HEADLINE[metric]}: {title}"
            label = f"{name}; the bar is one standard deviation over seeds"
            yield Drawing(name, label, interval_figure(f"{identity}-forest-{number}-{metric}", label, marks))


def drawings(
    grid: GridRecord,
    identity: str,
    columns: Mapping[str, str],
    groups: Mapping[str, Sequence[Arm]],
    keys: Keys,
    *,
    radar: bool = True,
) -> Iterator[Drawing]:
    """Figures 5.3 to 5.5: radar per group, AUC against the rate, metrics against the size."""
    sized = "parameters" in columns
    if radar and not sized:
        yield from _radars(grid, identity, columns, groups, keys)
    arms = [arm for members in groups.values() for arm in members if grid.done[arm]]
    for number, (name, trends) in enumerate(curves(grid, arms, keys).items()):
        if max(len(trend.points) for trend in trends) > 1:  # one rate is no curve
            label = f"{name}, mean and one standard deviation over seeds"
            yield Drawing(name, label, rate_figure(f"{identity}-rates-{number}", label, trends))
    if sized or not radar:
        for metric, dots in _sizes(grid, arms, keys).items():
            name = f"{HEADLINE[metric]} against trainable parameters"
            label = f"{name} (log axis), mean and one standard deviation over seeds"
            yield Drawing(name, label, size_figure(f"{identity}-size-{metric}", label, dots))


def curves(grid: GridRecord, arms: Sequence[Arm], keys: Keys) -> dict[str, list[Trend]]:
    """AUC against the missing rate, by what a drawing is called: one per mechanism.

    Where a method has one colour on all data, as in tables of no paper, one per data set, too.
    """
    apart = len({keys[arm].position for arm in arms}) < len({(arm.method, arm.regime.data) for arm in arms})
    found: dict[str, dict[tuple[Method, str], Trend]] = {}
    for arm in arms:
        regime, auc = arm.regime, grid.values.estimate(arm, "auc")
        if regime.mechanism and regime.rate is not None and auc.value is not None:
            name = " ".join((f"AUC against the missing rate ({regime.mechanism.upper()})", *regime.arguments))
            lines = found.setdefault(f"{name}: {regime.data}" if apart else name, {})
            trend = lines.setdefault((arm.method, regime.data), Trend([], keys[arm].position))
            trend.points.append((regime.rate, auc.value, auc.sd))
    return {name: list(lines.values()) for name, lines in found.items()}


def _radars(
    grid: GridRecord,
    identity: str,
    columns: Mapping[str, str],
    groups: Mapping[str, Sequence[Arm]],
    keys: Keys,
) -> Iterator[Drawing]:
    for number, (title, arms) in enumerate(groups.items()):
        shapes = [
            (keys[arm].position, [grid.values.estimate(arm, metric).value for metric in columns])
            for arm in arms
            if grid.done[arm]
        ]
        if 0 < len(shapes) <= _CROWD and len(columns) >= _SPOKES:
            name = title or "All metrics"
            label = f"{name}: {', '.join(columns.values())} of each method; the centre is not zero"
            figure = radar_figure(f"{identity}-radar-{number}", label, list(columns.values()), shapes)
            yield Drawing(name, label, figure)


def _sizes(grid: GridRecord, arms: Sequence[Arm], keys: Keys) -> dict[str, list[Dot]]:
    """Metrics against trainable parameters, where one set of rows holds models of different sizes."""
    sizes = {arm: grid.values.estimate(arm, "parameters").value for arm in arms}
    alike = len({arm.regime.loss for arm in arms}) == 1 and len({arm.method.model for arm in arms}) > 1
    found: dict[str, list[Dot]] = {}
    for metric, arm in itertools.product(HEADLINE, arms if alike and all(sizes.values()) else ()):
        score, size = grid.values.estimate(arm, metric), sizes[arm]
        if score.value is not None and size:
            name = line_name(grid, arm, several=sum(other.method == arm.method for other in arms) > 1)
            dot = Dot(name, round(size * 1e6), score.value, score.sd, keys[arm].position)
            found.setdefault(metric, []).append(dot)
    return found


@mpl.rc_context(STYLE)
def radar_figure(
    name: str, title: str, spokes: Sequence[str], shapes: Sequence[tuple[int, Sequence[float | None]]]
) -> str:
    """Draw methods as polygons over metrics; the centre is not zero and is written at the rings.

    Args:
        name: Unique in the page; ids in the drawing start with it.
        title: What a screen reader says of it.
        spokes: Names of the metrics, clockwise from the top; at least three.
        shapes: Position of each method's colour, and its values; it is left out where one is ``None``.
    """
    figure = Figure(figsize=(_WIDTH_IN, _SIDE_IN))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-1.5, 1.5)
    axes.set_ylim(-1.25, 1.25)
    whole = [
        (position, known)
        for position, values in shapes
        if len(known := [value for value in values if value is not None]) == len(spokes)
    ]
    values = [value for _, known in whole for value in known] or [0.0, 1.0]
    low = max(0.0, math.floor(10 * min(values) - 0.5) / 10)  # a little room below the lowest
    high = min(1.0, math.ceil(10 * max(values)) / 10)
    angles = [2 * math.pi * place / len(spokes) for place in range(len(spokes))]
    corners = [(math.sin(angle), math.cos(angle)) for angle in angles]
    _web(axes, spokes, corners, (low, high))
    for position, known in whole:
        reach = [(value - low) / (high - low) for value in known]
        around = [(x * part, y * part) for (x, y), part in zip(corners, reach, strict=True)]
        x, y = zip(*around, around[0], strict=True)
        _curve(axes, x, y, position, 3.5)
    return to_svg(figure, name, title)


@mpl.rc_context(STYLE)
def rate_figure(name: str, title: str, trends: Sequence[Trend]) -> str:
    """Draw a metric against the missing rate; bars are one standard deviation over seeds."""
    figure, axes = _axes("y", "missing rate")
    rates = sorted({rate for trend in trends for rate, _, _ in trend.points})
    least = min((after - before for before, after in itertools.pairwise(rates)), default=0.2)
    for number, trend in enumerate(trends):
        shift = (number - (len(trends) - 1) / 2) * least * 0.02  # so that bars do not cover each other
        points = [(rate + shift, value, sd) for rate, value, sd in sorted(trend.points)]
        _curve(axes, [x for x, _, _ in points], [value for _, value, _ in points], trend.position, 4.5)
        for x, value, sd in points:
            _bar(axes, x, value, sd, color=colour_holder(trend.position), linewidth=1.0, alpha=0.8)
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:.4g} %"))
    return to_svg(figure, name, title)


@mpl.rc_context(STYLE)
def size_figure(name: str, title: str, dots: Sequence[Dot]) -> str:
    """Draw a metric against trainable parameters, on a log axis; bars as in `rate_figure`."""
    figure, axes = _axes("both", "trainable parameters")
    axes.set_xscale("log")
    for dot in dots:
        colour, size = colour_holder(dot.position), dot.parameters / 1e6
        axes.plot([size], [dot.value], marker="o", markersize=7.5, color=colour, linestyle="")
        _bar(axes, size, dot.value, dot.sd, color=colour, linewidth=1.4)
    low, high = (edge([dot.parameters / 1e6 for dot in dots]) for edge in (min, max))
    axes.set_xlim(low / 1.6, high * 1.6)
    decades = range(math.floor(math.log10(low / 1.6)), math.ceil(math.log10(high * 1.6)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([tick * 10.0**decade for decade in decades for tick in _TICKS]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g} M"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.margins(y=0.12)
    _label(axes, dots)
    return to_svg(figure, name, title)


def _axes(grid: str, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, 3.6))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.1, right=0.97, top=0.96, bottom=0.14)
    dress(axes, grid=grid)
    axes.set_xlabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    return figure, axes


def _curve(axes: Axes, x: Sequence[float], y: Sequence[float], position: int, marker_size: float) -> None:
    colour = colour_holder(position)
    (line,) = axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=marker_size)
    if dash := site_dash(position):
        line.set_dashes(dash)


def _bar(axes: Axes, x: float, value: float, sd: float | None, **style: Any) -> None:  # noqa: ANN401 - of matplotlib
    if sd is not None:
        axes.plot([x] * 2, [value - sd, value + sd], **style)


def _web(
    axes: Axes, spokes: Sequence[str], corners: Sequence[tuple[float, float]], limits: tuple[float, float]
) -> None:
    """Rings with their values, spokes with their names."""
    low, high = limits
    grey, closed = colour_holder("grid"), [*corners, corners[0]]
    for part in (ring / _RINGS for ring in range(1, _RINGS + 1)):
        axes.plot([part * x for x, _ in closed], [part * y for _, y in closed], color=grey, linewidth=0.8)
        value, beside = f"{low + part * (high - low):.3g}", (0.03, part - 0.02)
        axes.annotate(value, beside, fontsize=8.5, color=colour_holder("muted"), va="top", zorder=5)
    for name, (x, y) in zip(spokes, corners, strict=True):
        axes.plot([0, x], [0, y], color=grey, linewidth=0.8)
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
        while any(abs(height - other) < line and abs(place - there) < _NEAR for other, there in taken):
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
