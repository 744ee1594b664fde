"""Drawings of a grid's report: from arms and their colours to figures, where there is something to draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from simulation.grid_report.method_tables import line_name, told
from simulation.grid_report.page import Key
from simulation.grid_report.records import Arm, GridRecord, Method, Regime
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

__all__ = [
    "Dot",
    "Keys",
    "Shape",
    "Trend",
    "drawings",
    "forests",
    "radar_figure",
    "rate_figure",
    "size_figure",
    "used",
]

Keys = Mapping[tuple[Method, str], Key]
Position = Callable[[Arm], int]

_CROWD = 10  # methods beyond which a radar is a tangle
_SPOKES = 3  # fewer make no area


def used(keys: Keys, members: Mapping[str, Sequence[Arm]]) -> list[Key]:
    """The colours that some arms have, each once."""
    pairs = ((arm.method, arm.regime.data) for arms in members.values() for arm in arms)
    return list(dict.fromkeys(keys[pair] for pair in pairs))


def forests(
    grid: GridRecord, identity: str, members: Mapping[str, Sequence[Arm]], keys: Keys
) -> list[Drawing]:
    """Headline metrics of each group's methods as marks with bars of one standard deviation."""
    drawn = []
    for number, (title, arms) in enumerate(members.items()):
        if len(arms) < 2 or not any(grid.runs[arm] for arm in arms):  # noqa: PLR2004 - nothing to compare
            continue
        for metric in ("balanced_accuracy", "auc"):
            marks = []
            for arm in arms:
                found = told(grid, arm, metric)
                colour = keys[arm.method, arm.regime.data].variable
                marks.append(Interval(grid.name(arm.method), found.value, found.low, found.high, colour))
            name = f"{HEADLINE[metric]}: {title}"
            label = f"{name}; the bar is one standard deviation over seeds"
            drawn.append(
                Drawing(name, label, interval_figure(f"{identity}-forest-{number}-{metric}", label, marks))
            )
    return drawn


def drawings(
    grid: GridRecord,
    identity: str,
    columns: Mapping[str, str],
    members: Mapping[str, Sequence[Arm]],
    keys: Keys,
    *,
    radar: bool = True,
) -> list[Drawing]:
    """Figures 5.3 to 5.5: radar per group, AUC against the rate, metrics against the size."""
    places = {key: place for place, key in enumerate(dict.fromkeys(keys.values()))}
    arms = [arm for told_ in members.values() for arm in told_ if grid.runs[arm]]

    def position(arm: Arm) -> int:
        return places[keys[arm.method, arm.regime.data]]

    drawn = []
    spokes = {metric: title for metric, title in columns.items() if metric != "parameters"}
    sized = "parameters" in columns
    for number, (title, told_) in enumerate(members.items() if radar and not sized else ()):
        shapes = [
            Shape([told(grid, arm, metric).value for metric in spokes], position(arm))
            for arm in told_
            if grid.runs[arm]
        ]
        if not 0 < len(shapes) <= _CROWD or len(spokes) < _SPOKES:
            continue
        name = title or "All metrics"
        label = f"{name}: {', '.join(spokes.values())} of each method; the centre is not zero"
        figure = radar_figure(f"{identity}-radar-{number}", label, tuple(spokes.values()), shapes)
        drawn.append(Drawing(name, label, figure))
    drawn += _trends(grid, identity, arms, position)
    if sized or not radar:
        drawn += _sizes(grid, identity, arms, position)
    return drawn


def _trends(grid: GridRecord, identity: str, arms: Sequence[Arm], position: Position) -> list[Drawing]:
    """AUC against the missing rate, one drawing per mechanism with at least two rates.

    Where a method has one colour on all data, as in tables of no paper, one per data set, too.
    """
    apart = len({position(arm) for arm in arms}) < len({(arm.method, arm.regime.data) for arm in arms})
    found: dict[str, dict[Arm, list[tuple[float, float, float | None]]]] = {}
    for arm in arms:
        regime, value = arm.regime, told(grid, arm, "auc")
        if regime.mechanism and regime.rate is not None and value.value is not None:
            one = Arm(Regime(regime.data, regime.task, None, None), arm.method, arm.mode)
            kind = " ".join((f"AUC against the missing rate ({regime.mechanism.upper()})", *regime.arguments))
            lines = found.setdefault(f"{kind}: {regime.data}" if apart else kind, {})
            lines.setdefault(one, []).append((regime.rate, value.value, value.sd))
    drawn = []
    for number, (name, lines) in enumerate(found.items()):
        if max(map(len, lines.values())) < 2:  # noqa: PLR2004 - one rate is no curve
            continue
        trends = [Trend(sorted(points), position(arm)) for arm, points in lines.items()]
        label = f"{name}, mean and one standard deviation over seeds"
        drawn.append(Drawing(name, label, rate_figure(f"{identity}-rates-{number}", label, trends)))
    return drawn


def _sizes(grid: GridRecord, identity: str, arms: Sequence[Arm], position: Position) -> list[Drawing]:
    """Metrics against trainable parameters, where one set of rows holds models of different sizes."""
    regimes = {arm.regime.loss for arm in arms}
    sizes = {arm: told(grid, arm, "parameters").value for arm in arms}
    if len(regimes) != 1 or len({arm.method.model for arm in arms}) < 2 or not all(sizes.values()):  # noqa: PLR2004 - nothing to compare
        return []
    drawn = []
    for metric, title in HEADLINE.items():
        dots = []
        for arm in arms:
            found, size = told(grid, arm, metric), sizes[arm]
            if found.value is not None and size:
                twice = sum(other.method == arm.method for other in arms) > 1
                name = line_name(grid, arm, several=twice)
                dots.append(Dot(name, round(size * 1e6), found.value, found.sd, position(arm)))
        if dots:
            name = f"{title} against trainable parameters"
            label = f"{name} (log axis), mean and one standard deviation over seeds"
            drawn.append(Drawing(name, label, size_figure(f"{identity}-size-{metric}", label, dots)))
    return drawn


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
