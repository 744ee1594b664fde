"""Read a table file as text: CSV, TSV, Parquet and Excel give the same cells.

Typed cells never pass through floating point on their way: a long whole number keeps its last digit.
"""

from __future__ import annotations

import csv
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmare.errors import DataError
from sites.tabular import TextTable, cell_text

__all__ = ["read_cells", "read_table"]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_CANDIDATES = (",", ";", "\t", "|")
_SNIFFED_ROWS = 50
_BLOCK = 1_000_000  # cells
_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}
_UTF8 = "utf-8"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of "Unicode text" as Excel saves it
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # an index without a name is no column

csv.field_size_limit(2**31 - 1)  # the names of 20,000 genes are one cell to the delimiters that are tried

_Rows = Iterator[tuple[int, Sequence[Any]]]  # with the 1-based line of each


def read_table(path: Path, delimiter: str | None = None, encoding: str = _UTF8) -> TextTable:
    """Read a ``.csv``, ``.tsv``, ``.parquet``, ``.xlsx`` or ``.xls`` file with one header row.

    Args:
        delimiter: Of text files: a character or ``tab``; by default the one of ``, ; | tab`` that gives every
            row as many cells as the header.
        encoding: Of text files; one that starts with a byte order mark is read by it.

    Raises:
        DataError: If the file is missing, cannot be read, or its rows do not fit its header.
    """
    header: list[str] | None = None
    typed = path.suffix.lower() not in _DELIMITERS
    kept: list[str | None] = []  # cells, row by row
    packed: list[list[pa.Array]] = []  # by block of rows; Python's strings take four times the memory
    lines: list[int] = []
    for line, record in read_cells(path, delimiter, encoding):
        if header is None:
            header = [cell or "" for cell in map(cell_text, record)]
            continue
        kept.extend(map(cell_text, record) if typed else record)
        lines.append(line)
        if len(kept) >= _BLOCK:
            packed.append(_pack(kept, len(header)))
            kept.clear()
    if header is None:
        raise DataError(f"{path}: the file is empty, expected a header row")
    _check_header(path, header)
    packed.append(_pack(kept, len(header)))
    columns = [pa.chunked_array(blocks).combine_chunks() for blocks in zip(*packed, strict=True)]
    frame = pa.table(columns, names=header).to_pandas().astype("str")
    return TextTable(path, frame, () if path.suffix.lower() == ".parquet" else tuple(lines))


def _pack(cells: Sequence[str | None], width: int) -> list[pa.Array]:
    """The columns of some rows; Arrow strips and sorts cells faster than Python."""
    block = pc.utf8_trim_whitespace(pa.array(cells, pa.large_string()))
    block = pc.if_else(pc.equal(block, ""), None, block)
    rows = np.arange(0, len(cells), width)
    return [block.take(pa.array(rows + column)) for column in range(width)]


def read_cells(path: Path, delimiter: str | None = None, encoding: str = _UTF8) -> _Rows:
    """The rows of a table file that are not blank, header first, each with its line; cells as typed.

    Raises:
        DataError: If the file is missing, cannot be read or a row does not fit the header, also later on.
    """
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        raise DataError(f"{path}: found a file ending {ending!r}, expected one of {', '.join(_FORMATS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        rows = (
            _text(path, delimiter, encoding)
            if ending in _DELIMITERS
            else enumerate(_FORMATS[ending](path), start=1)
        )
        row = width = 0  # the header is row 0
        for line, cells in rows:
            # Empty lines are what spreadsheets leave at the end.
            if not any(cell is not None and str(cell).strip() for cell in cells):
                continue
            width = width or len(cells)
            if len(cells) != width:
                raise DataError(  # noqa: TRY301 - raised again below
                    f"{path}, row {row} (line {line}): found {len(cells)} cells, "
                    f"expected {width} as in the header"
                )
            yield line, cells
            row += 1
    except (DataError, GeneratorExit):
        raise
    except (UnicodeError, LookupError):
        name = "UTF-8" if encoding == _UTF8 else encoding
        raise DataError(
            f"{path}: not {name} text; save it as UTF-8, or name its encoding (prepare table "
            "--encoding-of-text)"
        ) from None
    except ImportError as error:
        raise DataError(
            f"{path}: reading {ending} needs a further package ({error}); install it or save the table as CSV"
        ) from None
    except Exception as error:  # every reader has its own errors
        raise DataError(f"{path}: cannot be read as {ending[1:]} ({type(error).__name__}: {error})") from None


def _text(path: Path, delimiter: str | None, encoding: str) -> _Rows:
    with path.open("rb") as raw:
        if raw.read(2) in _UTF16_MARKS:
            encoding = "utf-16"
    if encoding.lower().replace("_", "-") in {_UTF8, "utf8"}:
        encoding = "utf-8-sig"
    with path.open(encoding=encoding, newline="") as stream:
        separator = re.fullmatch(r"sep=(.)[\r\n]*", stream.readline())  # for Excel only, which writes it
        n_before = 1 if separator else 0
        if not separator:
            stream.seek(0)
        if delimiter is None:
            delimiter = separator[1] if separator else _sniffed(stream, _DELIMITERS[path.suffix.lower()])
        reader = csv.reader(stream, delimiter=_one_character(delimiter), strict=True)
        line = 1 + n_before  # of the first physical line of the next record
        try:
            for record in reader:
                yield line, record
                line = reader.line_num + 1 + n_before
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: not valid CSV: {error}") from None


def _one_character(delimiter: str) -> str:
    character = _NAMES.get(delimiter.lower(), delimiter)
    if len(character) != 1 or character in '"\r\n':
        raise DataError(f"--delimiter is {delimiter!r}, expected one character or tab")
    return character


def _sniffed(stream: Any, usual: str) -> str:  # noqa: ANN401 - typing has no name for a text file that seeks
    """The delimiter that gives the first rows the cells of the header; the usual one in doubt."""
    lines = list(itertools.islice(stream, _SNIFFED_ROWS))
    stream.seek(0)
    found: list[tuple[bool, int, bool, str]] = []
    for candidate in _CANDIDATES:
        widths = [len(row) for row in csv.reader(lines, delimiter=candidate) if any(map(str.strip, row))]
        # A quoted cell that the last line cuts makes the last row short.
        rest = widths[1:-1] if len(lines) == _SNIFFED_ROWS else widths[1:]
        width = widths[0] if widths else 0
        fits = width > 1 and all(other == width for other in rest)
        found.append((fits, width, candidate == usual, candidate))
    usual_width = next(width for _, width, is_usual, _ in found if is_usual)
    if not any(fits for fits, *_ in found) and usual_width > 1:
        return usual  # its error tells which row is wrong
    return max(found)[-1]


def _parquet(path: Path) -> Iterator[Sequence[object]]:
    table = pq.read_table(path)
    names = [name for name in table.column_names if not _PANDAS_INDEX.fullmatch(name)]
    yield names
    yield from zip(*(_typed(table.column(name)) for name in names), strict=True)


def _typed(column: pa.ChunkedArray) -> Iterable[object]:
    """The cells of one column; single precision as the shortest text that reads back as it."""
    if pa.types.is_floating(column.type) and not pa.types.is_float64(column.type):
        return list(column.to_numpy())
    cells: list[object] = column.to_pylist()
    return cells


def _xlsx(path: Path) -> Iterator[Sequence[object]]:
    import openpyxl  # noqa: PLC0415 - half a second that only Excel needs

    with warnings.catch_warnings(action="ignore"):  # of styles and of extensions, which hold no cell
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # some programs write a wrong one
            yield from _even(list(sheet.iter_rows(values_only=True)))
        finally:
            book.close()


def _xls(path: Path) -> Iterator[Sequence[object]]:
    import python_calamine  # noqa: PLC0415 - only Excel's old format needs it

    with python_calamine.load_workbook(path) as book:
        sheet = book.get_sheet_by_index(0)
        yield from _even(sheet.to_python(skip_empty_area=False))


def _even(rows: Sequence[Sequence[object]]) -> Iterator[Sequence[object]]:
    """Rows of one length, without the blank columns to the right that once held something."""
    widths = (
        max((at for at, cell in enumerate(row, start=1) if cell_text(cell) is not None), default=0)
        for row in rows
    )
    width = max(widths, default=0)
    for row in rows:
        yield [*row[:width], *[None] * (width - len(row))]


def _check_header(path: Path, header: Sequence[str]) -> None:
    seen: set[str] = set()
    for position, name in enumerate(header):
        if not name:
            raise DataError(f"{path}: column {position + 1} has no name in the header")
        if name in seen:
            raise DataError(f"{path}: two columns are called {name!r}")
        seen.add(name)


_FORMATS: dict[str, Callable[[Path], Iterable[Sequence[object]]]] = {
    **dict.fromkeys(_DELIMITERS, lambda _: ()),
    ".parquet": _parquet,
    ".xlsx": _xlsx,
    ".xls": _xls,
}
