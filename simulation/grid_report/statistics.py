"""What the cells of a grid say together: means over seeds, paired differences, ranks.

Why a t interval at any number of seeds and not a bootstrap below six: the mean of resampled differences never
leaves the range of the differences at hand, and for a symmetric error all n of them lie on one side of the
truth with probability 2^(1 - n). Even the widest bootstrap interval of three seeds therefore misses in at
least a quarter of all cases, of five in a sixteenth. Student's interval is exact for normal differences and
wide where seeds are few, which is what a reader needs to see.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd
from scipy.special import stdtrit

__all__ = ["Difference", "Verdict", "impossible", "paired", "ranks"]

_TOLERANCE = 1e-6  # of values that a file holds as decimal text
_LEVEL = 0.95


class Verdict(StrEnum):
    """What an interval of a difference allows to say."""

    HIGHER = "higher"
    LOWER = "lower"
    OPEN = "not distinguishable"
    UNKNOWN = "no interval"  # fewer than two pairs


@dataclass(frozen=True)
class Difference:
    """The mean of differences between values with the same seed.

    Args:
        mean: ``None`` if no seed has both values.
        low: Lower end of the 95 % interval; ``None`` for fewer than two pairs.
        high: Upper end, likewise.
        pairs: How many seeds have both values.
    """

    mean: float | None
    low: float | None
    high: float | None
    pairs: int

    @property
    def verdict(self) -> Verdict:
        """Higher or lower if the interval excludes zero."""
        if self.low is None or self.high is None:
            return Verdict.UNKNOWN
        if self.low > 0:
            return Verdict.HIGHER
        return Verdict.LOWER if self.high < 0 else Verdict.OPEN


def paired(values: pd.Series[float], others: pd.Series[float]) -> Difference:
    """Values less others, by seed, over the seeds that both have: mean and Student's 95 % interval.

    Example:
        >>> found = paired(pd.Series([0.8, 0.9, 0.7]), pd.Series([0.7, 0.7, math.nan]))
        >>> round(found.mean, 3), found.pairs, str(found.verdict)
        (0.15, 2, 'not distinguishable')
    """
    differences = (values - others).dropna().tolist()
    n = len(differences)
    if n < 2:  # noqa: PLR2004 - one difference has no spread
        return Difference(differences[0] if n else None, None, None, n)
    mean = statistics.fmean(differences)
    reach = float(stdtrit(n - 1, (1 + _LEVEL) / 2)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - reach, mean + reach, n)


def ranks(values: Sequence[float | None], *, decimals: int, most: bool = True) -> list[int | None]:
    """Who is best (1) and who is second (2), judged by what a reader sees.

    Values that are shown alike share a place, and after a shared first place there is no second. ``None`` is
    the place of all others, and of everything if fewer than two rows have a value.

    Example:
        >>> ranks([0.7001, 0.9, None, 0.7], decimals=3)
        [2, 1, None, 2]
    """
    shown = [None if value is None else round(value, decimals) for value in values]
    told = [value for value in shown if value is not None]
    if len(told) < 2:  # noqa: PLR2004 - one alone is best of nothing
        return [None] * len(shown)
    places = {
        value: 1 + sum(other > value if most else other < value for other in told) for value in set(told)
    }
    return [None if value is None or places[value] > 2 else places[value] for value in shown]  # noqa: PLR2004 - best and second are marked


def impossible(metrics: Mapping[str, Any]) -> bool:
    """Whether metrics cannot all be of one set of predictions.

    F1 is the harmonic mean of a class's precision and recall and so never above their mean; the same holds of
    the means over classes, and macro recall is balanced accuracy. Four rows of the thesis break this.

    Example:
        >>> impossible({"macro_f1": 0.6303, "macro_precision": 0.5850, "macro_recall": 0.6004})
        True
    """
    for prefix in ("", "macro_"):
        f1, *parts = (metrics.get(f"{prefix}{key}") for key in ("f1", "precision", "recall"))
        known = [part for part in parts if part is not None]
        if f1 is not None and len(known) == len(parts) and f1 > statistics.fmean(known) + _TOLERANCE:
            return True
    balanced, recall = metrics.get("balanced_accuracy"), metrics.get("macro_recall")
    return balanced is not None and recall is not None and abs(balanced - recall) > _TOLERANCE
