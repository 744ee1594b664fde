"""The closed sets that `mmare-sim prepare` lets a person choose from; light, so that ``--help`` is fast."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

from mmare.errors import StudyError

__all__ = [
    "Cohort",
    "Grouping",
    "IxiTask",
    "Mechanism",
    "Pattern",
    "SplitScheme",
    "SyntheticKind",
    "SyntheticPattern",
    "choose",
]


class Grouping(StrEnum):
    """What makes a site of the MMIST-ccRCC release."""

    SOURCE = "source"  # TCGA and CPTAC
    HOSPITAL = "hospital"  # TCGA by tissue source site


class SplitScheme(StrEnum):
    """Where the split of the MMIST-ccRCC release comes from."""

    OFFICIAL = "official"  # the release's test set; an eighth of its train set is validation
    STRATIFIED = "stratified"  # 70/10/20 by label and presence of MRI, CT and genomics


class Cohort(StrEnum):
    """Which patients of the MMIST-ccRCC release take part."""

    RELEASE = "release"  # all 618
    THESIS = "thesis"  # 617


class SyntheticKind(StrEnum):
    """What a synthetic federation holds."""

    FEATURES = "features"
    SCANS = "scans"  # NIfTI phantoms, which a frozen encoder turns into features


class IxiTask(StrEnum):
    """What is predicted of an IXI subject."""

    SEX = "sex"
    EPOCH = "epoch"  # of the brain's life span: below 32, below 66, older


class Mechanism(StrEnum):
    """Why modalities are missing that were taken away on purpose."""

    MCAR = "mcar"  # completely at random
    MAR = "mar"  # by a column of the table
    MNAR = "mnar"  # by the label, or by what the modality itself shows


class Pattern(StrEnum):
    """Which site never has which modality."""

    NATURAL = "natural"  # as in the source
    EXCLUSIVE = "exclusive"  # every site goes without one that another site keeps


class SyntheticPattern(StrEnum):
    """Which modalities the sites of the synthetic federation have."""

    NATURAL = "natural"  # the gaps of the three hospitals
    COMPLETE = "complete"  # no gap at all
    EXCLUSIVE = "exclusive"  # complete, but every site goes without one that another site keeps
    RARE = "rare"  # complete, but one modality lives at the first site alone


Choice = TypeVar("Choice", bound=StrEnum)


def choose(kind: type[Choice], value: str, flag: str) -> Choice:
    """The member of a closed set that a word names.

    Args:
        kind: The set.
        value: The word.
        flag: Named in the error.

    Raises:
        StudyError: If the word names none.
    """
    if value not in list(kind):
        raise StudyError(f"{flag} is {value!r}, expected one of {', '.join(kind)}")
    return kind(value)


def kept_modalities(every: Sequence[str], without: Sequence[str]) -> tuple[str, ...]:
    """What ``--without`` leaves.

    Args:
        every: Names of all modalities.
        without: To leave out.

    Raises:
        StudyError: If a name is unknown, or nothing would be left.

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
