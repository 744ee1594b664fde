"""The columns of a table as vectors, by an encoding that is kept in a file: any other table is encoded alike.

encoding = load_encoding(Path("encoding.json"))
encoded = encode(encoding, read_table(Path("new-patients.csv")))["lab"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmare.errors import DataError
from mmare.study.encoding import Column, Encoding
from sites.numbers import LARGEST, Cells, Problem, beyond, cells_of, misfit, parse, refuse
from sites.tabular import TextTable, did_you_mean, listed

__all__ = ["Encoded", "encode"]


@dataclass(frozen=True)
class Encoded:
    """One modality of a table's rows."""

    present: NDArray[np.bool_]  # (N,) whether any column is not blank
    matrix: NDArray[np.float32]  # (N, width); rows of patients who lack the modality mean nothing


def encode(
    encoding: Encoding,
    table: TextTable,
    decimal: str = ".",
    missing: Mapping[str, Sequence[str]] = {},
    problems: Sequence[Problem] = (),
) -> dict[str, Encoded]:
    """The rows of a table as vectors; columns that the encoding does not know are not looked at.

    A modality none of whose columns is in the table is absent in every row.

    Args:
        decimal: What separates decimals in text files, ``.`` or ``,``.
        missing: Cells of this table that mean missing, by column, besides those of the encoding.
        problems: Of other columns, to be reported with those of these.

    Raises:
        DataError: For all at once: columns that the table lacks, cells that are no number, levels and blanks
            that the encoding does not know.
    """
    _check_columns(encoding, table)
    problems = list(problems)
    encoded = {}
    for name, columns in encoding.modalities.items():
        matrix = np.zeros((len(table.frame), encoding.width(name)), dtype=np.float32)
        present = np.zeros(len(table.frame), dtype=np.bool_)
        held: list[tuple[Column, int, NDArray[np.bool_]]] = []  # first feature, and the rows with a value
        start = 0
        for column in columns:
            if column.name in table.frame.columns:
                gone = (*column.missing, *missing.get(column.name, ()))
                cells = cells_of(table, column.name, gone, column.levels or ())
                part = matrix[:, start : start + column.width]
                problems += _fill(part, table, column, cells, decimal)
                present |= cells.present
                held.append((column, start, cells.present))
            start += column.width
        for column, first, given in held:
            problems += _mark_blanks(matrix[:, first : first + column.width], column, present & ~given)
        encoded[name] = Encoded(present, matrix)
    refuse(table, problems)
    return encoded


def _mark_blanks(part: NDArray[np.float32], column: Column, blank: NDArray[np.bool_]) -> list[Problem]:
    """Write the indicator of blanks; without one, blanks do not fit."""
    if column.blanks:
        part[:, -1] = blank
    elif blank.any():
        rows = np.flatnonzero(blank)
        expected = "a value, because the encoding was made without blanks of it (blanks = true in --columns)"
        return [Problem(column.name, "blank", int(rows[0]), "", len(rows), expected)]
    return []


def _fill(
    part: NDArray[np.float32], table: TextTable, column: Column, cells: Cells, decimal: str
) -> list[Problem]:
    """Write the features of one column's cells; returns what does not fit."""
    problems: list[Problem] = []
    if column.levels is None:
        numbers, problems = parse(table, column.name, cells, decimal)
        if not problems:
            if column.lowest is not None or column.highest is not None:
                numbers = np.clip(numbers, column.lowest, column.highest)
            problems = beyond(column.name, cells, np.abs(numbers) > LARGEST, "large")
        if column.log and not problems:
            problems = beyond(column.name, cells, numbers <= -1, "log")
            numbers = np.log1p(numbers, where=numbers > -1, out=np.full(len(numbers), np.nan))
        if not problems:
            part[:, 0] = np.where(cells.present, numbers, np.nan)  # scaled, it stands at the mean
    else:
        position = {level: at for at, level in enumerate(column.levels)}
        unknown = {word for word in cells.words if word not in position}
        if unknown:
            known = f"a level that the encoding knows: {', '.join(column.levels)}"
            problems = [misfit(column.name, cells, unknown, "level", known)]
        else:
            features = np.array([position.get(word, 0) for word in cells.words] or [0])
            rows = np.flatnonzero(cells.present)
            part[rows, features[cells.codes[rows]]] = 1
    return problems


def _check_columns(encoding: Encoding, table: TextTable) -> None:
    """Refuse a table that has only some of the columns of a modality, or nothing at all."""
    known = [str(name) for name in table.frame.columns]
    held = set(known)
    lacking: list[str] = []
    absent = []
    for name, columns in encoding.modalities.items():
        gone = [column.name for column in columns if column.name not in held]
        if len(gone) < len(columns):
            lacking += gone
        else:
            absent.append(name)
    if not lacking and len(absent) == len(encoding.modalities):
        lacking = [column.name for columns in encoding.modalities.values() for column in columns]
    if lacking:
        hint = did_you_mean(lacking[0], known)
        raise DataError(
            f"{table.source}: the encoding needs {_quoted(lacking)}{hint}; the table has {_quoted(known)}"
        )


def _quoted(names: Sequence[str]) -> str:
    return listed([repr(name) for name in names])
