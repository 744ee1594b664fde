"""The cells of one column, each spelling looked at once: numbers, words, and what is neither."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmare.errors import DataError
from sites.tabular import TextTable, finite_number, is_plain

__all__ = [
    "LARGEST",
    "Cells",
    "Problem",
    "beyond",
    "cells_of",
    "meaning_missing",
    "misfit",
    "not_available",
    "parse",
    "refuse",
]

LARGEST = 1e15  # in size; larger ones are codes or slips, and their squares spoil the pooled moments

# How statistics programs write a missing cell, whatever the case.
_NOT_AVAILABLE = {"na", "n/a", "#n/a", "nan", "<na>", "null"}

_TYPED = {".parquet", ".xlsx", ".xls"}  # their numbers arrive with a point, whatever the country

_DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})([ T]\d{1,2}:\d{2}.*)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?\d{1,3}([.,' ]\d{3})+([.,]\d+)?")  # 1,234,567.8

_ADVICE = {
    "dates": "a finite number; give a number instead of a date, such as an age in years",
    "commas": "a finite number; add --decimal , because the file writes decimals with a comma",
    "points": "a finite number; leave out --decimal , or write the decimals of the file alike",
    "grouped": "a finite number; write it without separators of thousands",
    "large": f"a finite number of at most {LARGEST:g} in size; correct it or name it in --missing-values",
    "cell": "a finite number; name the cell in --missing-values if it means missing, or correct it",
    "log": "a number above -1, because the column has log",
}


@dataclass(frozen=True)
class Cells:
    """One column: the spelling in each row as an index."""

    codes: NDArray[np.int64]  # (N,) position in ``words``, -1 if blank
    words: tuple[str, ...]  # no spelling twice

    @property
    def present(self) -> NDArray[np.bool_]:
        """``(N,)``."""
        return self.codes >= 0

    def without(self, missing: Collection[str]) -> Cells:
        """The column with further spellings blank."""
        gone = np.array([word in missing for word in self.words] or [False])
        return replace(self, codes=np.where(self.present & gone[self.codes], -1, self.codes))

    def used(self) -> list[str]:
        """The spellings of the cells that are not blank, in order of their first row."""
        return [self.words[code] for code in pd.unique(self.codes) if code >= 0]


@dataclass(frozen=True)
class Problem:
    """A cell that does not fit its column, and how many are like it."""

    column: str
    kind: str  # cells of a kind are reported together
    row: int  # 0-based, of the first
    cell: str
    count: int
    expected: str  # and what to do


def cells_of(table: TextTable, name: str, missing: Collection[str] = (), keep: Collection[str] = ()) -> Cells:
    """One column; blank are empty cells, ``NA`` and its like unless in ``keep``, and ``missing``.

    A number in ``missing`` matches in any spelling.
    """
    codes, words = pd.factorize(table.frame[name])
    column = Cells(codes.astype(np.int64), tuple(words.to_numpy(dtype=object).tolist()))
    gone = meaning_missing(column.words, missing)
    letters = "".join(column.words)
    if "n" in letters or "N" in letters:  # looking at every word of a wide table takes seconds
        gone |= {word for word in column.words if not_available(word) and word not in keep}
    return column.without(gone) if gone else column


def not_available(word: str) -> bool:
    """Whether a word says that there is no value."""
    return word.lower() in _NOT_AVAILABLE


def meaning_missing(words: Sequence[str], codes: Collection[str]) -> set[str]:
    """Those of the words that are one of some codes; a number is in any spelling."""
    if not codes:
        return set()
    numbers = [number for code in codes if (number := finite_number(code)) is not None]
    same = np.flatnonzero(np.isin(_floats(words), numbers)).tolist() if numbers else []
    return {words[position] for position in same} | (set(words) & set(codes))


def _floats(words: Sequence[str]) -> NDArray[np.float64]:
    """The words as finite numbers, NaN where one is none."""
    if is_plain("".join(words)):
        try:
            values = np.array(words, dtype=object).astype(np.float64)
        except ValueError:
            pass
        else:
            return np.where(np.isfinite(values), values, np.nan)
    slow = [finite_number(word) for word in words]
    return np.array([np.nan if number is None else number for number in slow], dtype=np.float64)


def parse(
    table: TextTable, name: str, column: Cells, decimal: str = "."
) -> tuple[NDArray[np.float64], list[Problem]]:
    """The numbers of a column, ``(N,)``, NaN where blank, and the cells that are none.

    Typed files write every decimal with a point; ``decimal`` is of text files.
    """
    words = list(column.words)
    if decimal == ",":
        points = table.source.suffix.lower() not in _TYPED
        words = ["" if points and "." in word else word.replace(",", ".") for word in words]
    parsed = _floats(words)
    values = np.append(
        np.where(np.isnan(parsed), np.inf, parsed), np.nan
    )  # the last is of the blank code, -1
    numbers = values[column.codes]
    bad = column.present & ~np.isfinite(numbers)
    if not bad.any():
        return numbers, []
    wrong = {column.words[code] for code in np.unique(column.codes[bad])}
    n_numbers = int((column.present & ~bad).sum())
    kinds = {word: _kind(word, decimal) for word in wrong}
    if n_numbers <= int(bad.sum()) and set(kinds.values()) == {"cell"}:
        advice = "a finite number; name the column in --categorical if it holds words, "
        advice += "or the cell in --missing-values if it means missing"
        return numbers, [misfit(name, column, wrong, "words", advice)]
    return numbers, [
        misfit(name, column, {word for word in wrong if kinds[word] == kind}, kind, _ADVICE[kind])
        for kind in sorted(set(kinds.values()))
    ]


def beyond(name: str, column: Cells, wrong: NDArray[np.bool_], kind: str) -> list[Problem]:
    """The marked cells as a problem, if there are any."""
    words = {column.words[code] for code in np.unique(column.codes[wrong])}
    return [misfit(name, column, words, kind, _ADVICE[kind])] if words else []


def misfit(name: str, column: Cells, words: Collection[str], kind: str, expected: str) -> Problem:
    """The cells with one of some spellings."""
    marked = np.array([word in words for word in column.words])
    rows = np.flatnonzero(column.present & marked[column.codes])
    first = int(rows[0])
    return Problem(name, kind, first, column.words[column.codes[first]], len(rows), expected)


def refuse(table: TextTable, problems: Sequence[Problem]) -> None:
    """Report every problem of a table at once.

    Raises:
        DataError: If there is one.
    """
    if not problems:
        return
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.expected, []).append(problem)
    texts = []
    for expected, group in groups.items():
        found = "; ".join(_found(table, problem) for problem in group)
        names = ",".join(f'"{p.column}"' if "," in p.column else p.column for p in group)
        every = f" (--categorical {names})" if group[0].kind == "words" and len(group) > 1 else ""
        texts.append(f"{found}, expected {expected}{every}")
    raise DataError(f"{table.source}, " + "; and ".join(texts))


def _found(table: TextTable, problem: Problem) -> str:
    where = table.where(problem.row).removeprefix(f"{table.source}, ")
    more = f" (in {problem.count} rows)" if problem.count > 1 else ""
    cell = "blank" if not problem.cell else repr(problem.cell)
    return f"{where}: {problem.column} is {cell}{more}"


def _kind(word: str, decimal: str) -> str:
    """What a cell that is no number looks like."""
    if _DATE.fullmatch(word):
        return "dates"
    if decimal == "." and _DECIMAL_COMMA.fullmatch(word):
        return "commas"
    if _GROUPED.fullmatch(word):
        return "grouped"
    return "points" if finite_number(word) is not None else "cell"
