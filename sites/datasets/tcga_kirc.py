"""TCGA's kidney cancers: images and clinical text of MMIST-ccRCC; age, sex, RNA, copy numbers, mutations.

254 patients have both, 91 have no images, 175 images only: real missingness in both directions. The omics are
the table of PORPOISE (Chen et al. 2022), which also has the survival times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmare.errors import StudyError
from mmare.study.choices import Hazard, Kind, Scaling, TaskName
from mmare.study.outcome import TASKS, SurvivalSpec
from mmare.study.specs import ModalitySpec, TrainingSpec
from mmare.study.study import Study
from sites.datasets.mmist import (
    CLASSES,
    CLINICAL,
    EXAMS,
    MMIST_PROMPT,
    TABLE,
    chosen_exams,
    exam_vector,
    find_release,
    release_rows,
    staging_numbers,
)
from sites.datasets.porpoise import AGE, OMICS, SEX, Omics, read_omics
from sites.datasets.table import RECIPE
from sites.features import Vectors
from sites.federation import SIMULATED, Prepared, SiteTables, check_target, write_federation
from sites.manifest import ID, SPLIT
from sites.options import Grouping, KircTask, choose, kept_modalities
from sites.outcomes import EVENT, LABEL, TIME
from sites.prompts import compile_prompt
from sites.splits import three_way
from sites.table_file import read_table

__all__ = ["prepare_kirc"]

PERSON: Final = "person"  # age in years, and sex
STAGING: Final = (
    "staging"  # what the clinical text says of tumour, nodes, metastases, stage, grade, as numbers
)
_YEAR: Final = 12.0  # months

# A quarter is test, an eighth of the rest validation.
_TEST_FRACTION, _VAL_FRACTION = 0.25, 0.125


def prepare_kirc(  # noqa: PLR0913 - the flags of the command, one to one
    mmist: Path,
    omics: Path,
    out: Path,
    task: str = KircTask.SURVIVAL,
    by: str = Grouping.HOSPITAL,
    seed: int = 0,
    without: Sequence[str] = (),
    min_patients: int = 30,
    *,
    overwrite: bool = False,
) -> Prepared:
    """Write TCGA-KIRC as a federation of its hospitals.

    Args:
        mmist: Root of the MMIST-ccRCC release, or its folder ``datasets/ccRCC/Code``.
        omics: ``tcga_kirc_all_clean.csv.zip`` of PORPOISE.
        task: A `KircTask`.
        by: A `Grouping`; all patients are of one source.
        seed: Of split and study.
        without: Modalities to leave out.
        min_patients: A hospital with fewer patients goes into ``other``.

    Raises:
        StudyError: If an option is unknown, or no modality is left.
        DataError: If a file is missing or malformed, or ``out`` cannot be replaced.
    """
    wanted, grouping = choose(KircTask, task, "--task"), choose(Grouping, by, "--by")
    names = kept_modalities((*EXAMS, CLINICAL, STAGING, PERSON, *OMICS), without)
    if min_patients < 1:
        raise StudyError(f"--min-patients is {min_patients}, expected a whole number from 1 up")
    check_target(out, overwrite=overwrite)
    table = read_omics(omics)
    code = find_release(mmist)
    exams = {name: chosen_exams(code, name) for name in EXAMS}
    release = release_rows(read_table(code / TABLE), exams).set_index(ID)
    release = release[release.index.str.startswith("TCGA-")]
    rows = _joined(table, release)
    rows, settings, notes = _survival(rows) if wanted is KircTask.SURVIVAL else _vital12(rows)
    features = {
        STAGING: staging_numbers(release),
        PERSON: table.numbers([AGE, SEX]),
        **{name: table.vectors(name) for name in OMICS},
    }
    for name in EXAMS:
        held = [patient for patient in exams[name] if patient in release.index]
        features[name] = {patient: exam_vector(exams[name][patient], EXAMS[name].width) for patient in held}
    features = {name: features[name] for name in names if name != CLINICAL}
    columns = {CLINICAL: compile_prompt(MMIST_PROMPT).fields} if CLINICAL in names else {}
    rows, left_out = _with_something(rows, features, columns)
    study = Study(
        f"tcga-kirc-{wanted.value}",
        modalities=tuple(_modality(name, features) for name in names),
        seed=seed,
        **settings,
    )
    rows["site"] = _hospitals(rows[ID].tolist(), min_patients) if grouping is Grouping.HOSPITAL else "tcga"
    if study.survival is not None:
        study = study.override([f"training.recipe={RECIPE}"])
    outcome = [LABEL] if study.survival is None else [TIME, EVENT]
    rows[SPLIT] = _split(rows, outcome[-1], seed)
    written = [ID, *outcome, SPLIT, *columns.get(CLINICAL, ())]
    sites = [
        SiteTables(str(name), group[written], features, columns)
        for name, group in rows.groupby("site", sort=True)
    ]
    prepared = write_federation(out, study, sites, overwrite)
    return replace(prepared, notes=(*notes, *left_out, *prepared.notes))


def _joined(table: Omics, release: pd.DataFrame) -> pd.DataFrame:
    """Every patient of either table: times, events and the columns of the prompt; sorted by id."""
    times = pd.DataFrame({TIME: table.months, EVENT: table.died, "has_omics": "yes"})
    joined = times.join(release, how="outer").sort_index()
    joined["has_images"] = np.where(joined.index.isin(release.index), "yes", "no")
    joined["has_omics"] = joined["has_omics"].fillna("no")
    return joined.rename_axis(ID).reset_index()


def _survival(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any], tuple[str, ...]]:
    """Patients with a time."""
    known = rows[rows[TIME].notna()].copy()
    known[EVENT] = known[EVENT].astype(int)
    outcome = TASKS[TaskName.SURVIVAL]
    settings = {
        "classes": outcome.strata,
        "task": TaskName.SURVIVAL,
        "survival": SurvivalSpec(float(known[TIME].max()), horizons=(12.0, 36.0, 60.0), hazard=Hazard.COX),
        "training": TrainingSpec(select=outcome.selects[0]),
        "privacy": replace(SIMULATED, extra=()),
    }
    return known, settings, (f"{len(rows) - len(known)} patients without a time left out",)


def _vital12(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any], tuple[str, ...]]:
    """Patients of whom it is known whether they lived for a year: the release's word, else the time's."""
    dead, alive = CLASSES
    by_time = [
        alive if time > _YEAR else dead if event == 1 else None
        for time, event in zip(rows[TIME], rows[EVENT], strict=True)
    ]
    rows = rows.assign(**{LABEL: rows[LABEL].where(rows[LABEL].notna(), by_time)})
    known = rows[rows[LABEL].notna()].copy()
    settings = {
        "classes": CLASSES,
        "positive": alive,
        "training": TrainingSpec(oversample={dead: 6.0}),
        "privacy": SIMULATED,
    }
    return known, settings, (f"{len(rows) - len(known)} patients censored within a year left out",)


def _with_something(
    rows: pd.DataFrame, features: Mapping[str, Vectors], columns: Mapping[str, Sequence[str]]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Patients who have one of the modalities."""
    texts = [name for fields in columns.values() for name in fields]
    has = rows[texts].notna().any(axis=1) if texts else pd.Series(data=False, index=rows.index)
    for vectors in features.values():
        has |= rows[ID].isin(vectors.keys())
    left_out = int((~has).sum())
    notes = (f"{left_out} patients without any of the modalities left out",) if left_out else ()
    return rows[has].reset_index(drop=True), notes


def _modality(name: str, features: Mapping[str, Vectors]) -> ModalitySpec:
    if name == CLINICAL:
        return ModalitySpec(name, Kind.TEXT, 512, "hashing-text", Scaling.L2, prompt=MMIST_PROMPT)
    scaling = EXAMS[name].scaling if name in EXAMS else Scaling.ZSCORE
    return ModalitySpec(name, Kind.FEATURES, len(next(iter(features[name].values()))), scaling=scaling)


def _split(rows: pd.DataFrame, column: str, seed: int) -> NDArray[np.str_]:
    """75 % are for training and validation; stratified by outcome and by what a patient has."""
    outcome = [str(value) for value in rows[column]]
    held = [images + omics for images, omics in zip(rows["has_images"], rows["has_omics"], strict=True)]
    keys = [[f"{one}|{other}" for one, other in zip(outcome, held, strict=True)], outcome]
    return three_way(keys, seed, _TEST_FRACTION, _VAL_FRACTION)


def _hospitals(ids: Sequence[str], min_patients: int) -> list[str]:
    """The tissue source site, the second field of a barcode, in lower case."""
    hospitals = [patient.split("-")[1].lower() for patient in ids]
    sizes = Counter(hospitals)
    return [name if sizes[name] >= min_patients else "other" for name in hospitals]
