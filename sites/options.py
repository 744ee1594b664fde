"""Choices of ``mmare-sim prepare``; imports nothing heavy, so that ``--help`` is fast."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

from mmare.errors import StudyError

__all__ = [
    "Cohort",
    "Exams",
    "Grouping",
    "IxiTask",
    "KircTask",
    "Mechanism",
    "Pattern",
    "SplitScheme",
    "SyntheticKind",
    "SyntheticPattern",
    "choose",
]


class Grouping(StrEnum):
    """How patients of MMIST-ccRCC or TCGA-KIRC are divided into sites."""

    SOURCE = "source"  # TCGA and CPTAC
    HOSPITAL = "hospital"  # TCGA by tissue source site


class SplitScheme(StrEnum):
    """Where the split of the MMIST-ccRCC release comes from."""

    OFFICIAL = "official"  # the release's test set; an eighth of its train set is validation
    STRATIFIED = "stratified"  # 70/10/20 by label and presence of MRI, CT and genomics


class Cohort(StrEnum):
    """Which patients of the MMIST-ccRCC release are included."""

    RELEASE = "release"  # all 618
    THESIS = "thesis"  # 617


class Exams(StrEnum):
    """Which exams of MMIST-ccRCC a patient has."""

    CHOSEN = "chosen"  # the one that the release chose of each modality
    ALL = "all"  # every CT and MRI exam, the chosen one first


class SyntheticKind(StrEnum):
    """What a synthetic federation holds."""

    FEATURES = "features"
    SCANS = "scans"  # NIfTI phantoms, which a frozen encoder turns into features


class IxiTask(StrEnum):
    """What is predicted about an IXI subject."""

    SEX = "sex"
    EPOCH = "epoch"  # of the life span: below 32, below 66, older


class KircTask(StrEnum):
    """What is predicted about a patient of TCGA-KIRC."""

    SURVIVAL = "survival"  # time to death
    VITAL12 = "vital12"  # alive after twelve months


class Mechanism(StrEnum):
    """How modalities are removed on purpose."""

    MCAR = "mcar"  # completely at random
    MAR = "mar"  # depending on a column of the table
    MNAR = "mnar"  # depending on the label, or on the modality's own content


class Pattern(StrEnum):
    """Which modalities whole sites lack."""

    NATURAL = "natural"  # as in the source
    EXCLUSIVE = "exclusive"  # every site lacks one that another site keeps


class SyntheticPattern(StrEnum):
    """Which modalities the sites of the synthetic federation have."""

    NATURAL = "natural"  # the gaps of the three example hospitals
    COMPLETE = "complete"  # no gaps
    EXCLUSIVE = "exclusive"  # complete, but every site lacks one that another site keeps
    RARE = "rare"  # complete, but one modality exists at the first site only


Choice = TypeVar("Choice", bound=StrEnum)


def choose(kind: type[Choice], value: str, flag: str) -> Choice:
    """Parse the value of a flag.

    Raises:
        StudyError: If it is not a member of ``kind``.
    """
    if value not in list(kind):
        raise StudyError(f"{flag} is {value!r}, expected one of {', '.join(kind)}")
    return kind(value)


def kept_modalities(every: Sequence[str], without: Sequence[str]) -> tuple[str, ...]:
    """The modalities left after ``--without``.

    Raises:
        StudyError: If a name is unknown, or nothing is left.

    Example:
        >>> kept_modalities(["ct", "mri"], ["ct"])
        ('mri',)
    """
    for name in without:
        if name not in every:
            raise StudyError(f"--without is {name!r}, expected one of {', '.join(every)}")
    kept = tuple(name for name in every if name not in without)
    if not kept:
        raise StudyError("--without leaves no modality, expected at least one to stay")
    return kept
