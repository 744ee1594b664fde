"""The cells of one column as numbers or words, and every cell that is neither."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmare.errors import DataError
from mmare.numerals import is_plain
from sites.tabular import TextTable, finite_number

__all__ = [
    "LARGEST",
    "Cells",
    "Problem",
    "beyond",
    "cells_of",
    "misfit",
    "not_available",
    "parse",
    "refuse",
]

LARGEST = 1e15  # in size; larger ones are codes or slips, and their squares spoil the pooled moments

# How statistics programs write a missing cell, whatever the case.
_NOT_AVAILABLE = {"na", "n/a", "#n/a", "#na", "n.a.", "n.a", "nan", "-nan", "<na>", "null"}

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
    """One column."""

    text: pa.Array  # (N,) as written, blanks null
    numbers: NDArray[np.float64] | None  # (N,), NaN where blank; none if a cell is no finite number

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """``(N,)``."""
        return np.asarray(self.text.is_valid())

    @cached_property
    def _spellings(self) -> pa.DictionaryArray:
        return self.text.dictionary_encode()

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """The spelling in each row as a position in ``words``, -1 if blank, ``(N,)``."""
        return np.asarray(self._spellings.indices.fill_null(-1), dtype=np.int64)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The spellings of the cells that are not blank, in order of their first row."""
        return tuple(self._spellings.dictionary.to_pylist())


@dataclass(frozen=True)
class Problem:
    """A cell that does not fit its column, and how many are like it."""

    column: str
    kind: str  # cells of a kind are reported together
    row: int  # 0-based, of the first
    cell: str
    count: int
    expected: str  # and what to do


def cells_of(
    table: TextTable, name: str, missing: Collection[str] = (), keep: Collection[str] | None = ()
) -> Cells:
    """One column; blank are empty cells, ``missing``, and ``NA`` and its like unless in ``keep``.

    A number in ``missing`` matches in any spelling; a ``keep`` of none keeps every word.
    """
    text = pa.array(table.frame[name])
    numbers = _all_numbers(text)
    if numbers is None:
        gone = _among(text, missing)
        if keep is not None:
            absent = _among(pc.ascii_lower(text), _NOT_AVAILABLE)
            gone = pc.or_(gone, pc.and_not(absent, _among(text, keep)))
        text = pc.if_else(gone, None, text)
        numbers = _all_numbers(text)
    cells = Cells(text, numbers)
    codes = [number for code in missing if (number := finite_number(code)) is not None]
    if not codes:
        return cells
    values = np.append(_floats(cells.words), np.nan)[cells.codes] if numbers is None else numbers
    same = np.isin(values, codes)
    if not same.any():
        return cells
    return Cells(pc.if_else(same, None, text), None if numbers is None else np.where(same, np.nan, numbers))


def not_available(word: str) -> bool:
    """Whether a word says that there is no value."""
    return word.lower() in _NOT_AVAILABLE


def _among(text: pa.Array, words: Collection[str]) -> pa.Array:
    return pc.is_in(text, value_set=pa.array(list(words), text.type))


def _all_numbers(text: pa.Array) -> NDArray[np.float64] | None:
    """``(N,)``, NaN where blank, if every cell is a finite number; Arrow takes a tenth of Python's time."""
    try:
        numbers: NDArray[np.float64] = pc.cast(text, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    return numbers if np.isfinite(numbers).sum() == len(text) - text.null_count else None


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
    if decimal == "." and column.numbers is not None:
        return column.numbers, []
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
    if not wrong.any():
        return []
    words = {column.words[code] for code in np.unique(column.codes[wrong])}
    return [misfit(name, column, words, kind, _ADVICE[kind])]


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
