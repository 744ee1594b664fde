"""TCGA's breast cancers in the six regions of FLamby (Ogier du Terrail et al. 2022), and their genomics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from mmare.errors import DataError
from mmare.study.choices import Hazard, Kind, Scaling, TaskName
from mmare.study.outcome import TASKS, SurvivalSpec
from mmare.study.specs import ModalitySpec, TrainingSpec
from mmare.study.study import Study
from mmare.wire.messages import Split
from sites.datasets.porpoise import OMICS, read_omics
from sites.datasets.table import RECIPE
from sites.features import Vectors
from sites.federation import SIMULATED, Prepared, SiteTables, check_target, write_federation
from sites.manifest import ID, SPLIT
from sites.options import kept_modalities
from sites.outcomes import EVENT, TIME, parse_times
from sites.splits import stratified_split
from sites.table_file import read_table
from sites.tabular import TextTable, finite_number

__all__ = ["prepare_brca"]

CLINICAL: Final = "clinical"
_TABLE, _CENTERS, _SPLIT = "brca.csv", "centers.csv", "train_test_split.csv"
_OMICS_FILE: Final = "tcga_brca_all_clean.csv.zip"
_VAL_FRACTION: Final = 0.125  # of the train patients of FLamby


def prepare_brca(
    source: Path, out: Path, seed: int = 0, without: Sequence[str] = (), *, overwrite: bool = False
) -> Prepared:
    """Write TCGA-BRCA as a federation of regions, with FLamby's test patients.

    Args:
        source: Folder of FLamby's tables and, unless all genomics are left out, that of PORPOISE.
        seed: Of the validation patients, an eighth of FLamby's train patients, and of the study.
        without: Modalities to leave out.

    Raises:
        StudyError: If no modality is left, or one is unknown.
        DataError: If a file is missing or malformed, or ``out`` cannot be replaced.
    """
    names = kept_modalities((CLINICAL, *OMICS), without)
    check_target(out, overwrite=overwrite)
    table = read_table(source / _TABLE)
    ids = table.require_unique("pid")
    times, events = parse_times(table, "T", "E")
    folds = _column(read_table(source / _SPLIT), "pid", "fold")
    regions = _column(read_table(source / _CENTERS), "TSS Code", "Region")
    features: dict[str, Vectors] = {CLINICAL: _clinical(table, ids)}
    if set(names) & set(OMICS):
        omics = read_omics(source / _OMICS_FILE)
        features |= {name: omics.vectors(name) for name in OMICS}
    features = {name: features[name] for name in names}
    rows = pd.DataFrame({ID: ids, TIME: times, EVENT: [int(event) for event in events]})
    rows[SPLIT] = [folds.get(patient) for patient in ids]
    rows["site"] = [regions.get(patient.split("-")[1]) for patient in ids]
    has = np.logical_or.reduce([rows[ID].isin(vectors.keys()) for vectors in features.values()])
    kept = rows[rows[SPLIT].notna() & rows["site"].notna() & has].reset_index(drop=True)
    kept[SPLIT] = _with_validation(kept, seed)
    outcome = TASKS[TaskName.SURVIVAL]
    study = Study(
        "tcga-brca",
        outcome.strata,
        tuple(
            ModalitySpec(name, Kind.FEATURES, len(next(iter(vectors.values()))), scaling=Scaling.ZSCORE)
            for name, vectors in features.items()
        ),
        seed=seed,
        training=TrainingSpec(select=outcome.selects[0]),
        privacy=replace(SIMULATED, extra=()),
        task=TaskName.SURVIVAL,
        survival=SurvivalSpec(max(times), unit="days", horizons=(1095.0, 1825.0), hazard=Hazard.COX),
    )
    study = study.override([f"training.recipe={RECIPE}"])
    sites = [
        SiteTables(str(name), group[[ID, TIME, EVENT, SPLIT]], features)
        for name, group in kept.groupby("site", sort=True)
    ]
    prepared = write_federation(out, study, sites, overwrite)
    left_out = len(rows) - len(kept)
    return replace(prepared, notes=(f"{left_out} patients outside FLamby's split left out", *prepared.notes))


def _column(table: TextTable, key: str, value: str) -> dict[str, str]:
    return dict(zip(table.require_unique(key), table.require(value), strict=True))


def _clinical(table: TextTable, ids: Sequence[str]) -> Vectors:
    """FLamby's one-hot columns and the age."""
    columns = [str(name) for name in table.frame.columns if name not in {"pid", "T", "E"}]
    cells = {name: [finite_number(cell) for cell in table.require(name)] for name in columns}
    for name, numbers in cells.items():
        if None in numbers:
            raise DataError(f"{table.where(numbers.index(None))}: {name} is text, expected a number")
    matrix = np.array(list(cells.values()), dtype=np.float32).T
    return dict(zip(ids, matrix, strict=True))


def _with_validation(rows: pd.DataFrame, seed: int) -> list[str]:
    """FLamby's split, with an eighth of the train patients for validation, by region and event."""
    splits = [str(split) for split in rows[SPLIT]]
    train = [row for row, split in enumerate(splits) if split == Split.TRAIN]
    events = [str(rows[EVENT][row]) for row in train]
    regions = [f"{rows['site'][row]}|{event}" for row, event in zip(train, events, strict=True)]
    for position in np.flatnonzero(stratified_split([regions, events], _VAL_FRACTION, seed)).tolist():
        splits[train[position]] = Split.VAL.value
    return splits
