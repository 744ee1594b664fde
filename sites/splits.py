"""Stratified splits with a hierarchical key: the most detailed stratum that is large enough decides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from mmare.errors import DataError
from mmare.wire.messages import Split

__all__ = ["strata", "stratified_split", "three_way"]

_REST = "rest"  # the stratum of patients who fit in none


def strata(keys: Sequence[Sequence[str]], smallest: int) -> list[str]:
    """The stratum of each patient: the first level at which enough patients share a key.

    Patients whose stratum has fewer than ``smallest`` members move together to the next, coarser level,
    where they are counted among those who moved. Who is left at the end forms one stratum, or joins the
    largest one when there are too few of them.

    Args:
        keys: Levels from detailed to coarse, each with one key per patient.
        smallest: Members that a stratum needs, at least 1.

    Returns:
        One name per patient; equal names are one stratum.

    Example:
        >>> strata([["a1", "a1", "a2", "b1", "b2"], ["a", "a", "a", "b", "b"]], smallest=2)
        ['0:a1', '0:a1', '0:a1', '1:b', '1:b']
    """
    names = [""] * len(keys[0])
    waiting = list(range(len(names)))
    for level, column in enumerate(keys):
        sizes = Counter(column[patient] for patient in waiting)
        for patient in waiting:
            if sizes[column[patient]] >= smallest:
                names[patient] = f"{level}:{column[patient]}"
        waiting = [patient for patient in waiting if not names[patient]]
    settled = Counter(name for name in names if name)
    # The largest stratum takes the few; ties go to the first name, so that the result is one for all runs.
    home = min(settled, key=lambda name: (-settled[name], name)) if settled else _REST
    for patient in waiting:
        names[patient] = home if len(waiting) < smallest else _REST
    return names


def stratified_split(keys: Sequence[Sequence[str]], test_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Draw a share of the patients so that every stratum gives its part.

    A stratum is large enough when it is expected to put at least one patient on either side; smaller ones
    fall back as in `strata`.

    Args:
        keys: Levels from detailed to coarse, each with one key per patient.
        test_fraction: Between 0 and 1; the number drawn is rounded up, and at least one patient is left.
        seed: Same keys and seed, same draw.

    Returns:
        ``(n_patients,)`` bool, true for the patients drawn. Fewer than two patients cannot be cut: none is
        drawn.

    Raises:
        DataError: If the fraction is not between 0 and 1, or the levels differ in length.
    """
    if not 0 < test_fraction < 1:
        raise DataError(f"test fraction is {test_fraction}, expected a number between 0 and 1")
    if len({len(level) for level in keys}) != 1:
        raise DataError(
            f"stratification keys have lengths {[len(level) for level in keys]}, expected one length"
        )
    n_patients = len(keys[0])
    drawn = np.zeros(n_patients, dtype=np.bool_)
    if n_patients < 2:  # noqa: PLR2004 - a cut needs one patient on either side
        return drawn
    smallest = max(2, math.ceil(1 / min(test_fraction, 1 - test_fraction)))
    names = strata(keys, smallest)
    # Rounded up as scikit-learn does it, less the noise of the product (0.1 * 30 is a little over 3), but
    # not all.
    n_drawn = min(math.ceil(test_fraction * n_patients - 1e-9), n_patients - 1)
    _, test = train_test_split(
        np.arange(n_patients), test_size=n_drawn, random_state=seed, shuffle=True, stratify=names
    )
    drawn[test] = True
    return drawn


def three_way(
    keys: Sequence[Sequence[str]], seed: int, test_fraction: float = 0.2, val_fraction: float = 0.125
) -> NDArray[np.str_]:
    """Split patients in train, validation and test by two stratified cuts.

    The defaults give 70/10/20: a fifth is test, an eighth of the rest validation; 617 patients become
    431/62/124.

    Args:
        keys: Levels from detailed to coarse, each with one key per patient.
        seed: Same keys and seed, same split.
        test_fraction: Of all patients.
        val_fraction: Of the patients that are not test.

    Returns:
        ``(n_patients,)`` values of `Split`.

    Raises:
        DataError: As `stratified_split`.
    """
    splits = np.full(len(keys[0]), Split.TRAIN.value, dtype="<U5")  # the longest word is "train"
    test = stratified_split(keys, test_fraction, seed)
    splits[test] = Split.TEST.value
    rest = np.flatnonzero(~test)
    remaining = [[level[patient] for patient in rest.tolist()] for level in keys]
    val = stratified_split(remaining, val_fraction, seed)
    splits[rest[val]] = Split.VAL.value
    return splits
