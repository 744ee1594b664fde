"""Splits stratified by a hierarchical key: the most detailed stratum that is large enough applies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmare.errors import DataError
from mmare.wire.messages import Split

__all__ = ["strata", "stratified_split", "three_way"]

_REST = "rest"  # the stratum of patients left over


def strata(keys: Sequence[Sequence[str]], smallest: int) -> list[str]:
    """Name the stratum of each patient: the first level at which at least ``smallest`` patients share a key.

    ``keys`` has levels from detailed to coarse, each with one key per patient. Patients in smaller strata
    move to the next level and are counted there among those who moved. Those left at the end form one
    stratum, or join the largest if they are too few.

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
    # Ties go to the first name, so that the result is reproducible.
    home = min(settled, key=lambda name: (-settled[name], name)) if settled else _REST
    for patient in waiting:
        names[patient] = home if len(waiting) < smallest else _REST
    return names


def stratified_split(keys: Sequence[Sequence[str]], test_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Draw a fraction of the patients, stratified by `strata`.

    A stratum is large enough if it is expected to have a patient on either side. The number drawn is rounded
    up, but at least one patient is left; of fewer than two patients none is drawn.

    Returns:
        ``(n_patients,)``, true for the patients drawn.

    Raises:
        DataError: If the fraction is not between 0 and 1, or the levels differ in length.
    """
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  takes seconds to import

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
    # Rounded up like scikit-learn, but without rounding noise (0.1 * 30 is slightly over 3), and never all.
    n_drawn = min(math.ceil(test_fraction * n_patients - 1e-9), n_patients - 1)
    _, test = train_test_split(
        np.arange(n_patients), test_size=n_drawn, random_state=seed, shuffle=True, stratify=names
    )
    drawn[test] = True
    return drawn


def three_way(
    keys: Sequence[Sequence[str]], seed: int, test_fraction: float = 0.2, val_fraction: float = 0.125
) -> NDArray[np.str_]:
    """Split patients by two calls of `stratified_split`, as ``(n_patients,)`` values of `Split`.

    ``val_fraction`` is of the patients that are not test. The defaults give 70/10/20; 617 patients become
    431/62/124.
    """
    splits = np.full(len(keys[0]), Split.TRAIN.value, dtype="<U5")  # the longest value is "train"
    test = stratified_split(keys, test_fraction, seed)
    splits[test] = Split.TEST.value
    rest = np.flatnonzero(~test)
    remaining = [[level[patient] for patient in rest.tolist()] for level in keys]
    val = stratified_split(remaining, val_fraction, seed)
    splits[rest[val]] = Split.VAL.value
    return splits
