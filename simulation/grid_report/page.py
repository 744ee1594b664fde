"""The pages of a report as plain data; HTML and Markdown are templates beside that of a run.

Both pages are made from the same tables, so that they cannot say different things.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from simulation.report.figures import PALETTE, Drawing, site_dash, site_variable
from simulation.report.page import render_page

__all__ = [
    "NONE",
    "Cell",
    "Figures",
    "Key",
    "Page",
    "Row",
    "Section",
    "Table",
    "Text",
    "to_html",
    "to_markdown",
]

# Whatever Markdown or the HTML in it would take for its own.
_SPECIAL = re.compile(r"([\\`*_\[\]|#~$!])")


@dataclass(frozen=True)
class Cell:
    """One place of a table.

    Args:
        text: The value.
        small: What stands below it.
        mark: ``best`` of its group is bold, ``second`` underlined.
        heat: 0 to 1, how strongly it is shaded; ``None`` for not at all.
        number: Whether it is set to the right.
        none: Whether it says that there is no value.
    """

    text: str
    small: Sequence[str] = ()
    mark: str = ""
    heat: float | None = None
    number: bool = True
    none: bool = False


NONE = Cell("—", none=True)


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a name, and its position among the colours and dashes of the page."""

    name: str
    position: int

    @property
    def variable(self) -> str:
        """CSS variable of its colour."""
        return site_variable(self.position)

    @property
    def dash(self) -> str:
        """As SVG has it; empty is solid."""
        return " ".join(map(str, site_dash(self.position)))


@dataclass(frozen=True)
class Row:
    """A line of a table; ``key`` is the colour of its method."""

    head: str
    cells: Sequence[Cell]
    under: str = ""
    key: Key | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        caption: What is in it, in one line.
        head: Heading of the first column.
        columns: Headings of the others.
        groups: Heading, empty for none, and its rows; best and second are chosen within a group. A table
            without a row is not shown.
        notes: Below it.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: str
    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Row]]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Figures:
    """Drawings with one legend; the Markdown page has their numbers in its tables."""

    kind: ClassVar[str] = "figures"
    drawings: Sequence[Drawing]
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


Part = Table | Figures | Text


@dataclass(frozen=True)
class Section:
    """A part of the page; ``read`` says in one or two sentences how to read it."""

    id: str
    title: str
    read: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Args:
        title: Of the grid.
        chips: What was run: a word and its value.
        notes: What a reader must know first.
        sections: In order.
    """

    title: str
    chips: Mapping[str, str]
    notes: Sequence[str]
    sections: Sequence[Section]


def to_html(page: Page) -> str:
    """The page as HTML that needs nothing but itself."""
    return render_page({"page": page, "palette": PALETTE}, "grid_report_template.html.j2")


def to_markdown(page: Page) -> str:
    """The page as Markdown, with every table; names cannot break out of their cells."""
    return render_page({"page": page, "plain": _plain}, "grid_report_template.md.j2").rstrip("\n") + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)
