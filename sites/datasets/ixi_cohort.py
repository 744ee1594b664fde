"""Select IXI subjects from file names and the demographic table alone.

The selection is that of the thesis (section 5.1.4), inferred from its counts: 516 subjects.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mmare.errors import DataError
from sites.manifest import ID
from sites.table_file import read_table
from sites.tabular import TextTable, cell_text, unknown_column

__all__ = [
    "CONTRASTS",
    "EPOCHS",
    "IXI_COLUMNS",
    "SEXES",
    "Cohort",
    "Subject",
    "find_volumes",
    "index_volumes",
    "read_demographics",
    "select_cohort",
]

CONTRASTS = ("t1", "t2", "pd", "mra")
SEXES = ("male", "female")

# As in the thesis's Table 5.1; its text says adolescence, adulthood and early aging.
EPOCHS = ("young", "mid", "old")
EPOCH_STARTS = (32.0, 66.0)  # years: turning points of the brain's topology; the first epoch has no lower end

# Values outside are typing errors and are treated as missing.
PLAUSIBLE: Mapping[str, tuple[float, float]] = {
    "HEIGHT": (100.0, 230.0),  # cm; the table has 75, 1520 and 1850
    "WEIGHT": (30.0, 250.0),  # kg; the table has 710 and 960
    "AGE": (10.0, 110.0),  # years
}

_ID, _SEX, _AGE, _ETHNIC = "IXI_ID", "SEX_ID (1=m, 2=f)", "AGE", "ETHNIC_ID"
_SEX_CODES = {"1": "male", "2": "female"}
_MEASURES = {"height": "HEIGHT", "weight": "WEIGHT"}

# Field of the prompts -> (column, words by code), as on the code sheets of IXI.xls in the words of the thesis
# (less the dash of its "-work for pay at home"). 0 means missing. ETHNIC_ID 2 occurs but is on no sheet.
_CODES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "ethnicity": (
        _ETHNIC,
        {
            "1": "White",
            "3": "Asian or Asian British",
            "4": "Black or Black British",
            "5": "Chinese",
            "6": "Other",
        },
    ),
    "marital": (
        "MARITAL_ID",
        {"1": "single", "2": "married", "3": "cohabiting", "4": "divorced or separated", "5": "widowed"},
    ),
    "occupation": (
        "OCCUPATION_ID",
        {
            "1": "go out to full time employment",
            "2": "go out to part time employment (<25hrs)",
            "3": "study at college or university",
            "4": "full-time housework",
            "5": "retired",
            "6": "unemployed",
            "7": "work for pay at home",
            "8": "other",
        },
    ),
    "education": (
        "QUALIFICATION_ID",
        {
            "1": "no qualifications",
            "2": "O-levels, GCSEs, or CSEs",
            "3": "A-levels",
            "4": "further education (City & Guilds / NVQs)",
            "5": "university or polytechnic degree",
        },
    ),
}
IXI_COLUMNS = (_ID, _SEX, *_MEASURES.values(), *(column for column, _ in _CODES.values()), _AGE)
_MISSING = (None, "0")

_TABLES = ("IXI.xls", "IXI.xlsx", "IXI.csv")
_SHEET = "Table"
_VOLUME = re.compile(r"IXI(\d+)-(Guys|HH|IOP)-\d+[-_](T1|T2|PD|MRA)\.nii(\.gz)?")
_EXAMPLE = "IXI012-HH-1211-T1.nii.gz"


@dataclass(frozen=True)
class Subject:
    """One subject, from its file names."""

    hospital: str  # Guys, HH or IOP
    volumes: Mapping[str, Path]  # by contrast


@dataclass(frozen=True)
class Cohort:
    """The selected subjects, in the order of the table.

    A row has ``patient_id``, ``site``, ``sex``, ``epoch``, a `Path` or ``None`` per contrast, and text or
    ``None`` per field of the prompts.
    """

    rows: pd.DataFrame
    steps: tuple[tuple[int, str], ...]  # of the selection: rows left, and the rule
    notes: tuple[str, ...]  # on values treated as missing


def read_demographics(source: Path) -> TextTable:
    """Read the demographic table of an IXI folder: sheet ``Table`` of ``IXI.xls``, or ``IXI.csv``.

    Raises:
        DataError: If it is missing or unreadable, or lacks a column.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder, expected one with {_TABLES[0]} and the IXI volumes")
    path = next((source / name for name in _TABLES if (source / name).is_file()), None)
    if path is None:
        raise DataError(f"{source}: no demographic table, expected {' or '.join(_TABLES)} in it")
    table = read_table(path) if path.suffix == ".csv" else _read_sheet(path)
    for column in IXI_COLUMNS:
        if column not in table.frame.columns:
            raise unknown_column(path, column, table.frame.columns)
    return table


def find_volumes(source: Path) -> tuple[Path, ...]:
    """Find all files below a folder, links included, that are named like an IXI volume; sorted.

    Raises:
        DataError: If there is none, or a folder cannot be read.
    """
    found: list[Path] = []
    entered: set[str] = set()
    n_files = 0

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})")

    for folder, folders, files in os.walk(source, onerror=refuse, followlinks=True):
        if os.path.realpath(folder) in entered:  # a link cycle
            folders.clear()
            continue
        entered.add(os.path.realpath(folder))
        n_files += len(files)
        found += [Path(folder) / name for name in files if _VOLUME.fullmatch(name)]
    if not found:
        raise DataError(
            f"{source}: none of the {n_files} files in it and its sub-folders is named like an IXI volume, "
            f"expected such as {_EXAMPLE}"
        )
    return tuple(sorted(found))


def index_volumes(files: Iterable[Path]) -> dict[int, Subject]:
    """Group volumes by IXI number, from their names; other names are ignored.

    Raises:
        DataError: If a subject has two volumes of one contrast, or volumes of two hospitals.
    """
    hospitals: dict[int, str] = {}
    volumes: dict[int, dict[str, Path]] = {}
    for file in files:
        match = _VOLUME.fullmatch(file.name)
        if match is None:
            continue
        number, hospital, contrast = int(match[1]), match[2], match[3].lower()
        held = volumes.setdefault(number, {})
        if contrast in held:
            raise DataError(
                f"{file}: subject IXI{number:03d} has two {match[3]} volumes, the other is "
                f"{held[contrast]}; expected one"
            )
        if hospitals.setdefault(number, hospital) != hospital:
            other = next(iter(held.values()))
            raise DataError(
                f"{file}: subject IXI{number:03d} has volumes of two hospitals, another is {other}; "
                "expected one hospital per subject"
            )
        held[contrast] = file
    return {number: Subject(hospitals[number], held) for number, held in volumes.items()}


def select_cohort(table: TextTable, subjects: Mapping[int, Subject], *, complete: bool = True) -> Cohort:
    """Select the subjects that take part.

    Args:
        table: With the columns `IXI_COLUMNS`.
        subjects: By IXI number.
        complete: Only subjects with all four contrasts and a known ethnicity, as in the thesis; otherwise
            those with any contrast. An age and a unique number are always required.

    Raises:
        DataError: If no subject is left, or a cell is invalid.
    """
    numbers = [_whole(table, row, cell) for row, cell in enumerate(table.require(_ID))]
    ages, odd_ages = _measure(table, _AGE)
    ethnic = table.column(_ETHNIC)
    held = [subjects[number].volumes if number in subjects else {} for number in numbers]
    times = Counter(numbers)
    rules: tuple[tuple[bool, str, Callable[[int], bool]], ...] = (  # (applies, what is kept, rule), in order
        (True, "rows of the table have volumes", lambda row: bool(held[row])),
        (complete, "of them all four contrasts", lambda row: len(held[row]) == len(CONTRASTS)),
        (True, "an id that is in one row only", lambda row: times[numbers[row]] == 1),  # else which is right?
        (True, "an age", lambda row: ages[row] is not None),
        (complete, "an ethnicity", lambda row: ethnic[row] not in _MISSING),
    )
    rows = list(range(len(numbers)))
    steps: list[tuple[int, str]] = []
    for applies, words, keeps in rules:
        if applies:
            rows = [row for row in rows if keeps(row)]
            steps.append((len(rows), words))
    if not rows:
        raise _nobody(table, steps, complete=complete)
    content, notes = _fields(table, rows)
    if unlisted := len(set(subjects) - set(numbers)):
        notes.append(f"subjects with volumes that are not in the table: {unlisted}")
    notes += [
        f"IXI{numbers[row]:03d}: {_AGE} {cell} is impossible, treated as missing"
        for row, cell in odd_ages.items()
    ]
    known = [age for row in rows if (age := ages[row]) is not None]
    content |= {
        ID: [f"IXI{numbers[row]:03d}" for row in rows],
        "site": [subjects[numbers[row]].hospital for row in rows],
        "epoch": [EPOCHS[int(np.searchsorted(EPOCH_STARTS, age, side="right"))] for age in known],
        "age": [str(math.floor(age)) for age in known],  # completed years
    }
    content |= {name: [held[row].get(name) for row in rows] for name in CONTRASTS}
    return Cohort(pd.DataFrame(content, dtype=object), tuple(steps), tuple(notes))


def _nobody(table: TextTable, steps: Sequence[tuple[int, str]], *, complete: bool) -> DataError:
    left = ", ".join(f"{number} {words}" for number, words in steps)
    hint = (
        f"; expected one with all of {', '.join(CONTRASTS)}; --keep-incomplete takes any" if complete else ""
    )
    return DataError(f"{table.source}: no subject is left: {left}{hint}")


def _fields(table: TextTable, rows: Sequence[int]) -> tuple[dict[str, list[object]], list[str]]:
    """Sex, measures and decoded columns of some rows, with notes on values treated as missing."""
    content: dict[str, list[object]] = {}
    notes: list[str] = []
    sexes = table.column(_SEX)
    for row in rows:
        if sexes[row] not in _SEX_CODES:
            raise DataError(f"{table.where(row)}: {_SEX} is {sexes[row]!r}, expected 1 or 2")
    content["sex"] = [_SEX_CODES[str(sexes[row])] for row in rows]
    chosen = set(rows)
    for name, column in _MEASURES.items():
        values, odd = _measure(table, column)
        content[name] = [None if (value := values[row]) is None else f"{value:g}" for row in rows]
        low, high = PLAUSIBLE[column]
        if cells := [cell for row, cell in odd.items() if row in chosen]:
            notes.append(
                f"{column} {', '.join(cells)}: impossible (expected {low:g} to {high:g}), "
                f"treated as missing in {len(cells)} of {len(rows)} subjects"
            )
    for name, (column, words) in _CODES.items():
        codes = table.column(column)
        content[name] = [words.get(str(codes[row])) for row in rows]
        unknown = [code for row in rows if (code := codes[row]) not in _MISSING and code not in words]
        notes += [
            f"{column} {code}: no meaning in the code book, "
            f"treated as missing in {number} of {len(rows)} subjects"
            for code, number in sorted(Counter(unknown).items())
        ]
    return content, notes


def _measure(table: TextTable, column: str) -> tuple[list[float | None], dict[int, str]]:
    """A column of numbers (``None`` if missing or impossible), and the impossible cells by row."""
    low, high = PLAUSIBLE[column]
    values: list[float | None] = []
    odd: dict[int, str] = {}
    for row, cell in enumerate(table.column(column)):
        value = None
        if cell not in _MISSING:
            try:
                value = float(cell)
            except ValueError:
                raise DataError(f"{table.where(row)}: {column} is {cell!r}, expected a number") from None
            if not low <= value <= high:
                odd[row] = cell
                value = None
        values.append(value)
    return values, odd


def _whole(table: TextTable, row: int, cell: str) -> int:
    if not cell.isdecimal():
        raise DataError(f"{table.where(row)}: {_ID} is {cell!r}, expected a whole number")
    return int(cell)


def _read_sheet(path: Path) -> TextTable:
    """Read the sheet ``Table`` as text. pandas needs calamine for the old ``.xls``."""
    try:
        frame = pd.read_excel(path, sheet_name=_SHEET, dtype=object, engine="calamine")
    except ImportError:
        raise DataError(
            f"{path}: reading it needs the package python-calamine, expected it installed"
        ) from None
    except Exception as error:  # calamine has its own errors
        raise DataError(
            f"{path}: cannot be read, expected an Excel file with a sheet {_SHEET!r} "
            f"({type(error).__name__}: {error})"
        ) from None
    columns = {str(name).strip(): [cell_text(value) for value in frame[name]] for name in frame.columns}
    return TextTable(path, pd.DataFrame(columns, columns=list(columns), dtype="str"))
