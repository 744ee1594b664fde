"""Who loses which modality on purpose: masks as pure functions of presence, scores, a rate and a generator.

========= ============================================================ =====================
mechanism probability of a loss                                        scores
========= ============================================================ =====================
mcar      the rate                                                     none
mar       sigmoid(intercept + slope * score)                           of the patient
mnar      sigmoid(intercept + slope * score)                           of the modality itself
========= ============================================================ =====================

The intercept is found by bisection, for each modality on its own, so that the mean probability over those who
have the modality is the rate. What is then drawn is reported and not forced. Which site never has which
modality (the pattern ``exclusive``) is a pure function of what sites have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmare.errors import StudyError
from mmare.wire.messages import Split

__all__ = ["Losses", "achieved_rate", "amputate", "exclusive", "loss_probability", "mar", "mcar", "mnar"]

_STREAM, _EXCLUSIVE_STREAM = 5150, 5151  # set these draws apart from others made with the same seed
_FEWEST = 2  # sites, and modalities, of the pattern exclusive
_BISECTIONS = 200  # more than halve any interval of doubles to nothing


@dataclass(frozen=True)
class Losses:
    """What a draw left.

    Args:
        drawn: ``(N, M)`` bool, true where a modality was not drawn to be lost: before the repair.
        kept: ``(N, M)`` bool, true where a modality is still there: after the repair.
    """

    drawn: NDArray[np.bool_]
    kept: NDArray[np.bool_]


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
    return _draw(present, rate, generator).kept


def mar(
    present: NDArray[np.bool_],
    scores: NDArray[np.float64],
    rate: float,
    slope: float,
    generator: np.random.Generator,
) -> NDArray[np.bool_]:
    """Take modalities away at random given a covariate, repaired as in `mcar`.

    Args:
        present: ``(N, M)`` bool.
        scores: ``(N,)`` the patient's covariate; NaN where it is not known.
        rate: Mean probability of a loss of each modality.
        slope: Of the logit, per standard deviation of the covariate.
        generator: As for `mcar`.

    Returns:
        ``(N, M)`` bool, true where a modality is still there.

    Raises:
        StudyError: If the rate is not between 0 and 1.
    """
    return _draw(present, loss_probability(present, scores, rate, slope), generator).kept


def mnar(
    present: NDArray[np.bool_],
    scores: NDArray[np.float64],
    rate: float,
    slope: float,
    generator: np.random.Generator,
) -> NDArray[np.bool_]:
    """Take modalities away for what they would have shown, repaired as in `mcar`.

    Args:
        present: ``(N, M)`` bool.
        scores: ``(N, M)`` what each modality shows of the patient, such as its first principal component;
            or ``(N,)``, the label, say. NaN where it is not known.
        rate: Mean probability of a loss of each modality.
        slope: Of the logit, per standard deviation of the score.
        generator: As for `mcar`.

    Returns:
        ``(N, M)`` bool, true where a modality is still there.

    Raises:
        StudyError: If the rate is not between 0 and 1.
    """
    return _draw(present, loss_probability(present, scores, rate, slope), generator).kept


def loss_probability(
    present: NDArray[np.bool_], scores: NDArray[np.float64], rate: float, slope: float
) -> NDArray[np.float64]:
    """The probability that a cell is lost, a logit of its score.

    Scores are standardised over the patients who have the modality; an unknown score counts as their mean.

    Args:
        present: ``(N, M)`` bool.
        scores: ``(N,)`` for all modalities alike, or ``(N, M)``; NaN where unknown.
        rate: What the mean over the present cells of each modality is to be.
        slope: Of the logit, per standard deviation; negative makes low scores go missing.

    Returns:
        ``(N, M)`` float64, zero where the modality is absent.

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
    """Draw in each split on its own, from a generator of the seed and the split, and repair as in `mcar`.

    The mask is fixed once, not drawn again per epoch, and a split's draws do not depend on the others.

    Args:
        present: ``(N, M)`` bool.
        splits: ``(N,)`` values of `Split`.
        rate: Probability of a loss, one for all or an array that broadcasts to ``(N, M)``.
        seed: Same patients in the same order and same seed, same mask.

    Raises:
        StudyError: If a rate is not between 0 and 1.
    """
    rates = np.broadcast_to(np.asarray(rate, dtype=np.float64), present.shape)  # (N, M)
    drawn, kept = present.copy(), present.copy()
    for position, split in enumerate(Split):
        rows = splits == split.value
        losses = _draw(present[rows], rates[rows], np.random.default_rng([seed, _STREAM, position]))
        drawn[rows], kept[rows] = losses.drawn, losses.kept
    return Losses(drawn, kept)


def achieved_rate(present: NDArray[np.bool_], kept: NDArray[np.bool_]) -> float:
    """The share of what was present that is gone; 0 where nothing was present."""
    n_present = int(present.sum())
    return 1 - int(kept.sum()) / n_present if n_present else 0.0


def _draw(
    present: NDArray[np.bool_], rate: float | NDArray[np.float64], generator: np.random.Generator
) -> Losses:
    _check_rate(rate)
    drawn = present & (generator.random(present.shape) >= rate)  # (N, M)
    # The highest draw among those present is a uniform choice of one; drawn for all, so that a repair does
    # not depend on who else needs one.
    order = np.where(present, generator.random(present.shape), -1.0)  # (N, M)
    kept = drawn.copy()
    bare = np.flatnonzero(present.any(axis=1) & ~kept.any(axis=1))
    kept[bare, order[bare].argmax(axis=1)] = True
    return Losses(drawn, kept)


def _check_rate(rate: float | NDArray[np.float64]) -> None:
    if not ((np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)).all():
        raise StudyError(f"--missing-rate is {rate}, expected a number between 0 and 1")


def _standard(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n,)`` with mean 0 and standard deviation 1; 0 where unknown, and everywhere if all are alike."""
    known = np.isfinite(scores)
    standard = np.zeros(len(scores))
    if known.any():
        centred = scores[known] - scores[known].mean()
        spread = float(np.sqrt((centred**2).mean()))
        # Scores that differ by rounding alone do not differ.
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
    """Let every site lack a modality that another site keeps.

    A site that lacks one by nature loses none. The losses are spread over the modalities as evenly as can be;
    which site loses which is drawn from the seed.

    Args:
        available: ``(S, M)`` bool, true where a site has a modality.
        spare: ``(S, M)`` bool, true where every patient of the site has another modality too. Only such a
            modality is taken, so that nobody has to be left out or given back what the site never has.
        seed: Same sites and seed, same losses.

    Returns:
        ``(S, M)`` bool, true where a site loses a modality; at most one per site.

    Raises:
        StudyError: If there are fewer than two sites or modalities, or there is no such choice.
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
        "--pattern exclusive: there is no way for every site to go without a modality that another site "
        "keeps, since some patients have one modality only"
    )


def _match(options: dict[int, list[int]], capacity: list[int]) -> dict[int, int]:
    """A modality for as many sites as can be, each at most as often as it has capacity (Kuhn, 1955)."""
    chosen: dict[int, int] = {}

    def place(site: int, seen: set[int]) -> bool:
        for slot in options[site]:
            if slot in seen:
                continue
            seen.add(slot)
            taken = [other for other, found in chosen.items() if found == slot]
            if len(taken) < capacity[slot] or any(place(other, seen) for other in taken):
                chosen[site] = slot
                return True
        return False

    for site in options:
        place(site, set())
    return chosen
