"""The IXI brain scans as a federation of three London hospitals: four MRI contrasts and a clinical prompt.

Reads file names and the demographic table only; no image is opened. Prompts, classes and split are those of
the thesis, section 5.1, except that the age is in completed years and an impossible value (a weight of 960
kg) is missing. With ``seed=42`` the split has exactly the counts of its Tables 5.1 and 5.2; only one seed in
130 does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from mmare.errors import DataError
from mmare.study.choices import Kind, PromptMode, Scaling
from mmare.study.specs import ModalitySpec, TrainingSpec
from mmare.study.study import Study
from mmare.wire.messages import Split
from sites.datasets.ixi_cohort import (
    CONTRASTS,
    EPOCHS,
    SEXES,
    find_volumes,
    index_volumes,
    read_demographics,
    select_cohort,
)
from sites.federation import SIMULATED, Prepared, SiteTables, check_target, write_federation
from sites.manifest import ID, SPLIT
from sites.missing.amputate import Embed, take_away
from sites.missing.plan import Missingness
from sites.options import IxiTask, choose
from sites.outcomes import LABEL
from sites.prompts import compile_prompt
from sites.splits import strata

__all__ = ["IXI_PROMPTS", "IxiOptions", "ixi_federation", "ixi_study", "prepare_ixi", "split_cohort"]

CLINICAL = "clinical"
WIDTH = 512
ENCODER = "med3d-resnet18"

# Index = label. The split of either task is stratified by `EPOCHS`.
_CLASSES = {IxiTask.SEX: SEXES, IxiTask.EPOCH: EPOCHS}

# Each phrase is a group, so that the sentence stays grammatical when a part is missing.
_SHARED = (
    "[, with {ethnicity} ethnicity||, with ethnicity not available]"
    "[, {marital}||, with marital status not available]."
    "[ Occupation: {occupation}[; Education: {education}||; Education: not available].|"
    "[ Occupation: {occupation};|| Occupation: not available;] Education: {education}.||"
    " Occupation: not available; Education: not available.]"
    "[ Body measures include height {height}[ and weight {weight}|| and a weight that is not available].|"
    " Body measures include[ height {height} and|| a height that is not available and] weight {weight}.||"
    " Height and weight are not available.]"
)

# Each prompt omits its target.
IXI_PROMPTS: Mapping[IxiTask, str] = {
    IxiTask.SEX: "The patient is [{age} years old|a person[ aged {age}|| whose age is not available]]"
    + _SHARED,
    IxiTask.EPOCH: "The patient is [a {sex}|a person[ of {sex} sex|| (sex not available)]]" + _SHARED,
}

# Possible drivers of mar, besides the sex.
_COVARIATES = ("age", "ethnicity", "marital", "occupation", "education", "height", "weight")

# Two cuts: 40 % are not train, three quarters of those are test; 516 subjects become 309/51/156.
_REST_FRACTION, _TEST_FRACTION = 0.4, 0.75


@dataclass(frozen=True)
class IxiOptions:
    """How IXI becomes a federation.

    Raises:
        StudyError: If a value is unknown.
    """

    task: str  # an `IxiTask`
    with_clinical: bool = False  # whether the clinical prompt is a fifth modality
    seed: int = 0  # of the split, the amputation and the study
    prompt_mode: PromptMode = PromptMode.OMIT
    complete: bool = True  # require all contrasts and a known ethnicity, as in the thesis; else any contrast

    def __post_init__(self) -> None:
        choose(IxiTask, self.task, "--task")
        choose(PromptMode, self.prompt_mode, "--prompt-mode")

    @property
    def fields(self) -> tuple[str, ...]:
        """Manifest columns of the prompt; empty without a clinical modality."""
        return compile_prompt(IXI_PROMPTS[IxiTask(self.task)]).fields if self.with_clinical else ()


def prepare_ixi(  # noqa: PLR0913 - the flags of the command, one to one
    source: Path,
    out: Path,
    task: str,
    with_clinical: bool = False,
    seed: int = 0,
    missing: Missingness = Missingness(),  # noqa: B008 - frozen; removes nothing
    *,
    prompt_mode: PromptMode = PromptMode.OMIT,
    complete: bool = True,
    encoder: str = ENCODER,
    overwrite: bool = False,
    embed: Embed | None = None,
) -> Prepared:
    """Write a folder of IXI volumes as a federation folder with the sites ``guys``, ``hh`` and ``iop``.

    Args:
        source: Folder with ``IXI.xls`` (or ``IXI.csv`` with the same columns) and, in any sub-folders,
            volumes named like ``IXI012-HH-1211-T1.nii.gz``. Manifests name them by absolute path.
        task: See `IxiOptions` for this and the options of the same name.
        missing: What to remove; mar is driven by the age by default.

    Raises:
        StudyError: If an option is unknown or out of range.
        DataError: If the table or the volumes are missing or malformed, or ``out`` cannot be replaced.
    """
    options = IxiOptions(task, with_clinical, seed, prompt_mode, complete)
    study = ixi_study(options, encoder)
    check_target(out, overwrite=overwrite)
    if source.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{source}: the scans lie in {out}, which would be replaced; choose another --out")
    rows, notes = _rows(source, options, lambda path: str(source.resolve() / path.relative_to(source)))
    covariates = rows.set_index(ID)[[IxiTask.SEX.value, *_COVARIATES]]
    sites = _tables(rows, options)
    taken = take_away(sites, study, missing, covariates, default_driver="age", embed=embed)
    prepared = write_federation(out, study, taken.sites, overwrite, amputation=taken.amputation)
    return replace(prepared, notes=(*notes, *taken.notes))


def ixi_federation(
    source: Path, options: IxiOptions, written: Callable[[Path], str]
) -> tuple[list[SiteTables], tuple[str, ...]]:
    """The sites of an IXI folder, and notes on what was excluded or treated as missing.

    ``written`` gives the path by which a manifest names a volume.
    """
    rows, notes = _rows(source, options, written)
    return _tables(rows, options), notes


def _rows(
    source: Path, options: IxiOptions, written: Callable[[Path], str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The cohort with label, split and paths of volumes, and notes on it."""
    table = read_demographics(source)
    cohort = select_cohort(table, index_volumes(find_volumes(source)), complete=options.complete)
    rows = cohort.rows
    # By age for either task; numbered as in the thesis, because scikit-learn draws strata in sorted order.
    bins = [str(EPOCHS.index(epoch)) for epoch in rows["epoch"]]
    rows[SPLIT] = split_cohort(bins, options.seed)
    rows[LABEL] = rows[IxiTask(options.task).value]
    notes = ["cohort: " + ", ".join(f"{number} {words}" for number, words in cohort.steps), *cohort.notes]
    for name in CONTRASTS:
        rows[name] = [None if path is None else written(path) for path in rows[name]]
    return rows, tuple(notes)


def _tables(rows: pd.DataFrame, options: IxiOptions) -> list[SiteTables]:
    prompts = {CLINICAL: options.fields} if options.with_clinical else {}
    keep = [ID, LABEL, SPLIT, *CONTRASTS, *options.fields]
    return [
        SiteTables(str(name), group[keep], columns=prompts, scans={name: name for name in CONTRASTS})
        for name, group in rows.groupby("site", sort=True)
    ]


def ixi_study(options: IxiOptions, encoder: str = ENCODER, size: tuple[int, ...] = ()) -> Study:
    """The study of an IXI federation, with the settings of the thesis, section 5.2.5.

    ``size`` is what the encoder sees, in slices, rows, columns; empty for its default.
    """
    task = IxiTask(options.task)
    modalities = [
        ModalitySpec(name, Kind.VOLUME, WIDTH, encoder, Scaling.ZSCORE, size=size) for name in CONTRASTS
    ]
    if options.with_clinical:
        mode = PromptMode(options.prompt_mode)
        prompt = IXI_PROMPTS[task]
        modalities.append(
            ModalitySpec(
                CLINICAL, Kind.TEXT, WIDTH, "hashing-text", Scaling.L2, prompt=prompt, prompt_mode=mode
            )
        )
    return Study(
        name=f"ixi-{task}",
        classes=_CLASSES[task],
        positive="female" if task is IxiTask.SEX else None,
        seed=options.seed,
        modalities=tuple(modalities),
        training=TrainingSpec(oversample="balanced" if task is IxiTask.EPOCH else None),
        privacy=SIMULATED,
    )


def split_cohort(keys: Sequence[str], seed: int) -> NDArray[np.str_]:
    """Split 6:1:3 by two stratified cuts, as ``(n_patients,)`` values of `Split`.

    `sites.splits.three_way` cuts in another order (test first); this order gives the thesis's counts. Strata
    that are too small for a cut are joined.
    """
    splits = np.full(len(keys), Split.TRAIN.value, dtype="<U5")  # the longest word is "train"
    _, rest = _cut(np.arange(len(keys)), keys, _REST_FRACTION, seed)
    val, test = _cut(rest, keys, _TEST_FRACTION, seed)
    splits[val], splits[test] = Split.VAL.value, Split.TEST.value
    return splits


def _cut(
    patients: NDArray[np.int64], keys: Sequence[str], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a fraction of the patients, rounded up, but never all; fewer than two are not cut."""
    if len(patients) < 2:  # noqa: PLR2004 - a cut needs one patient on either side
        return patients, patients[:0]
    smallest = math.ceil(1 / min(fraction, 1 - fraction))  # so that either side expects one of the stratum
    names = strata([[keys[patient] for patient in patients.tolist()]], smallest)
    n_drawn = min(math.ceil(fraction * len(patients) - 1e-9), len(patients) - 1)
    kept, drawn = train_test_split(patients, test_size=n_drawn, random_state=seed, stratify=names)
    return kept, drawn
