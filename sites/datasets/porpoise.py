"""Tables of PORPOISE (Chen et al. 2022): RNA, copy numbers, mutations and survival of TCGA's cancers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from mmare.errors import DataError
from sites.features import Vectors

__all__ = ["AGE", "OMICS", "SEX", "Omics", "read_omics"]

AGE, SEX, MONTHS, CENSORED = "age", "is_female", "survival_months", "censorship"
OMICS: Final = {"rna": "_rnaseq", "cnv": "_cnv", "mutations": "_mut"}  # ends of columns by modality


@dataclass(frozen=True)
class Omics:
    """One table.

    Args:
        source: Its file.
        rows: One per patient, indexed by id; every column but a few holds numbers.
    """

    source: Path
    rows: pd.DataFrame

    @property
    def months(self) -> pd.Series[float]:
        """Time of each patient."""
        return self.rows[MONTHS]

    @property
    def died(self) -> pd.Series[int]:
        """Whether it ends with the patient's death."""
        return 1 - self.rows[CENSORED].astype(int)

    def vectors(self, name: str) -> Vectors:
        """Of a modality of `OMICS`, by patient; NaN is a blank cell."""
        return self.numbers([column for column in self.rows.columns if column.endswith(OMICS[name])])

    def numbers(self, columns: list[str]) -> Vectors:
        """Some columns, by patient."""
        return dict(zip(self.rows.index, self.rows[columns].to_numpy(dtype=np.float32), strict=True))


def read_omics(path: Path) -> Omics:
    """Read a table; of several slides of a patient, which have the same numbers, the first is taken.

    Raises:
        DataError: If it is missing or cannot be read, lacks a column, or holds text, a time below zero or
            another code of censoring than 0 and 1.
    """
    try:
        frame = pd.read_csv(path, low_memory=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected a table of PORPOISE") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({type(error).__name__})") from None
    for name in ("case_id", AGE, SEX, MONTHS, CENSORED):
        if name not in frame.columns:
            raise DataError(f"{path}: no column {name!r}, expected a table of PORPOISE")
    for name, end in OMICS.items():
        if not any(column.endswith(end) for column in frame.columns):
            raise DataError(f"{path}: no column …{end}, expected those of {name}")
    rows = frame.drop_duplicates("case_id").set_index("case_id")
    _check_numbers(path, rows)
    return Omics(path, rows)


def _check_numbers(path: Path, rows: pd.DataFrame) -> None:
    for column in rows.columns:
        wanted = column in {AGE, SEX, MONTHS, CENSORED} or column.endswith(tuple(OMICS.values()))
        if wanted and not pd.api.types.is_numeric_dtype(rows[column]):
            raise DataError(f"{path}: column {column!r} holds text, expected numbers")
    for column, fine, expected in (
        (MONTHS, rows[MONTHS] >= 0, "a time of at least 0"),
        (CENSORED, rows[CENSORED].isin([0, 1]), "0 or 1"),
    ):
        if not fine.all():
            patient = rows.index[~fine][0]
            value = rows.loc[patient, column]
            raise DataError(f"{path}: {column} of {patient} is {value}, expected {expected}")
