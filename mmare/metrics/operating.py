"""Operating points, decision curves, reliability and prediction sets from the counts of a `MetricState`.

Everything here is of pooled counts, so it is the same as over pooled rows, up to the bins of the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import torch

from mmare.metrics.state import BINARY, N_BINS, N_CALIBRATION_BINS, class_scores

if TYPE_CHECKING:
    from torch import Tensor

    from mmare.metrics.decisions import Calibration
    from mmare.metrics.state import MetricState

__all__ = [
    "Rule",
    "choose_threshold",
    "class_scores_at",
    "class_scores_of",
    "counts_at",
    "decision_curve",
    "positive_scores",
    "prediction_thresholds",
    "rates",
    "reliability",
    "set_coverage",
    "wilson",
]

_Z: Final = 1.959963984540054  # of a 95 % interval
_RELIABILITY_BINS: Final = 10
_CENTRES: Final = (torch.arange(N_BINS, dtype=torch.float64) + 0.5) / N_BINS  # (N,)


class Rule(StrEnum):
    """How an operating point is chosen."""

    SENSITIVITY = "sensitivity"  # at least so large, then the highest threshold
    SPECIFICITY = "specificity"  # at least so large, then the lowest threshold
    YOUDEN = "youden"  # largest sum of both


def positive_scores(state: MetricState, positive: int) -> tuple[Tensor, Tensor]:
    """Counts ``(N,)`` of positives and negatives by bin of the positive class's probability; two classes."""
    found = state.histogram.sum(dim=1)  # (2, N)
    found = found if positive == 1 else found.flip(1)
    return found[positive], found[1 - positive]


def choose_threshold(positive: Tensor, negative: Tensor, rule: Rule, least: float = 0.0) -> float:
    """The probability from which on a patient is called positive, an edge of a bin.

    Args:
        positive: ``(N,)`` counts of at least one positive.
        negative: ``(N,)`` counts of at least one negative.
        rule: Of several thresholds that serve it equally, the highest, by specificity the lowest.
        least: Sensitivity or specificity.

    Example:
        >>> score = torch.zeros(N_BINS, dtype=torch.int64)
        >>> positive = score.index_fill(0, torch.tensor([1024, 1536]), 1)
        >>> choose_threshold(positive, score.index_fill(0, torch.tensor([512]), 1), Rule.SENSITIVITY, 0.9)
        0.5
    """
    sensitivity, specificity = _curves(positive, negative)
    if rule is Rule.SENSITIVITY:
        place = int((sensitivity >= least).nonzero().max())
    elif rule is Rule.SPECIFICITY:
        place = int((specificity >= least).nonzero().min())
    else:
        both = (sensitivity + specificity).flip(0)
        place = len(both) - 1 - int(both.argmax())
    return place / N_BINS


def _curves(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Sensitivity and specificity ``(N + 1,)`` when all from a bin on are called positive."""
    zero = torch.zeros(1, dtype=torch.int64)
    missed, spared = (torch.cat([zero, counts.cumsum(0)]) for counts in (positive, negative))
    return (positive.sum() - missed).double() / positive.sum(), spared.double() / negative.sum()


def counts_at(positive: Tensor, negative: Tensor, threshold: float) -> dict[str, int]:
    """True and false positives, false and true negatives at an edge of a bin."""
    place = round(threshold * N_BINS)
    return {
        "tp": int(positive[place:].sum()),
        "fp": int(negative[place:].sum()),
        "fn": int(positive[:place].sum()),
        "tn": int(negative[:place].sum()),
    }


def class_scores_at(state: MetricState, positive: int, threshold: float) -> dict[str, float | int | None]:
    """Rows, and the scores of predicted classes if a patient is called positive from a threshold on.

    Two classes; `class_scores` says which scores, and where they are undefined.
    """
    counts = counts_at(*positive_scores(state, positive), threshold)
    confusion = torch.tensor(
        [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]], dtype=torch.float64
    )
    confusion = confusion if positive == 1 else confusion.flip(0, 1)
    scores = class_scores(confusion[None], positive)
    return {"n": state.n, **{name: None if value is None else value.item() for name, value in scores.items()}}


def rates(counts: dict[str, int]) -> dict[str, Any]:
    """Rates with 95 % intervals (`wilson`), ``None`` where nobody is counted."""
    tp, fp, fn, tn = (counts[name] for name in ("tp", "fp", "fn", "tn"))
    return {
        **counts,
        "sensitivity": wilson(tp, tp + fn),
        "specificity": wilson(tn, tn + fp),
        "ppv": wilson(tp, tp + fp),
        "npv": wilson(tn, tn + fn),
    }


def wilson(hits: int, n: int) -> list[float] | None:
    """A proportion and its 95 % score interval (Wilson 1927).

    Example:
        >>> [round(each, 3) for each in wilson(9, 10)]
        [0.9, 0.596, 0.982]
    """
    if n == 0:
        return None
    share, square = hits / n, _Z**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n**2))
    return [share, max(middle - half, 0.0), min(middle + half, 1.0)]


@dataclass(frozen=True)
class _Scored:
    """Rows of two classes by their probability of class 1, calibrated or not."""

    counts: Tensor  # (2, N) by true class
    score: Tensor  # (N,) of the middle of each bin

    @classmethod
    def of(cls, state: MetricState, calibration: Calibration | None) -> _Scored:
        score = _CENTRES
        if calibration is not None:
            score = calibration.probabilities(torch.stack([(1 - score).log(), score.log()], 1))[:, 1]
        return cls(state.histogram.sum(dim=1), score)


def reliability(state: MetricState, positive: int | None, calibration: Calibration | None) -> dict[str, Any]:
    """Of bins of a probability: rows, its mean, and how often it came true; and the ECE of `MetricState`.

    Of two classes it is the probability of the positive class (by default the second), before or after
    calibration; of more, that of the predicted class, before only.
    """
    if state.n_classes != BINARY:
        rows, hits, sums = state.calibration.sum(dim=0)  # (C,) each
        return {"bins": _bins(rows, hits, sums), "ece": _ece(rows, hits, sums)}
    scored = _Scored.of(state, calibration)
    wanted = 1 if positive is None else positive
    score = scored.score if wanted == 1 else 1 - scored.score
    place = (score * _RELIABILITY_BINS).long().clamp(max=_RELIABILITY_BINS - 1)
    n, hits = scored.counts.sum(dim=0).double(), scored.counts[wanted].double()
    sums = [_gather(place, each, _RELIABILITY_BINS) for each in (n, hits, n * score)]
    called = (scored.score >= 1 / 2).long()  # (N,), the more probable class
    confidence = torch.maximum(scored.score, 1 - scored.score)
    right = scored.counts.gather(0, called[None])[0].double()
    place = (confidence * N_CALIBRATION_BINS).long().clamp(max=N_CALIBRATION_BINS - 1)
    parts = [_gather(place, each, N_CALIBRATION_BINS) for each in (n, right, n * confidence)]
    return {"bins": _bins(*sums), "ece": _ece(*parts)}


def _gather(place: Tensor, values: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64).index_add_(0, place, values)


def _bins(rows: Tensor, hits: Tensor, sums: Tensor) -> list[dict[str, float | int]]:
    return [
        {"n": round(n), "mean": total / n, "observed": hit / n}
        for n, hit, total in zip(rows.tolist(), hits.tolist(), sums.tolist(), strict=True)
        if n > 0
    ]


def _ece(rows: Tensor, hits: Tensor, sums: Tensor) -> float | None:
    return ((hits - sums).abs().sum() / rows.sum()).item() if rows.sum() else None


def decision_curve(
    state: MetricState, positive: int, calibration: Calibration | None
) -> list[dict[str, float]]:
    """Net benefit by threshold probability (Vickers & Elkin 2006): of the model, and of treating all.

    Two classes, at least one row; treating none has net benefit 0.
    """
    scored = _Scored.of(state, calibration)
    score = scored.score if positive == 1 else 1 - scored.score
    ill, well = scored.counts[positive].double(), scored.counts[1 - positive].double()
    n = (ill + well).sum().item()
    curve = []
    for percent in range(1, 100):
        odds = percent / (100 - percent)
        treated = score >= percent / 100
        curve.append(
            {
                "threshold": percent / 100,
                "model": (ill[treated].sum().item() - well[treated].sum().item() * odds) / n,
                "all": (ill.sum().item() - well.sum().item() * odds) / n,
            }
        )
    return curve


def class_scores_of(state: MetricState, true: int) -> Tensor:
    """Counts ``(N,)`` of the rows of a class by bin of the probability of that class itself."""
    if state.n_classes != BINARY:
        return state.histogram[true, true]
    found = state.histogram[true].sum(dim=0)
    return found if true == 1 else found.flip(0)


def prediction_thresholds(state: MetricState, level: float) -> tuple[float | None, ...]:
    """Per class, from which probability on it belongs into a prediction set (Vovk 2012, label-conditional).

    The k-th smallest probability that its n validation rows give their own class, k = floor((n + 1)(1 -
    level)), down to the edge of its bin. ``None`` where k would be 0, as with fewer than 9 rows at 90 %.
    """
    found: list[float | None] = []
    for true in range(state.n_classes):
        scores = class_scores_of(state, true)
        k = math.floor((int(scores.sum()) + 1) * (1 - level) + 1e-9)
        found.append(int((scores.cumsum(0) >= k).nonzero()[0]) / N_BINS if k else None)
    return tuple(found)


def set_coverage(state: MetricState, thresholds: tuple[float | None, ...]) -> dict[str, Any]:
    """How prediction sets do on other rows: share of each class whose set holds it, mean size of sets."""
    places = [round((each or 0.0) * N_BINS) for each in thresholds]
    held = [int(class_scores_of(state, true)[place:].sum()) for true, place in enumerate(places)]
    inside = 0
    for scored, place in enumerate(places):
        rows = (
            state.histogram.sum(dim=(0, 1))
            if state.n_classes == BINARY
            else state.histogram[:, scored].sum(dim=0)
        )
        rows = rows.flip(0) if state.n_classes == BINARY and scored == 0 else rows
        inside += int(rows[place:].sum())
    return {
        "coverage": [wilson(hits, n) for hits, n in zip(held, state.counts, strict=True)],
        "mean_size": inside / state.n if state.n else None,
    }
