"""What the commands print, as HTML: tables of rich, and curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmare.host.web import element, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from mmare.host.web import Html

__all__ = ["curve", "shown"]

WIDTH, HEIGHT, EDGE = 640.0, 160.0, 8.0
LABELS: Final = 48.0  # for the values beside the curve


def shown(found: RenderableType, caption: str) -> list[Html]:
    """Tables and lines that a command would print."""
    if isinstance(found, Group):
        return [part for each in found.renderables for part in shown(each, caption)]
    if isinstance(found, Table):
        headings = [_plain(column.header) if found.show_header else "" for column in found.columns]
        rows = zip(*([_plain(cell) for cell in column.cells] for column in found.columns), strict=True)
        return [table(caption, headings, rows)]
    text = _plain(found)
    return [element("p", text)] if text.strip() else []


def _plain(found: RenderableType) -> str:
    return found.plain if isinstance(found, Text) else Text.from_markup(str(found)).plain


def curve(name: str, points: Sequence[tuple[int, float]]) -> Html:
    """A value by round as a line, with its first, last, lowest and highest in words."""
    low, high = min(value for _, value in points), max(value for _, value in points)
    first, last = points[0][0], points[-1][0]
    wide, tall = WIDTH - LABELS - 2 * EDGE, HEIGHT - 2 * EDGE
    places = " ".join(
        f"{EDGE + wide * (number - first) / max(last - first, 1):.1f},"
        f"{EDGE + tall * (high - value) / ((high - low) or 1.0):.1f}"
        for number, value in points
    )
    words = f"{name}, rounds {first} to {last}: from {low:.3f} to {high:.3f}, last {points[-1][1]:.3f}"
    line = element("polyline", points=places, fill="none", stroke="currentColor", stroke_width="2")
    marks = [
        element(
            "text",
            f"{value:.3f}",
            x=f"{WIDTH - LABELS:.0f}",
            y=f"{y:.0f}",
            fill="currentColor",
            font_size="13",
        )
        for value, y in ((high, EDGE + 10), (low, HEIGHT - EDGE))
    ]
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    drawn = element("svg", line, *marks, viewBox=box, width=f"{WIDTH:.0f}", role="img", aria_label=words)
    return element("figure", drawn, element("figcaption", words, class_="quiet"))
