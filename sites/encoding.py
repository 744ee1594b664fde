"""How the columns of a table become vectors, kept in a file: any other table is encoded alike.

encoding = load_encoding(Path("encoding.json"))
encoded = encode(encoding, read_table(Path("new-patients.csv")))["lab"]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmare.errors import DataError
from mmare.study.tables import TableError, from_table
from sites.numbers import LARGEST, Cells, Problem, beyond, cells_of, misfit, parse, refuse
from sites.tabular import TextTable, did_you_mean, listed

__all__ = ["ENCODING_FILE", "Column", "Encoded", "Encoding", "encode", "load_encoding"]

ENCODING_FILE = "encoding.json"
_VERSION = 1


@dataclass(frozen=True)
class Column:
    """How one column becomes features: the number or one 0/1 feature a level, then perhaps one of blanks."""

    name: str
    levels: tuple[str, ...] | None = None  # words, in feature order; none: the column holds numbers
    blanks: bool = False  # whether a 0/1 feature says that the cell is blank
    missing: tuple[str, ...] = ()  # cells that mean missing; numbers in any spelling
    lowest: float | None = None  # smaller numbers become this one
    highest: float | None = None
    log: bool = False  # log(1 + x), after the clipping

    @property
    def width(self) -> int:
        """Number of features."""
        return (1 if self.levels is None else len(self.levels)) + self.blanks


@dataclass(frozen=True)
class Encoding:
    """The columns of each modality, in slot order and feature order."""

    modalities: Mapping[str, tuple[Column, ...]]

    def width(self, modality: str) -> int:
        """Number of features of a modality."""
        return sum(column.width for column in self.modalities[modality])

    def fingerprint(self, modality: str) -> str:
        """Of everything that decides a modality's vectors; equal on all machines.

        Raises:
            DataError: If the encoding has no such modality.
        """
        if modality not in self.modalities:
            raise DataError(f"the encoding has no modality {modality!r}, only {', '.join(self.modalities)}")
        content = [_VERSION, [vars(column) for column in self.modalities[modality]]]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def text(self) -> str:
        """The content of the file that `load_encoding` reads; entries that say nothing are left out."""
        plain = Column("")
        columns = {
            name: [
                {key: value for key, value in vars(column).items() if value != getattr(plain, key)}
                for column in group
            ]
            for name, group in self.modalities.items()
        }
        content = {"version": _VERSION, "modalities": columns}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Encoded:
    """One modality of a table's rows."""

    present: NDArray[np.bool_]  # (N,) whether any column is not blank
    matrix: NDArray[np.float32]  # (N, width); rows of patients who lack the modality mean nothing


@dataclass(frozen=True)
class _File:
    version: int
    modalities: Mapping[str, tuple[Column, ...]]


def load_encoding(path: Path) -> Encoding:
    """Read an encoding.

    Raises:
        DataError: If the file is missing, is no encoding, or is of a later version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such encoding file") from None
    except (OSError, ValueError) as error:  # also of text that is not UTF-8 or not JSON
        raise DataError(f"{path}: cannot be read as an encoding ({error})") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != _VERSION:
        raise DataError(f"{path}: version is {version!r}, expected {_VERSION} as this program writes it")
    try:
        encoding = Encoding(from_table(_File, content, "the encoding").modalities)
    except TableError as error:
        raise DataError(f"{path}: {error}") from None
    for name, columns in encoding.modalities.items():
        names = [column.name for column in columns]
        if not columns or len(set(names)) < len(names):
            raise DataError(f"{path}: modality {name!r} has no column, or one twice")
        for column in columns:
            if column.levels is not None and len(set(column.levels)) < len(column.levels):
                raise DataError(f"{path}: column {column.name!r} has a level twice")
    return encoding


def encode(
    encoding: Encoding, table: TextTable, decimal: str = ".", missing: Mapping[str, Sequence[str]] = {}
) -> dict[str, Encoded]:
    """The rows of a table as vectors; columns that the encoding does not know are not looked at.

    A modality none of whose columns is in the table is absent in every row.

    Args:
        decimal: What separates decimals in text files, ``.`` or ``,``.
        missing: Cells of this table that mean missing, by column, besides those of the encoding.

    Raises:
        DataError: For all at once: columns that the table lacks, cells that are no number, levels and blanks
            that the encoding does not know.
    """
    _check_columns(encoding, table)
    problems: list[Problem] = []
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
            part[:, 0] = np.where(cells.present, numbers, 0)
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
