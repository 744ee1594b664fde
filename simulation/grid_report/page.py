"""The pages of a report as plain data, and as Markdown; the HTML is in ``grid_report_template.html.j2``.

Both pages are made from the same tables, so that they cannot say different things.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from simulation.report.figures import Drawing

__all__ = ["Cell", "Figures", "Group", "Key", "Page", "Row", "Section", "Table", "Text", "to_markdown"]

# Whatever Markdown or the HTML in it would take for its own.
_SPECIAL = re.compile(r"([\\`*_\[\]|#~$!])")
_MARKS = {"": ("", ""), "best": ("**", "**"), "second": ("<ins>", "</ins>")}


@dataclass(frozen=True)
class Cell:
    """One place of a table.

    Args:
        text: The value.
        small: What stands below it.
        mark: Bold for the best of its group, underlined for the second.
        heat: 0 to 1, how strongly it is shaded; ``None`` for not at all.
        number: Whether it is set to the right.
        none: Whether it says that there is no value.
    """

    text: str
    small: tuple[str, ...] = ()
    mark: Literal["", "best", "second"] = ""
    heat: float | None = None
    number: bool = True
    none: bool = False


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a name, the CSS variable of its colour, its dashes."""

    name: str
    variable: str
    dash: str


@dataclass(frozen=True)
class Row:
    """A line of a table; ``key`` is the colour of its method."""

    head: str
    cells: tuple[Cell, ...]
    under: str = ""
    key: Key | None = None
    strong: bool = False


@dataclass(frozen=True)
class Group:
    """Lines under one heading; empty for none. Best and second are chosen within a group."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        caption: What is in it, in one line.
        head: Heading of the first column.
        columns: Headings of the others.
        groups: Its lines.
        notes: Below it.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """Drawings with one legend; the Markdown page has their numbers in its tables."""

    kind: ClassVar[str] = "figures"
    drawings: tuple[Drawing, ...]
    legend: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page; ``read`` tells in one or two sentences how to read it."""

    id: str
    title: str
    read: str
    parts: tuple[Table | Figures | Text, ...]


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
    chips: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]


def to_markdown(page: Page) -> str:
    """The page as Markdown, with every table; names cannot break out of their cells."""
    lines = [f"# {_plain(page.title)}", ""]
    lines += [" · ".join(f"{_plain(word)}: {_plain(value)}" for word, value in page.chips), ""]
    for note in page.notes:
        lines += [f"> {_plain(note)}", ""]
    for section in page.sections:
        lines += [f"## {_plain(section.title)}", "", f"*{_plain(section.read)}*", ""]
        for part in section.parts:
            if isinstance(part, Table):
                lines += _table(part)
            elif isinstance(part, Text):
                lines += [_plain(part.text), ""]
            else:
                drawn = ", ".join(_plain(drawing.title) for drawing in part.drawings)
                lines += [f"Drawn in `report.html`: {drawn}.", ""]
    return "\n".join(lines)


def _table(table: Table) -> list[str]:
    lines = [f"**{_plain(table.caption)}**", ""]
    lines.append(_line([_plain(table.head), *map(_plain, table.columns)]))
    sides = [row.cells for group in table.groups for row in group.rows][:1]
    right = [cell.number for cell in sides[0]] if sides else [True] * len(table.columns)
    lines.append(_line(["---", *("---:" if number else "---" for number in right)]))
    for group in table.groups:
        if group.title:
            lines.append(_line([f"**{_plain(group.title)}**", *([""] * len(table.columns))]))
        lines += [_line([_head(row), *map(_cell, row.cells)]) for row in group.rows]
    return [*lines, "", *(line for note in table.notes for line in (_plain(note), ""))]


def _head(row: Row) -> str:
    return f"{_plain(row.head)} ({_plain(row.under)})" if row.under else _plain(row.head)


def _cell(cell: Cell) -> str:
    before, after = _MARKS[cell.mark]
    below = f" ({'; '.join(map(_plain, cell.small))})" if cell.small else ""
    return f"{before}{_plain(cell.text)}{after}{below}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)
