"""CSV, TSV, Parquet and Excel tables, read as text with blank cells missing.

Text keeps the id ``007`` intact, and errors can quote a cell as written; callers convert to numbers.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmare.errors import DataError

__all__ = ["TextTable", "cell_text", "did_you_mean", "finite_number", "read_table", "unknown_column"]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_EXCEL = (".xlsx", ".xls")
_FORMATS = (*_DELIMITERS, ".parquet", *_EXCEL)


@dataclass(frozen=True)
class TextTable:
    """A table as written in its file."""

    source: Path
    frame: pd.DataFrame  # stripped text; blank cells are missing
    lines: tuple[int, ...] = ()  # 1-based line of each row in the file; empty if the format has no lines

    def where(self, row: int) -> str:
        """The name in errors of the row at a 0-based position: ``patients.csv, row 3 (line 4)``."""
        line = f" (line {self.lines[row]})" if self.lines else ""
        return f"{self.source}, row {row + 1}{line}"

    def column(self, name: str) -> list[str | None]:
        """One column, missing cells as ``None``.

        Raises:
            DataError: If the table has no such column.
        """
        if name not in self.frame.columns:
            raise unknown_column(self.source, name, self.frame.columns)
        return [value if isinstance(value, str) else None for value in self.frame[name]]

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
            DataError: If the column does not exist or a cell is blank or repeated.
        """
        values = self.require(name)
        first: dict[str, int] = {}
        for row, value in enumerate(values):
            if value in first:
                raise DataError(
                    f"{self.where(row)}: {name} {value!r} occurs twice, first in row {first[value] + 1}; "
                    "expected one row per patient"
                )
            first[value] = row
        return values


def read_table(path: Path) -> TextTable:
    """Read a ``.csv``, ``.tsv``, ``.parquet``, ``.xlsx`` or ``.xls`` file with one header row; text is UTF-8.

    Raises:
        DataError: If the file is missing, cannot be read, or its rows do not fit its header.
    """
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        raise DataError(f"{path}: found a file ending {ending!r}, expected one of {', '.join(_FORMATS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if ending in _DELIMITERS:
            return _read_text(path, _DELIMITERS[ending])
        frame = pd.read_parquet(path) if ending == ".parquet" else pd.read_excel(path, dtype=object)
    except DataError:
        raise
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
    except ImportError as error:
        raise DataError(
            f"{path}: reading {ending} needs a further package ({error}); install it or save the table as CSV"
        ) from None
    except Exception as error:  # the readers of pandas raise many error types
        raise DataError(f"{path}: cannot be read as {ending[1:]} ({type(error).__name__}: {error})") from None
    header = [str(name).strip() for name in frame.columns]
    _check_header(path, header)
    columns = {
        name: [cell_text(value) for value in frame.iloc[:, position]] for position, name in enumerate(header)
    }
    return TextTable(path, pd.DataFrame(columns, columns=header, dtype="str"))


def unknown_column(source: Path, name: str, known: Iterable[object]) -> DataError:
    """The error for a missing column, with the closest existing name."""
    names = [str(column) for column in known]
    hint = did_you_mean(name, names)
    return DataError(f"{source}: no column {name!r}{hint}; the table has {', '.join(names)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suffix for errors with the closest known name; empty if none is close."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def finite_number(cell: object) -> float | None:
    """The cell as a finite number, if it is one."""
    try:
        number = float(str(cell))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read_text(path: Path, delimiter: str) -> TextTable:
    """Read delimited text whose rows all have as many cells as the header."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        rows: list[list[str | None]] = []
        lines: list[int] = []
        line = 1  # of the first physical line of the next record
        try:
            for record in reader:
                cells = [cell.strip() for cell in record]
                if not any(cells):
                    pass  # an empty line, as spreadsheets leave at the end
                elif header is None:
                    header = cells
                elif len(cells) != len(header):
                    raise DataError(
                        f"{path}, row {len(rows) + 1} (line {line}): found {len(cells)} cells, "
                        f"expected {len(header)} as in the header"
                    )
                else:
                    rows.append([cell or None for cell in cells])
                    lines.append(line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: not valid CSV: {error}") from None
    if header is None:
        raise DataError(f"{path}: the file is empty, expected a header row")
    _check_header(path, header)
    columns = {name: [row[position] for row in rows] for position, name in enumerate(header)}
    return TextTable(path, pd.DataFrame(columns, columns=header, dtype="str"), tuple(lines))


def _check_header(path: Path, header: Sequence[str]) -> None:
    for position, name in enumerate(header):
        if not name:
            raise DataError(f"{path}: column {position + 1} has no name in the header")
        if name in header[:position]:
            raise DataError(f"{path}: two columns are called {name!r}")


def cell_text(value: Any) -> str | None:  # noqa: ANN401 - a cell of any type that a reader returns
    """One typed cell as text; ``None`` if missing."""
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        # An integer column with blanks arrives as floats: 3.0 was written as 3.
        return str(int(value)) if float(value).is_integer() else str(value)
    if isinstance(value, date):  # includes datetimes
        return value.isoformat()
    return str(value).strip() or None
