"""The manifest: one row per patient, validated when read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmare.errors import DataError
from mmare.study.study import Study
from mmare.wire.messages import Split
from sites.numbers import refuse
from sites.outcomes import read_outcomes, unknown_values
from sites.splits import three_way
from sites.table_file import read_table
from sites.tabular import TextTable

__all__ = [
    "ID",
    "SPLIT",
    "Manifest",
    "Patients",
    "load_manifest",
    "load_patients",
    "parse_splits",
    "patients_in",
]

ID, SPLIT = "patient_id", "split"

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

    labels: (
        NDArray[np.int64] | NDArray[np.float32]
    )  # (n_patients,) index in the study's classes, or a time as a code
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


def load_manifest(path: Path, study: Study, seed: int | Callable[[], int] | None = None) -> Manifest:
    """Read ``patients.csv``; without a split column, draw one, 6:1:3, stratified by class or event.

    ``seed`` draws it, by default that of the study.

    Raises:
        DataError: If the file is missing, unreadable or empty, a column is missing, a patient id is blank or
            repeated, or a label, time, event or split is blank or unknown.
    """
    table = read_table(path)
    patients = patients_in(table)
    outcomes = read_outcomes(table, study)
    if SPLIT in table.frame.columns:
        splits = parse_splits(table, SPLIT)
    else:
        drawn_from = seed() if callable(seed) else seed  # called only where it is needed
        drawn_from = study.seed if drawn_from is None else drawn_from
        splits = three_way([outcomes.strata], drawn_from, _TEST_FRACTION, _VAL_FRACTION)
    return Manifest(path, patients.patient_ids, table.frame, outcomes.labels, splits)


def parse_splits(table: TextTable, column: str) -> NDArray[np.str_]:
    """The split of each row, ``(n_rows,)`` values of `Split`.

    Raises:
        DataError: If a cell is blank, or for all that are not a `Split`.
    """
    values = table.require(column)
    refuse(table, unknown_values(column, values, list(Split), f"one of {', '.join(Split)}"))
    return np.array(values, dtype="<U5")
