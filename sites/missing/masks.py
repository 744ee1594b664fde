"""Missingness masks: pure functions of presence, scores, a rate and a generator.

========= ============================================================ =====================
mechanism probability of a loss                                        scores
========= ============================================================ =====================
mcar      the rate                                                     none
mar       sigmoid(intercept + slope * score)                           of the patient
mnar      sigmoid(intercept + slope * score)                           of the modality itself
========= ============================================================ =====================

The intercept is found by bisection, for each modality separately, so that the mean probability over the
patients who have the modality equals the rate. The drawn rate then varies; it is reported, not forced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmare.errors import StudyError
from mmare.wire.messages import Split

__all__ = ["Losses", "achieved_rate", "amputate", "exclusive", "loss_probability", "mcar"]

_STREAM, _EXCLUSIVE_STREAM = 5150, 5151  # keep these draws independent of others with the same seed
_FEWEST = 2  # sites, and modalities, of the pattern exclusive
_BISECTIONS = 200  # more than any interval of doubles needs


@dataclass(frozen=True)
class Losses:
    """What remains after a draw: ``(N, M)``, true where the modality is still present."""

    drawn: NDArray[np.bool_]  # before the repair
    kept: NDArray[np.bool_]  # after it


def mcar(
    present: NDArray[np.bool_], rate: float | NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Remove modalities completely at random; a patient who had any keeps at least one.

    Each present modality is lost independently with probability ``rate``. A patient who would lose all gets
    one back, chosen uniformly, as in section 5.3 of the thesis; so slightly less than ``rate`` is lost: with
    four modalities and rate 0.6, 0.6 - 0.6**4 / 4 = 0.568 is expected. The generator is drawn from for every
    cell, present or not, so that one patient's losses do not depend on what others lack.

    Args:
        present: ``(N, M)``, true where a patient has a modality.
        rate: A number from 0 to 1, or an array that broadcasts to ``(N, M)``.
        generator: Source of the draws.

    Returns:
        ``(N, M)``, true where a modality is still present.

    Raises:
        StudyError: If a rate is not between 0 and 1.

    Example:
        >>> mcar(np.ones((2, 3), dtype=bool), 1.0, np.random.default_rng(0)).sum(axis=1)
        array([1, 1])
    """
    return _draw(present, rate, generator).kept


def loss_probability(
    present: NDArray[np.bool_], scores: NDArray[np.float64], rate: float, slope: float
) -> NDArray[np.float64]:
    """The probability that each cell is lost, logistic in its score; `mcar` draws from it for mar and mnar.

    Scores are standardised over the patients who have the modality; an unknown score counts as their mean.

    Args:
        present: ``(N, M)``.
        scores: ``(N,)`` for all modalities (mar, or mnar on the label) or ``(N, M)``; NaN where unknown.
        rate: The mean over the present cells of each modality.
        slope: Of the logit, per standard deviation; if negative, low scores go missing.

    Returns:
        ``(N, M)``, zero where the modality is absent.

    Raises:
        StudyError: If the rate is not between 0 and 1.

    Example:
        >>> present = np.ones((4, 1), dtype=bool)
        >>> loss_probability(present, np.array([1.0, 2.0, 3.0, 4.0]), 0.4, 2.0)[:, 0].mean().round(9)
        np.float64(0.4)
    """
    _check_rate(rate)
    wide = np.broadcast_to(scores[:, None] if scores.ndim == 1 else scores, present.shape)  # (N, M)
    probability = np.zeros(present.shape)
    for slot in range(present.shape[1]):
        rows = present[:, slot]
        probability[rows, slot] = _logistic(slope * _standard(wide[rows, slot]), rate)
    return probability


def amputate(
    present: NDArray[np.bool_], splits: NDArray[np.str_], rate: float | NDArray[np.float64], seed: int
) -> Losses:
    """Draw a fixed mask as `mcar` does, in each split with its own generator.

    The same patients in the same order with the same seed get the same mask.

    Args:
        present: ``(N, M)``.
        splits: ``(N,)`` values of `Split`.
        rate: A number from 0 to 1, or an array that broadcasts to ``(N, M)``.
        seed: Combined with the split.
    """
    rates = np.broadcast_to(np.asarray(rate, dtype=np.float64), present.shape)  # (N, M)
    drawn, kept = present.copy(), present.copy()
    for position, split in enumerate(Split):
        rows = splits == split.value
        losses = _draw(present[rows], rates[rows], np.random.default_rng([seed, _STREAM, position]))
        drawn[rows], kept[rows] = losses.drawn, losses.kept
    return Losses(drawn, kept)


def achieved_rate(present: NDArray[np.bool_], kept: NDArray[np.bool_]) -> float:
    """The share of present modalities that was lost; 0 where nothing was present."""
    n_present = int(present.sum())
    return 1 - int(kept.sum()) / n_present if n_present else 0.0


def _draw(
    present: NDArray[np.bool_], rate: float | NDArray[np.float64], generator: np.random.Generator
) -> Losses:
    _check_rate(rate)
    drawn = present & (generator.random(present.shape) >= rate)  # (N, M)
    # The highest draw among the present ones is a uniform choice. Drawn for all patients, so that one repair
    # does not depend on the others.
    order = np.where(present, generator.random(present.shape), -1.0)  # (N, M)
    kept = drawn.copy()
    bare = np.flatnonzero(present.any(axis=1) & ~kept.any(axis=1))
    kept[bare, order[bare].argmax(axis=1)] = True
    return Losses(drawn, kept)


def _check_rate(rate: float | NDArray[np.float64]) -> None:
    if not ((np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)).all():
        raise StudyError(f"--missing-rate is {rate}, expected a number between 0 and 1")


def _standard(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n,)`` with mean 0 and standard deviation 1; 0 where unknown, and everywhere if all are equal."""
    known = np.isfinite(scores)
    standard = np.zeros(len(scores))
    if known.any():
        centred = scores[known] - scores[known].mean()
        spread = float(np.sqrt((centred**2).mean()))
        # Differences from rounding alone do not count.
        if spread > 1e-12 * float(np.abs(scores[known]).max()):
            standard[known] = centred / spread
    return standard


def _logistic(logits: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """``(n,)`` probabilities with mean ``rate``: the sigmoid of the logits, shifted by bisection."""
    if not len(logits) or rate in {0.0, 1.0}:
        return np.full(len(logits), rate)
    centre = float(np.log(rate / (1 - rate)))
    low, high = centre - float(logits.max()), centre - float(logits.min())  # all below the rate, all above
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _sigmoid(middle + logits).mean() < rate:
            low = middle
        else:
            high = middle
    return _sigmoid((low + high) / 2 + logits)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)), dtype=np.float64)  # never overflows


def exclusive(available: NDArray[np.bool_], spare: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Choose a modality for every site to lack, such that another site keeps it.

    A site that already lacks one loses none. The losses are spread over the modalities as evenly as possible;
    the seed decides which site loses which.

    Args:
        available: ``(S, M)``, true where a site has a modality.
        spare: ``(S, M)``, true where every patient of the site has another modality too. Only such a modality
            is removed, so that nobody is left without any.
        seed: Same sites and seed, same losses.

    Returns:
        ``(S, M)``, true where a site loses a modality; at most one per site.

    Raises:
        StudyError: With fewer than two sites or modalities, or if no such choice exists.
    """
    n_sites = len(available)
    holders = available.sum(axis=0)  # (M,)
    if n_sites < _FEWEST or int((holders > 0).sum()) < _FEWEST:
        raise StudyError(
            f"--pattern exclusive needs at least two sites and two modalities, found {n_sites} and "
            f"{int((holders > 0).sum())}"
        )
    generator = np.random.default_rng([seed, _EXCLUSIVE_STREAM])
    needy = [int(site) for site in generator.permutation(n_sites) if available[site][holders > 0].all()]
    order = generator.permutation(available.shape[1])
    options = {
        site: [int(slot) for slot in np.roll(order, -turn) if spare[site, slot]]
        for turn, site in enumerate(needy)
    }
    for most in range(1, n_sites + 1):  # sites that may lose the same modality
        chosen = _match(options, np.minimum(most, holders - 1).tolist())
        if len(chosen) == len(needy):
            lost = np.zeros_like(available)
            for site, slot in chosen.items():
                lost[site, slot] = True
            return lost
    raise StudyError(
        "--pattern exclusive: some patients have only one modality, so not every site can lack one that "
        "another site keeps"
    )


def _match(options: dict[int, list[int]], capacity: list[int]) -> dict[int, int]:
    """Bipartite matching (Kuhn, 1955): a modality for as many sites as possible, within its capacity."""
    chosen: dict[int, int] = {}

    def place(site: int, seen: set[int]) -> bool:
        for slot in options[site]:
            if slot in seen:
                continue
            seen.add(slot)
            holders = [other for other, held in chosen.items() if held == slot]
            if len(holders) < capacity[slot] or any(place(other, seen) for other in holders):
                chosen[site] = slot
                return True
        return False

    for site in options:
        place(site, set())
    return chosen
