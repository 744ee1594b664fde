"""The IXI brain scans as a federation of their three London hospitals: four MRI contrasts, clinical prompt.

Looks at file names and the demographic table only; no image is opened. Prompts, classes and split are those
of the thesis, section 5.1. With ``seed=42`` the split has exactly the counts of its Tables 5.1 and 5.2; one
seed in 130 has, so 42 was most likely its seed.

Where the prompts differ from section 5.1.5: the age is in completed years, and a value that cannot be (a
weight of 960 kg) is treated as missing.
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

from mmare.errors import DataError, StudyError
from mmare.exchange import Split
from mmare.study import Kind, ModalitySpec, PrivacySpec, PromptMode, Scaling, Study, TrainingSpec
from sites.amputation import achieved_rate, amputate
from sites.federation import Prepared, SiteTables, check_target, write_federation
from sites.ixi_cohort import (
    CONTRASTS,
    EPOCHS,
    SEXES,
    find_volumes,
    index_volumes,
    read_demographics,
    select_cohort,
)
from sites.manifest import ID, LABEL, SPLIT
from sites.options import IxiTask, Mechanism, choose
from sites.prompts import compile_prompt
from sites.splits import strata

__all__ = ["IXI_PROMPTS", "IxiOptions", "ixi_federation", "ixi_study", "prepare_ixi", "split_cohort"]

CLINICAL = "clinical"
WIDTH = 512
ENCODER = "med3d-resnet18"

# Index = label. The manifest of the other task's label, and what the split is stratified by, is `EPOCHS`.
_CLASSES = {IxiTask.SEX: SEXES, IxiTask.EPOCH: EPOCHS}

# Each phrase is a group, so that the sentence still reads when a part of it is missing.
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

# Each without its target.
IXI_PROMPTS: Mapping[IxiTask, str] = {
    IxiTask.SEX: "The patient is [{age} years old|a person[ aged {age}|| whose age is not available]]"
    + _SHARED,
    IxiTask.EPOCH: "The patient is [a {sex}|a person[ of {sex} sex|| (sex not available)]]" + _SHARED,
}

# Two cuts: 40 % are not train, three quarters of those are test; 516 subjects become 309/51/156.
_REST_FRACTION, _TEST_FRACTION = 0.4, 0.75


@dataclass(frozen=True)
class IxiOptions:
    """How IXI becomes a federation.

    Args:
        task: An `IxiTask`.
        with_clinical: Whether the clinical prompt is a fifth modality.
        seed: Of the split and the amputation; also written as the study's.
        mechanism: A `Mechanism`, or nothing for no amputation.
        missing_rate: Probability that a modality is taken away.
        prompt_mode: What the prompt says of missing fields.
        complete: Only subjects with all four contrasts and a known ethnicity, as in the thesis; otherwise
            everybody with at least one contrast.

    Raises:
        StudyError: If an option is none that exists, or out of range.
    """

    task: str
    with_clinical: bool = False
    seed: int = 0
    mechanism: str | None = None
    missing_rate: float = 0.0
    prompt_mode: PromptMode = PromptMode.OMIT
    complete: bool = True

    def __post_init__(self) -> None:
        choose(IxiTask, self.task, "--task")
        choose(PromptMode, self.prompt_mode, "--prompt-mode")
        if self.mechanism is not None:
            choose(Mechanism, self.mechanism, "--mechanism")
        elif self.missing_rate:
            raise StudyError(
                f"--missing-rate is {self.missing_rate}, but no --mechanism such as mcar says how"
            )
        if not 0 <= self.missing_rate < 1:
            raise StudyError(f"--missing-rate is {self.missing_rate}, expected a number from 0 to below 1")

    @property
    def fields(self) -> tuple[str, ...]:
        """Manifest columns of the prompt; none without a clinical modality."""
        return compile_prompt(IXI_PROMPTS[IxiTask(self.task)]).fields if self.with_clinical else ()


def prepare_ixi(  # noqa: PLR0913 - the flags of the command, one to one
    source: Path,
    out: Path,
    task: str,
    with_clinical: bool = False,
    seed: int = 0,
    mechanism: str | None = None,
    missing_rate: float = 0.0,
    *,
    prompt_mode: PromptMode = PromptMode.OMIT,
    complete: bool = True,
    overwrite: bool = False,
) -> Prepared:
    """Write a folder of IXI volumes as a federation folder with the sites ``guys``, ``hh`` and ``iop``.

    Args:
        source: Folder with ``IXI.xls`` (or ``IXI.csv`` with the same columns) and, in any sub-folders,
            volumes named like ``IXI012-HH-1211-T1.nii.gz``. Manifests name them by absolute path.
        out: Federation folder to write.
        task: As in `IxiOptions`, like the following.
        with_clinical: Whether the clinical prompt is a fifth modality.
        seed: Of the split and the amputation; also written as the study's.
        mechanism: Of the amputation, or nothing.
        missing_rate: Probability that a modality is taken away.
        prompt_mode: What the prompt says of missing fields.
        complete: Only subjects with all four contrasts and a known ethnicity.
        overwrite: Replace a federation folder that is there already.

    Raises:
        StudyError: If an option is none that exists, or out of range.
        DataError: If the table or the volumes are not there or not as expected, or ``out`` is in the way.
    """
    options = IxiOptions(task, with_clinical, seed, mechanism, missing_rate, prompt_mode, complete)
    study = ixi_study(options)
    check_target(out, overwrite=overwrite)
    if source.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{source}: the scans lie in {out}, which would be replaced; choose another --out")
    sites, notes = ixi_federation(
        source, options, lambda path: str(source.resolve() / path.relative_to(source))
    )
    return replace(write_federation(out, study, sites, overwrite), notes=notes)


def ixi_federation(
    source: Path, options: IxiOptions, written: Callable[[Path], str]
) -> tuple[list[SiteTables], tuple[str, ...]]:
    """The three sites of an IXI folder.

    Args:
        source: As in `prepare_ixi`.
        options: How.
        written: How a manifest names a volume.

    Returns:
        The sites, and sentences about what was left out, treated as missing and taken away.

    Raises:
        DataError: As `prepare_ixi`.
    """
    table = read_demographics(source)
    cohort = select_cohort(table, index_volumes(find_volumes(source)), complete=options.complete)
    rows = cohort.rows
    # By age for either task; numbered as in the thesis, because scikit-learn draws strata in sorted order.
    bins = [str(EPOCHS.index(epoch)) for epoch in rows["epoch"]]
    rows[SPLIT] = split_cohort(bins, options.seed)
    rows[LABEL] = rows[IxiTask(options.task).value]
    notes = ["cohort: " + ", ".join(f"{number} {words}" for number, words in cohort.steps), *cohort.notes]
    prompts = {CLINICAL: options.fields} if options.with_clinical else {}
    if options.mechanism is not None:
        columns = {name: (name,) for name in CONTRASTS} | prompts
        notes.append(_take_away(rows, columns, options.missing_rate, options.seed))
    for name in CONTRASTS:
        rows[name] = [None if path is None else written(path) for path in rows[name]]
    keep = [ID, LABEL, SPLIT, *CONTRASTS, *options.fields]
    sites = [
        SiteTables(str(name), group[keep], columns=prompts, scans={name: name for name in CONTRASTS})
        for name, group in rows.groupby("site", sort=True)
    ]
    return sites, tuple(notes)


def ixi_study(options: IxiOptions, encoder: str = ENCODER, size: tuple[int, ...] = ()) -> Study:
    """The study of an IXI federation, with the settings of the thesis, section 5.2.5.

    Args:
        options: How.
        encoder: Of the four contrasts.
        size: Of the volumes that the encoder sees: slices, rows, columns; empty for its default.
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
        privacy=PrivacySpec(min_count=0),
    )


def split_cohort(keys: Sequence[str], seed: int) -> NDArray[np.str_]:
    """Split 6:1:3 by two stratified cuts, drawn as scikit-learn's ``train_test_split`` draws them.

    `sites.splits.three_way` cuts in another order (test first); this order gives the thesis's counts.

    Args:
        keys: One stratum per patient; strata that are too small for a cut are joined.
        seed: Same keys and seed, same split.

    Returns:
        ``(n_patients,)`` values of `Split`.
    """
    splits = np.full(len(keys), Split.TRAIN.value, dtype="<U5")  # the longest word is "train"
    _, rest = _cut(np.arange(len(keys)), keys, _REST_FRACTION, seed)
    val, test = _cut(rest, keys, _TEST_FRACTION, seed)
    splits[val], splits[test] = Split.VAL.value, Split.TEST.value
    return splits


def _cut(
    patients: NDArray[np.int64], keys: Sequence[str], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a share of the patients, rounded up but never all; fewer than two cannot be cut."""
    if len(patients) < 2:  # noqa: PLR2004 - a cut needs one patient on either side
        return patients, patients[:0]
    smallest = math.ceil(1 / min(fraction, 1 - fraction))  # so that either side expects one of the stratum
    names = strata([[keys[patient] for patient in patients.tolist()]], smallest)
    n_drawn = min(math.ceil(fraction * len(patients) - 1e-9), len(patients) - 1)
    kept, drawn = train_test_split(patients, test_size=n_drawn, random_state=seed, stratify=names)
    return kept, drawn


def _take_away(rows: pd.DataFrame, columns: Mapping[str, tuple[str, ...]], rate: float, seed: int) -> str:
    """Blank the cells of modalities that are taken away at random, and say how many those were."""
    present = np.column_stack([rows[list(names)].notna().any(axis=1) for names in columns.values()])  # (N, M)
    splits = rows[SPLIT].to_numpy(dtype="<U5")
    kept = amputate(present, splits, rate, seed)
    for slot, names in enumerate(columns.values()):
        for name in names:
            rows[name] = rows[name].where(kept[:, slot], None)
    achieved = [
        f"{split} {achieved_rate(present[splits == split.value], kept[splits == split.value]):.3f}"
        for split in Split
    ]
    return (
        f"mcar at {rate:g}: {achieved_rate(present, kept):.3f} of the modalities were taken away "
        f"({', '.join(achieved)}); whoever would have had none was given one back"
    )
