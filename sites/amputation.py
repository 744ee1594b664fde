"""Who loses which modality on purpose: masks as pure functions of what is present, a rate and a generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmare.errors import StudyError
from mmare.exchange import Split

__all__ = ["achieved_rate", "amputate", "mcar"]

_STREAM = 5150  # sets these draws apart from others made with the same seed


def mcar(
    present: NDArray[np.bool_], rate: float | NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Take modalities away completely at random; whoever had one keeps at least one.

    Each modality that a patient has is lost on its own with probability ``rate``. A patient who would lose
    all gets one of them back, each with equal chance, as in section 5.3 of the thesis. So a little less than
    ``rate`` is lost in all: of four modalities and 0.6, `achieved_rate` expects 0.6 - 0.6**4 / 4 = 0.568.

    Args:
        present: ``(N, M)`` bool, true where a patient has a modality.
        rate: Probability of a loss, one for all or an array that broadcasts to ``(N, M)``.
        generator: Drawn from for every cell, present or not, so that a loss does not depend on who else
            lacks what.

    Returns:
        ``(N, M)`` bool, true where a modality is still there; never where it was not.

    Raises:
        StudyError: If a rate is not between 0 and 1.

    Example:
        >>> mcar(np.ones((2, 3), dtype=bool), 1.0, np.random.default_rng(0)).sum(axis=1)
        array([1, 1])
    """
    if not ((np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)).all():
        raise StudyError(f"--missing-rate is {rate}, expected a number between 0 and 1")
    kept = present & (generator.random(present.shape) >= rate)  # (N, M)
    # The highest draw among those present is a uniform choice of one; drawn for all, as above.
    order = np.where(present, generator.random(present.shape), -1.0)  # (N, M)
    bare = np.flatnonzero(present.any(axis=1) & ~kept.any(axis=1))
    kept[bare, order[bare].argmax(axis=1)] = True
    return kept


def amputate(
    present: NDArray[np.bool_], splits: NDArray[np.str_], rate: float, seed: int
) -> NDArray[np.bool_]:
    """`mcar` in each split on its own, from a generator of the seed and the split.

    The mask is fixed once, not drawn again per epoch, and a split's mask does not depend on the others.

    Args:
        present: ``(N, M)`` bool.
        splits: ``(N,)`` values of `Split`.
        rate: Probability of a loss.
        seed: Same patients in the same order and same seed, same mask.

    Returns:
        ``(N, M)`` bool, true where a modality is still there.

    Raises:
        StudyError: If the rate is not between 0 and 1.
    """
    kept = present.copy()
    for position, split in enumerate(Split):
        rows = splits == split.value
        generator = np.random.default_rng([seed, _STREAM, position])
        kept[rows] = mcar(present[rows], rate, generator)
    return kept


def achieved_rate(present: NDArray[np.bool_], kept: NDArray[np.bool_]) -> float:
    """The share of what was present that is gone; 0 where nothing was present."""
    n_present = int(present.sum())
    return 1 - int(kept.sum()) / n_present if n_present else 0.0
