"""The official MMIST-ccRCC release as a federation: CT, MRI, whole-slide features and a clinical prompt.

The release has no code book; the codes were inferred from cross tables with stage and source. As in the
thesis, the prompt omits cancer history and the clinical M category.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmare.errors import DataError, StudyError
from mmare.study.choices import Kind, PromptMode, Scaling, Scans
from mmare.study.specs import ModalitySpec, TrainingSpec
from mmare.study.study import Study
from mmare.wire.messages import Split
from sites.federation import SIMULATED, Prepared, SiteTables, check_target, write_federation
from sites.manifest import ID, SPLIT, parse_splits
from sites.missing.amputate import Embed, take_away
from sites.missing.plan import Missingness
from sites.options import Cohort, Exams, Grouping, SplitScheme, choose, kept_modalities
from sites.outcomes import LABEL
from sites.prompts import compile_prompt
from sites.splits import stratified_split, three_way
from sites.table_file import read_table
from sites.tabular import TextTable

__all__ = [
    "CLASSES",
    "CLINICAL",
    "EXAMS",
    "MMIST_PROMPT",
    "TABLE",
    "chosen_exams",
    "exam_vector",
    "find_release",
    "prepare_mmist",
    "release_rows",
    "staging_numbers",
]

CLASSES = ("dead", "alive")  # index = the release's vital_status_12
CLINICAL = "clinical"

# An eighth of the non-test patients is validation, as in the thesis's 70/10/20 scheme.
_VAL_FRACTION = 0.125

# Without this patient the release has the thesis's counts: 617 patients, 74 dead, 496 in train.
_NOT_IN_THESIS = "TCGA-B0-4713"

_INNER = Path("datasets") / "ccRCC" / "Code"
TABLE = "clinical+genomic_split.csv"

# Each sentence consists of groups, so that it stays grammatical when a part is missing.
_TTN = "[ {ttn}|| and an unknown TTN status]"
_NODES = "[ with node involvement at stage {pn}|| with node involvement at a stage that is not available]"
_METASTASIS = (
    "[ and pathological metastasis at stage {pm}"
    "|| and pathological metastasis at a stage that is not available]"
)
MMIST_PROMPT = (
    "The patient is [a {sex}|a person[ of {sex} sex|| (sex not available)]]"
    "[ of {race} race|| whose race is not available]"
    "[, diagnosed at age {age}||, whose age at diagnosis is not available]"
    "[, who has {vhl}[ and {pbrm1}|| and an unknown PBRM1 status]" + _TTN + "|"
    ", who has[ {vhl} and|| an unknown VHL status and] {pbrm1}" + _TTN + "|"
    "[, who has {vhl} and {pbrm1}||, who has unknown VHL and PBRM1 statuses], {ttn}||"
    ", whose VHL, PBRM1 and TTN mutation status is not available]."
    "[ Tumor characteristics include tumor stage {pt}" + _NODES + _METASTASIS + ".|"
    " Tumor characteristics include[ tumor stage {pt} with|| a tumor stage that is not available with]"
    " node involvement at stage {pn}" + _METASTASIS + ".|"
    " Tumor characteristics include[ tumor stage {pt} and|| tumor and node stages that are not available and]"
    " pathological metastasis at stage {pm}.||"
    " The tumor, node and metastasis stages are not available.]"
    "[ The [overall tumor stage is {stage} and the ||overall tumor stage is not available and the ]"
    "tumor grade is {grade}.|"
    " The overall tumor stage is {stage}"
    "[ and the tumor grade is {grade}|| and the tumor grade is not available].||"
    " The overall tumor stage and the tumor grade are not available.]"
)


@dataclass(frozen=True)
class _Exams:
    """Where the vectors of one imaging modality are."""

    width: int
    scaling: Scaling
    chosen: str  # table of the exam that the release chose for each patient
    folder: str
    listed: str | None = None  # table of all exams: a patient's k-th row is file ID-k.npz


EXAMS = {
    "ct": _Exams(
        512, Scaling.ZSCORE, "CT_patientfiles.csv", "CT Features", "patients_with_labels_CT_final.csv"
    ),
    "mri": _Exams(
        512, Scaling.ZSCORE, "MRI_patientfiles.csv", "MRI Features", "patients_with_labels_MR_final.csv"
    ),
    "wsi": _Exams(1024, Scaling.L2, "WSI_patientfiles.csv", "WSI Features"),
}

_T = ("T1", "T1a", "T1b", "T2", "T2a", "T2b", "T3", "T3a", "T3b", "T3c", "T4")
_RACES = ("Asian", "Black or African American", "Hispanic or Latino", "White", "other")

# Manifest column -> (column of the release, words by code); a code of -1 and a blank cell mean missing.
CODES: Mapping[str, tuple[str, Mapping[int, str]]] = {
    "sex": ("gender", {0: "female", 1: "male"}),
    "age": ("age_diag", {decade: f"{10 * decade + 10}-{10 * decade + 19}" for decade in range(1, 9)}),
    "pt": ("ajcc_path_tumor_pt", dict(enumerate(_T, start=1))),
    "pn": ("ajcc_path_nodes_pn", {0: "NX", 1: "N0", 2: "N1"}),
    "pm": ("ajcc_path_metastasis_pm", {0: "MX", 1: "M0", 2: "M1"}),
    "stage": ("ajcc_path_tumor_stage", {1: "I", 2: "II", 3: "III", 4: "IV"}),
    "grade": ("grade", {1: "G1", 2: "G2", 3: "G3", 4: "G4", 5: "GX"}),
    "vhl": ("VHL_mutation", {0: "no VHL mutation", 1: "a VHL mutation"}),
    # The release spells the gene PBMR1; it is PBRM1.
    "pbrm1": ("PBMR1_mutation", {0: "no PBRM1 mutation", 1: "a PBRM1 mutation"}),
    "ttn": ("TTN_mutation", {0: "without a TTN mutation", 1: "with a TTN mutation"}),
}

# What a pathologist says, as ranks; NX, MX and GX mean not assessed
STAGING = ("pt", "pn", "pm", "stage", "grade")
_NOT_ASSESSED = {"NX", "MX", "GX"}


def prepare_mmist(  # noqa: PLR0913 - the flags of the command, one to one
    source: Path,
    out: Path,
    by: str = Grouping.SOURCE,
    split: str = SplitScheme.STRATIFIED,
    cohort: str = Cohort.RELEASE,
    seed: int = 0,
    without: Sequence[str] = (),
    min_patients: int = 30,
    *,
    prompt_mode: PromptMode = PromptMode.OMIT,
    scans: str = Exams.CHOSEN,
    missing: Missingness = Missingness(),  # noqa: B008 - frozen; removes nothing
    overwrite: bool = False,
    embed: Embed | None = None,
) -> Prepared:
    """Write the MMIST-ccRCC release as a federation folder.

    Args:
        source: Root of the release, or its folder ``datasets/ccRCC/Code``.
        by: A `Grouping`: sites ``tcga`` and ``cptac``, or TCGA's hospitals and ``cptac``.
        split: A `SplitScheme`.
        cohort: A `Cohort`.
        seed: Of split, amputation and study.
        min_patients: A TCGA hospital with fewer patients goes into ``tcga-other``.
        scans: Of `Exams`; of several exams of a patient the study takes the mean.
        missing: What to remove; mar is driven by the tumor grade by default, the one field that is complete
            and predicts survival.

    Raises:
        StudyError: If an option is unknown, or no modality is left.
        DataError: If the release is missing or malformed, or ``out`` cannot be replaced.
    """
    grouping = choose(Grouping, by, "--by")
    scheme = choose(SplitScheme, split, "--split")
    members = choose(Cohort, cohort, "--cohort")
    names = kept_modalities((*EXAMS, CLINICAL), without)
    if min_patients < 1:
        raise StudyError(f"--min-patients is {min_patients}, expected a whole number from 1 up")
    every = choose(Exams, scans, "--scans") is Exams.ALL
    if every and missing != Missingness():
        raise StudyError(
            "--scans all has several exams of a patient, of which none is removed; expected chosen"
        )
    study = _study(names, seed, choose(PromptMode, prompt_mode, "--prompt-mode"), every)
    check_target(out, overwrite=overwrite)
    code = find_release(source)
    table = read_table(code / TABLE)
    exams = {name: chosen_exams(code, name) for name in EXAMS}
    rows = release_rows(table, exams)
    rows["official"] = parse_splits(table, "Split")
    if members is Cohort.THESIS:
        if not (rows[ID] == _NOT_IN_THESIS).any():
            raise DataError(
                f"{table.source}: the patient that the thesis's cohort excludes is not in the table"
            )
        rows = rows[rows[ID] != _NOT_IN_THESIS].reset_index(drop=True)
    rows[SPLIT] = _split(rows, scheme, seed)
    rows["site"] = _sites(rows[ID].tolist(), grouping, min_patients)
    vectors = {name: _vectors(code, name, exams[name], every) for name in names if name in EXAMS}
    columns = {CLINICAL: compile_prompt(MMIST_PROMPT).fields} if CLINICAL in names else {}
    written = [ID, LABEL, SPLIT, *columns.get(CLINICAL, ())]
    sites = [
        SiteTables(str(name), group[written], vectors, columns)
        for name, group in rows.groupby("site", sort=True)
    ]
    covariates = rows.set_index(ID)[[*CODES, "race"]]
    taken = take_away(sites, study, missing, covariates, default_driver="grade", embed=embed)
    prepared = write_federation(out, study, taken.sites, overwrite, amputation=taken.amputation)
    return replace(prepared, notes=taken.notes)


def _study(names: Sequence[str], seed: int, prompt_mode: PromptMode, every: bool) -> Study:
    several = {name for name, exams in EXAMS.items() if every and exams.listed is not None}
    specs = [
        ModalitySpec(
            *(name, Kind.FEATURES, EXAMS[name].width),
            scaling=EXAMS[name].scaling,
            scans=Scans.MEAN if name in several else Scans.ONE,
        )
        for name in names
        if name in EXAMS
    ]
    if CLINICAL in names:
        text = ModalitySpec(CLINICAL, Kind.TEXT, 512, "hashing-text", Scaling.L2, prompt=MMIST_PROMPT)
        specs.append(replace(text, prompt_mode=prompt_mode))
    return Study(
        name="mmist-vital12",
        classes=CLASSES,
        positive="alive",
        seed=seed,
        modalities=tuple(specs),
        training=TrainingSpec(oversample={"dead": 6.0}, noise_probability=0.30),
        privacy=SIMULATED,
    )


def find_release(source: Path) -> Path:
    """The folder with the release's tables."""
    for folder in (source, source / _INNER):
        if (folder / TABLE).is_file():
            return folder
    raise DataError(
        f"{source}: no MMIST-ccRCC release, expected {TABLE!r} in it or in its folder {_INNER.as_posix()}"
    )


def chosen_exams(code: Path, name: str) -> dict[str, Path]:
    """The feature file of the exam that the release chose, by patient."""
    exams = EXAMS[name]
    table = read_table(code / exams.chosen)
    patients, chosen = table.require_unique("case_id"), table.require("chosen_exam")
    folder = code / "Features" / exams.folder
    if exams.listed is None:
        return {patient: folder / file for patient, file in zip(patients, chosen, strict=True)}
    listed = read_table(code / exams.listed)
    files: dict[tuple[str, str], Path] = {}
    seen: Counter[str] = Counter()
    for patient, exam in zip(listed.require("case_id"), listed.require("File"), strict=True):
        seen[patient] += 1
        files.setdefault((patient, exam), folder / f"{patient}-{seen[patient]}.npz")
    found: dict[str, Path] = {}
    for row, key in enumerate(zip(patients, chosen, strict=True)):
        if key not in files:
            raise DataError(f"{table.where(row)}: chosen_exam is not among the exams of {exams.listed}")
        found[key[0]] = files[key]
    return found


def _vectors(
    code: Path, name: str, chosen: Mapping[str, Path], every: bool
) -> dict[str, NDArray[np.float32]]:
    """By patient the features ``(W,)`` of the chosen exam, or with ``every`` of all, ``(n, W)``, it first."""
    exams = EXAMS[name]
    if not every or exams.listed is None:
        return {patient: exam_vector(path, exams.width) for patient, path in chosen.items()}
    listed = Counter(read_table(code / exams.listed).require("case_id"))
    found = {}
    for patient, path in chosen.items():
        files = [path.with_name(f"{patient}-{place}.npz") for place in range(1, listed[patient] + 1)]
        order = [path, *(file for file in files if file != path)]
        found[patient] = np.stack([exam_vector(file, exams.width) for file in order])
    return found


def release_rows(table: TextTable, exams: Mapping[str, Iterable[str]]) -> pd.DataFrame:
    """One row per patient in table order: id, label, decoded clinical columns, presence."""
    ids = table.require_unique("case_id")
    labels = _decode(table, "vital_status_12", dict(enumerate(CLASSES)))
    for row, label in enumerate(labels):
        if label is None:
            raise DataError(f"{table.where(row)}: vital_status_12 is missing, expected 0 or 1")
    clinical = {name: _decode(table, column, words) for name, (column, words) in CODES.items()}
    genomics = [gene is not None for gene in clinical["vhl"]]
    content: dict[str, Sequence[object]] = {ID: ids, LABEL: labels, **clinical, "race": _race(table)}
    content |= {f"has_{name}": [patient in set(exams[name]) for patient in ids] for name in ("mri", "ct")}
    return pd.DataFrame({**content, "has_genomics": genomics})


def staging_numbers(rows: pd.DataFrame) -> dict[str, NDArray[np.float32]]:
    """`STAGING` of patients, by id; NaN where missing, and no patient of whom all are.

    Args:
        rows: As of `release_rows`, indexed by id.
    """
    columns = []
    for name in STAGING:
        words = [word for word in CODES[name][1].values() if word not in _NOT_ASSESSED]
        columns.append(rows[name].map({word: rank for rank, word in enumerate(words)}))
    numbers = np.stack([column.to_numpy(dtype=np.float32) for column in columns], axis=1)
    known = np.flatnonzero(~np.isnan(numbers).all(axis=1))
    return {str(rows.index[place]): numbers[place] for place in known.tolist()}


def _decode(table: TextTable, column: str, words: Mapping[int, str]) -> list[str | None]:
    """One coded column as words; blank and -1 are missing."""
    by_text = {str(code): word for code, word in words.items()}
    decoded: list[str | None] = []
    for row, cell in enumerate(table.column(column)):
        code = (
            None if cell is None else cell.removesuffix(".0")
        )  # a column with blanks is written as floats, 6.0
        if code not in {None, "-1", *by_text}:
            raise DataError(f"{table.where(row)}: {column} is {cell!r}, expected -1 or {', '.join(by_text)}")
        decoded.append(None if code is None else by_text.get(code))
    return decoded


def _race(table: TextTable) -> list[str | None]:
    """The race whose column is set, if any."""
    flags = {race: _decode(table, f"race_{race}", {0: "", 1: race}) for race in _RACES}
    races: list[str | None] = []
    for row in range(len(table.frame)):
        found = [race for race in _RACES if flags[race][row]]
        if len(found) > 1:
            raise DataError(f"{table.where(row)}: {len(found)} race columns are set, expected one or none")
        races.append(found[0] if found else None)
    return races


def _split(rows: pd.DataFrame, scheme: SplitScheme, seed: int) -> NDArray[np.str_]:
    keys = _keys(rows)
    if scheme is SplitScheme.STRATIFIED:
        return three_way(keys, seed, val_fraction=_VAL_FRACTION)
    splits = rows["official"].to_numpy(dtype="<U5").copy()
    train = np.flatnonzero(splits == Split.TRAIN)
    within = [[level[patient] for patient in train.tolist()] for level in keys]
    splits[train[stratified_split(within, _VAL_FRACTION, seed)]] = Split.VAL.value
    return splits


def _keys(rows: pd.DataFrame) -> list[list[str]]:
    """Stratification keys; coarser levels drop the rarest examination first: MRI, CT, genomics."""
    levels = (("has_mri", "has_ct", "has_genomics"), ("has_ct", "has_genomics"), ("has_genomics",), ())
    return [["|".join(map(str, cells)) for cells in rows[[LABEL, *level]].to_numpy()] for level in levels]


def _sites(ids: Sequence[str], grouping: Grouping, min_patients: int) -> list[str]:
    """The site of each patient; the second field of a TCGA barcode is the tissue source site."""
    tcga = [patient.startswith("TCGA-") for patient in ids]
    if grouping is Grouping.SOURCE:
        return ["tcga" if is_tcga else "cptac" for is_tcga in tcga]
    hospitals = [
        patient.split("-")[1].lower() if is_tcga else "cptac"
        for patient, is_tcga in zip(ids, tcga, strict=True)
    ]
    sizes = Counter(hospitals)
    return [
        hospital if not is_tcga or sizes[hospital] >= min_patients else "tcga-other"
        for hospital, is_tcga in zip(hospitals, tcga, strict=True)
    ]


def exam_vector(path: Path, width: int) -> NDArray[np.float32]:
    """The features ``(width,)`` of one exam; a DataError if they are missing or of another form."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            vector: NDArray[np.float32] = archive["arr_0"].reshape(-1).astype(np.float32)
    except FileNotFoundError:
        raise DataError(f"{path}: no such features file, though the release's tables name it") from None
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: cannot be read as npz with an array arr_0 ({type(error).__name__})"
        ) from None
    if len(vector) != width or not np.isfinite(vector).all():
        raise DataError(f"{path}: found {len(vector)} numbers, expected {width} finite ones")
    return vector
