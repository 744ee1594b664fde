"""Figures of a report: matplotlib drawings as inline SVG that takes its colours from the page.

Colours are drawn as placeholders and become CSS variables (``--ink``, ``--site-0``), so that one drawing
fits light, dark and print. A site's colour and (past eight sites) dash follow from its position in the page's
order of sites, so it looks the same in every figure.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmare.study.outcome import TASKS, Outcome
from server.monitoring.run_state import RunState
from simulation.report.results import (
    MODES,
    Comparison,
    Contender,
    RunRecord,
    estimate,
    validation_curves,
)

__all__ = [
    "PALETTE",
    "STYLE",
    "Drawing",
    "Interval",
    "Line",
    "colour_holder",
    "comparison_figures",
    "curves_alone",
    "curves_of_run",
    "dress",
    "figures_of_test",
    "interval_figure",
    "line_figure",
    "shorten",
    "site_dash",
    "site_variable",
    "to_svg",
]

# (light page, dark page): Okabe and Ito's colours, yellow replaced by olive and wine for contrast on white.
PALETTE = (
    ("#0072b2", "#56a9e0"),
    ("#d55e00", "#ff8a42"),
    ("#009e73", "#35c79b"),
    ("#aa4499", "#dd8fce"),
    ("#c28a00", "#f0bd4a"),
    ("#3f9fd0", "#9bd6f7"),
    ("#882255", "#d9709f"),
    ("#7a7a1f", "#c9c75c"),
)

_MARKERS = {"local": "o", "federated": "D", "centralised": "s"}
_DASHES: tuple[tuple[float, ...], ...] = ((), (5.0, 2.0), (1.5, 1.5), (6.0, 2.0, 1.5, 2.0))
_NAMED = ("ink", "muted", "grid", "surface", "federated", "centralised")
_HOLDER = re.compile(r"#51([0-9a-f]{2})a7")  # what `colour_holder` writes
_SITE_BASE = 64  # smaller placeholder numbers are `_NAMED`, from here on sites
_LABEL_CHARS = 20
_WIDTH_IN = 5.0
_TEXT_STYLE = re.compile(r"font-family: [^;]*;? ?")  # removed: the page sets the font
STYLE: dict[Any, Any] = {  # Any: matplotlib types the keys as a literal of every setting
    "svg.fonttype": "none",
    "svg.hashsalt": "mmare",
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
    "axes.linewidth": 0.8,
    "axes.unicode_minus": False,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Drawing:
    """A figure of a page."""

    title: str
    label: str  # for screen readers
    svg: str  # the <svg> element


@dataclass(frozen=True)
class Line:
    """A metric over rounds."""

    points: Sequence[tuple[int, float | None]]  # (round, value); None is a gap
    site: int | None  # position in the page's order of sites; None for pooled


@dataclass(frozen=True)
class Interval:
    """A value with its interval, if it has one."""

    row: str  # label; intervals with the same label share a row
    value: float | None  # None is drawn as "not defined"
    low: float | None
    high: float | None
    colour: str  # CSS variable without its dashes
    marker: str = "o"  # of matplotlib


def site_variable(position: int) -> str:
    """CSS variable of a site's colour."""
    return f"site-{position % len(PALETTE)}"


def site_dash(position: int) -> tuple[float, ...]:
    """Dash pattern of a site's line; empty is solid."""
    return _DASHES[position // len(PALETTE) % len(_DASHES)]


def curves_of_run(record: RunRecord, sites: Sequence[str], outcome: Outcome) -> list[Drawing]:
    """Validation score and loss, pooled and per site, and train loss per site."""
    chosen = record.result.get("best_round")
    drawn = []
    for metric, title in _curves(outcome):
        curves = validation_curves(record.state, metric)
        lines = [Line(points, sites.index(site)) for site, points in curves.sites.items()]
        lines += [Line(curves.pooled, None)] if curves.pooled else []
        if lines:
            label = f"{title} over rounds, pooled and per site; round {chosen} was selected"
            drawn.append(Drawing(title, label, line_figure(f"curve-{metric}", label, lines, chosen)))
    trained: dict[str, dict[int, float | None]] = {}
    for number, row in record.state.rounds.items():
        for site, update in row.updates.items():
            trained.setdefault(site, {})[number] = update.train_loss
    if trained:
        lines = [Line(sorted(points.items()), sites.index(site)) for site, points in sorted(trained.items())]
        label = f"Train loss over rounds, per site; round {chosen} was selected"
        drawn.append(Drawing("Train loss", label, line_figure("curve-train", label, lines, chosen)))
    return drawn


def _curves(outcome: Outcome) -> list[tuple[str, str]]:
    title = outcome.shown[outcome.headline]
    title = title[0].lower() + title[1:] if title[1:].islower() else title
    return [(outcome.headline, f"Validation {title}"), ("log_loss", "Validation loss")]


def curves_alone(journals: Mapping[str, RunState], sites: Sequence[str], outcome: Outcome) -> list[Drawing]:
    """Validation metrics over rounds, each site's own model on its own rows."""
    drawn = []
    for metric, title in _curves(outcome):
        lines = []
        for site, state in journals.items():
            curves = validation_curves(state, metric)
            lines.append(Line(curves.sites.get(site) or curves.pooled, sites.index(site)))
        lines = [line for line in lines if line.points]
        if lines:
            label = f"{title} over rounds, each site's own model on its own rows"
            drawn.append(Drawing(title, label, line_figure(f"curve-{metric}", label, lines)))
    return drawn


def figures_of_test(test: Mapping[str, Any], sites: Sequence[str], shown: Mapping[str, str]) -> list[Drawing]:
    """Test metrics of a run with their intervals, pooled and per site."""
    measured = test.get("sites") or {}
    rows = [("All sites", test.get("pooled"), "ink", "D")]
    rows += [
        (site, measured[site], site_variable(position), "o")
        for position, site in enumerate(sites)
        if site in measured
    ]
    drawn = []
    for metric, title in shown.items():
        intervals = []
        for name, metrics, colour, marker in rows:
            value = estimate([metrics], metric)
            intervals.append(Interval(name, value.value, value.low, value.high, colour, marker))
        label = f"Test {title}, pooled and per site, with 95 % intervals"
        drawn.append(Drawing(title, label, interval_figure(f"test-{metric}", label, intervals)))
    return drawn


def comparison_figures(comparison: Comparison) -> list[Drawing]:
    """Each way to train on the pooled test rows, then on the rows of each site."""

    def interval(row: str, contender: Contender, rows: str | None, metric: str) -> Interval:
        value = contender.on(rows, metric)
        alone = contender.site is not None and site_variable(comparison.sites.index(contender.site))
        colour = alone or contender.mode
        return Interval(row, value.value, value.low, value.high, colour, _MARKERS[contender.mode])

    shown = TASKS[comparison.study.task].shown
    drawn = []
    for metric, name in shown.items():
        title, label = f"{name}, all test rows", f"{name} on all test rows, for each way to train"
        pooled = [interval(way.site or MODES[way.mode], way, None, metric) for way in comparison.contenders]
        drawn.append(Drawing(title, label, interval_figure(f"pooled-{metric}", label, pooled)))
    for metric, name in shown.items():
        title = f"{name}, per site"
        label = f"{name} on each site's test rows: the site alone, federated, centralised"
        own = [
            interval(site, way, site, metric)
            for site in comparison.sites
            for way in comparison.contenders
            if way.site in (None, site)
        ]
        drawn.append(Drawing(title, label, interval_figure(f"sites-{metric}", label, own)))
    return drawn


@mpl.rc_context(STYLE)
def line_figure(name: str, title: str, lines: Sequence[Line], marked: int | None = None) -> str:
    """Draw curves over rounds, pooled ones thicker and on top, as an ``<svg>`` element.

    Args:
        name: Prefix of the ids in the drawing, unique in the page.
        title: For screen readers.
        lines: What to draw.
        marked: The selected round.
    """
    figure = Figure(figsize=(_WIDTH_IN, 3.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.09, right=0.97, top=0.91, bottom=0.15)
    dress(axes, grid="y")
    rounds = sorted({number for line in lines for number, _ in line.points})
    for line in sorted(lines, key=lambda line: line.site is None):
        points = dict(line.points)  # a round without the site is a gap in its line
        _draw(axes, Line([(number, points.get(number)) for number in rounds], line.site))
    if marked is not None:
        muted, above = colour_holder("muted"), axes.get_xaxis_transform()
        axes.axvline(marked, color=muted, linewidth=1.0, dashes=(3, 3), zorder=1.5)
        axes.annotate(
            f"round {marked}", (marked, 1.02), xycoords=above, ha="center", fontsize=10, color=muted
        )
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    return to_svg(figure, name, title)


@mpl.rc_context(STYLE)
def interval_figure(name: str, title: str, intervals: Sequence[Interval], start: float | None = None) -> str:
    """Draw values with intervals, one row per label from the top, the scale from ``start`` if it is given.

    Other arguments as of `line_figure`.
    """
    rows = list(dict.fromkeys(interval.row for interval in intervals))
    members = {row: [interval for interval in intervals if interval.row == row] for row in rows}
    most = max(map(len, members.values()))
    height = 0.5 + (0.16 + 0.15 * most) * max(len(rows), 2)
    figure = Figure(figsize=(_WIDTH_IN, height))
    axes = figure.subplots()
    longest = max(len(shorten(row)) for row in rows)
    figure.subplots_adjust(
        left=(0.25 + 0.092 * longest) / _WIDTH_IN, right=0.96, top=1 - 0.1 / height, bottom=0.3 / height
    )
    dress(axes, grid="x")
    step = 0.62 / most  # between marks that share a row, in row heights
    for number, row in enumerate(rows):
        for position, interval in enumerate(members[row]):
            _whisker(axes, interval, number + (position - (len(members[row]) - 1) / 2) * step)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(left=start)
    axes.set_yticks(range(len(rows)), [shorten(row) for row in rows])
    axes.tick_params(axis="y", length=0, labelcolor=colour_holder("ink"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    return to_svg(figure, name, title)


def _draw(axes: Axes, line: Line) -> None:
    rounds = [number for number, _ in line.points]
    values = [float("nan") if value is None else value for _, value in line.points]
    marker = "o" if len(rounds) == 1 else ""
    if line.site is None:
        axes.plot(rounds, values, color=colour_holder("ink"), linewidth=2.4, zorder=3, marker=marker)
        return
    (drawn,) = axes.plot(
        rounds, values, color=colour_holder(line.site), linewidth=1.4, alpha=0.9, zorder=2, marker=marker
    )
    if dash := site_dash(line.site):
        drawn.set_dashes(dash)


def _whisker(axes: Axes, interval: Interval, height: float) -> None:
    if interval.value is None:
        muted, left = colour_holder("muted"), axes.get_yaxis_transform()
        axes.annotate("not defined", (0.02, height), xycoords=left, va="center", fontsize=9.5, color=muted)
        return
    colour = colour_holder(interval.colour)
    if interval.low is not None and interval.high is not None:
        axes.plot(
            [interval.low, interval.high], [height] * 2, color=colour, linewidth=1.8, solid_capstyle="round"
        )
    axes.plot([interval.value], [height], marker=interval.marker, markersize=6.5, color=colour, linestyle="")


def dress(axes: Axes, grid: str) -> None:
    """Reduce axes to one line and a grid, in the page's colours."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colour_holder("grid"))
    axes.tick_params(color=colour_holder("grid"), labelcolor=colour_holder("muted"), labelsize=10.5, length=3)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.label.set_color(colour_holder("muted"))
    axes.grid(axis=grid, color=colour_holder("grid"), linewidth=0.8)  # type: ignore[arg-type] # x, y or both
    axes.set_axisbelow(True)


def colour_holder(variable: str | int) -> str:
    """The placeholder of a CSS variable; a number is a site's position."""
    if isinstance(variable, str) and variable.startswith("site-"):
        variable = int(variable.removeprefix("site-"))
    number = _NAMED.index(variable) if isinstance(variable, str) else _SITE_BASE + variable % len(PALETTE)
    return f"#51{number:02x}a7"


def _variable(holder: re.Match[str]) -> str:
    number = int(holder[1], 16)
    return f"var(--{site_variable(number - _SITE_BASE) if number >= _SITE_BASE else _NAMED[number]})"


def shorten(label: str, most: int = _LABEL_CHARS) -> str:
    """Cut a label to fit beside a figure; letters that cannot be drawn become dots."""
    label = "".join(letter if letter.isprintable() else "·" for letter in label)
    return label if len(label) <= most else f"{label[: most - 1]}…"


def to_svg(figure: Figure, name: str, title: str) -> str:
    """Save without metadata, with unique ids, the page's colours and a title for screen readers."""
    figure.patch.set_alpha(0.0)
    written = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the text, so letters missing from matplotlib's font do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(written.getvalue())  # noqa: S314 - written by matplotlib just now
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.text, element.tail = (element.text or "").strip(), None
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({key: _local(key, value, name) for key, value in attributes.items()})
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title, "id": name}
    return ET.tostring(root, encoding="unicode")


def _local(key: str, value: str, name: str) -> str:
    """An attribute with ids prefixed by the figure's name, and placeholders turned into CSS variables."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = _TEXT_STYLE.sub("", value) if key == "style" else value
    return _HOLDER.sub(_variable, value.replace("url(#", f"url(#{name}-"))
