"""The manifest: one row per patient, validated when read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmare.errors import DataError
from mmare.wire.messages import Split
from sites.numbers import Problem, refuse
from sites.splits import three_way
from sites.table_file import read_table
from sites.tabular import TextTable, finite_number

__all__ = [
    "ID",
    "LABEL",
    "SPLIT",
    "Manifest",
    "Patients",
    "load_manifest",
    "load_patients",
    "parse_labels",
    "parse_splits",
    "patients_in",
    "read_labels",
]

ID, LABEL, SPLIT = "patient_id", "label", "split"

_MOST_NAMED = 5  # wrong values in a sentence
# Without a split column 6:1:3 is drawn: three tenths are test, a seventh of the rest validation.
_TEST_FRACTION, _VAL_FRACTION = 0.3, 1 / 7


@dataclass(frozen=True)
class Patients:
    """The patients of one table, in file order."""

    source: Path
    patient_ids: tuple[str, ...]  # unique
    table: pd.DataFrame  # every column of the file as text, blank cells missing


@dataclass(frozen=True)
class Manifest(Patients):
    """The patients of one site, of whom the outcome is known."""

    labels: NDArray[np.int64]  # (n_patients,) index in the study's classes
    splits: NDArray[np.str_]  # (n_patients,) values of `Split`


def load_patients(path: Path) -> Patients:
    """Read a table of patients whose outcome need not be known.

    Raises:
        DataError: If the file is missing, unreadable or empty, or a patient id is blank or repeated.
    """
    return patients_in(read_table(path))


def patients_in(table: TextTable) -> Patients:
    """The patients of a table that was read; raises as `load_patients`."""
    ids = table.require_unique(ID)
    if not ids:
        raise DataError(f"{table.source}: no patient, expected at least one row under the header")
    return Patients(table.source, tuple(ids), table.frame)


def load_manifest(path: Path, classes: Sequence[str], seed: int | Callable[[], int]) -> Manifest:
    """Read ``patients.csv``; without a split column, draw one from ``seed``, 6:1:3, stratified by label.

    Raises:
        DataError: If the file is missing, unreadable or empty, a column is missing, a patient id is blank or
            repeated, or a label or split is blank or unknown.
    """
    table = read_table(path)
    patients = patients_in(table)
    names = parse_labels(table, LABEL, classes)
    if SPLIT in table.frame.columns:
        splits = parse_splits(table, SPLIT)
    else:
        drawn_from = seed if isinstance(seed, int) else seed()  # called only where it is needed
        splits = three_way([names], drawn_from, _TEST_FRACTION, _VAL_FRACTION)
    index = {name: label for label, name in enumerate(classes)}
    labels = np.array([index[name] for name in names], dtype=np.int64)
    return Manifest(path, patients.patient_ids, table.frame, labels, splits)


def parse_labels(table: TextTable, column: str, classes: Sequence[str]) -> list[str]:
    """The class name of each row; a number is the class of the same value, so ``1.0`` is ``1``.

    Raises:
        DataError: If a label is blank, or for all labels that are not in ``classes``.
    """
    names, problems = read_labels(table, column, classes)
    refuse(table, problems)
    return names


def read_labels(table: TextTable, column: str, classes: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """As `parse_labels`, with the labels that are no class instead of an error about them."""
    names = [name if name in classes else _same_number(name, classes) for name in table.require(column)]
    return names, _others(column, names, classes, f"one of the study's classes {', '.join(classes)}")


def _others(column: str, values: Sequence[str], known: Collection[str], expected: str) -> list[Problem]:
    """What a column holds beside the known values, the first spellings of very many."""
    counts = Counter(value for value in values if value not in known)
    if len(counts) > _MOST_NAMED:
        expected += f" ({len(counts) - _MOST_NAMED} more values are none either)"
    return [
        Problem(column, "value", values.index(value), value, count, expected)
        for value, count in islice(counts.items(), _MOST_NAMED)
    ]


def _same_number(name: str, classes: Sequence[str]) -> str:
    """The one class that is the same number, if there is one; otherwise the name."""
    number = finite_number(name)
    same = [known for known in classes if number is not None and finite_number(known) == number]
    return same[0] if len(same) == 1 else name


def parse_splits(table: TextTable, column: str) -> NDArray[np.str_]:
    """The split of each row, ``(n_rows,)`` values of `Split`.

    Raises:
        DataError: If a cell is blank, or for all that are not a `Split`.
    """
    values = table.require(column)
    refuse(table, _others(column, values, list(Split), f"one of {', '.join(Split)}"))
    return np.array(values, dtype="<U5")
