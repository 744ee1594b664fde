"""Tables as text with blank cells missing.

Text keeps the id ``007`` intact, and errors can quote a cell as written; callers convert to numbers.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import pandas as pd

from mmare.errors import DataError
from mmare.numerals import is_plain

__all__ = ["TextTable", "cell_text", "did_you_mean", "finite_number", "listed", "unknown_column"]

_CUT_SHORT = re.compile(r"\d(\.\d+)?[eE]\+\d+")  # 1.23457E+11
_DIGITS = 15  # of a number in Excel
_LONG_NUMBER = " (Excel rounds numbers of more than 15 digits: store the column as text)"
_EXACT = 2**53  # floats hold every smaller whole number


@dataclass(frozen=True)
class TextTable:
    """A table as written in its file."""

    source: Path
    frame: pd.DataFrame  # stripped text; blank cells are missing
    lines: tuple[int, ...] = ()  # 1-based line of each row in the file; empty if the format has no lines
    rows: tuple[int, ...] = ()  # 0-based row in the file of each row; empty if all are there

    def where(self, row: int) -> str:
        """The name in errors of the row at a 0-based position: ``patients.csv, row 3 (line 4)``."""
        line = f" (line {self.lines[row]})" if self.lines else ""
        return f"{self.source}, row {(self.rows[row] if self.rows else row) + 1}{line}"

    def column(self, name: str) -> list[str | None]:
        """One column, missing cells as ``None``.

        Raises:
            DataError: If the table has no such column.
        """
        if name not in self.frame.columns:
            raise unknown_column(self.source, name, self.frame.columns)
        cells = self.frame[name].to_numpy(dtype=object)  # five times as fast as the cells of a series
        return [value if isinstance(value, str) else None for value in cells]

    def require(self, name: str) -> list[str]:
        """One column without blank cells.

        Raises:
            DataError: If the column does not exist or a cell is blank.
        """
        values = self.column(name)
        for row, value in enumerate(values):
            if value is None:
                raise DataError(f"{self.where(row)}: {name} is blank, expected a value")
        return [value for value in values if value is not None]

    def require_unique(self, name: str) -> list[str]:
        """One column without blank or repeated cells, such as patient ids.

        Raises:
            DataError: If the column does not exist or a cell is blank, repeated or a number cut short.
        """
        values = self.require(name)
        first: dict[str, int] = {}
        for row, value in enumerate(values):
            if _CUT_SHORT.fullmatch(value):
                raise DataError(
                    f"{self.where(row)}: {name} is {value!r}, a number that a spreadsheet cut short, "
                    "expected all its digits: store the column as text"
                )
            if value in first:
                hint = _LONG_NUMBER if self._may_be_rounded(value) else ""
                raise DataError(
                    f"{self.where(row)}: {name} {value!r} occurs twice, first in row {first[value] + 1}; "
                    f"expected one row per patient{hint}"
                )
            first[value] = row
        return values

    def _may_be_rounded(self, value: str) -> bool:
        """Whether Excel, which keeps 15 digits of a number, may have changed it."""
        return self.source.suffix.lower() in {".xlsx", ".xls"} and value.isdecimal() and len(value) > _DIGITS


def unknown_column(source: Path, name: str, known: Iterable[object]) -> DataError:
    """The error for a missing column, with the closest existing name."""
    names = [str(column) for column in known]
    hint = did_you_mean(name, names)
    return DataError(f"{source}: no column {name!r}{hint}; the table has {listed(names)}")


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names for a sentence, the first of very many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suffix for errors with the closest known name; empty if none is close."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def finite_number(cell: object) -> float | None:
    """The cell as a finite number, if it is one; ``1_5`` and digits of other scripts are none."""
    text = str(cell)
    if not is_plain(text):
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def cell_text(value: Any) -> str | None:  # noqa: ANN401 - a cell of any type that a reader returns
    """One typed cell as the text that CSV has for it; ``None`` if missing."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float | np.floating):
        return _float_text(value)
    if isinstance(value, datetime):
        # Excel and Parquet have days as midnights.
        return value.isoformat(" ").removesuffix(" 00:00:00")
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip() or None
    return str(value).strip() or None


def _float_text(value: SupportsFloat) -> str | None:
    number = float(value)
    if math.isnan(number):
        return None
    # An integer column with blanks arrives as floats: 3.0 was written as 3. Above 2**53 digits are lost.
    return str(int(number)) if number.is_integer() and abs(number) < _EXACT else str(value)
