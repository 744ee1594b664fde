"""Predictions by the site's models, from the lines of its audit log: counts, and how far patients drift.

Presence drifts by the total variation between the shares of presence patterns now and in training, from 0 to
1; vectors by their root mean square distance from the training mean, in training deviations: 1 in training.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FEWEST", "Drift", "ModelTally", "Prediction", "Scores", "drift_of", "prediction_in", "scores_in"]

FEWEST: Final = 100  # patients, for a drift to be told: of eight patterns, chance alone then gives .1
WINDOW: Final = 500  # latest patients whose drift is told
METRICS: Final = ("auc", "tested_auc", "brier", "log_loss", "ece")


@dataclass(frozen=True)
class Prediction:
    """What a line says of one patient."""

    model: str  # digest of the package
    input: str  # keyed digest of patient and vectors
    pattern: str
    call: str
    never: bool  # whether training never had the pattern
    share: float | None  # of the train rows with the pattern; None if it was not told
    distance: Mapping[str, float]  # by modality


@dataclass(frozen=True)
class Scores:
    """What a line says of predictions whose outcome became known."""

    model: str  # digest of the package
    patients: int
    fewest: int  # patients of the rarest class that has any
    metrics: Mapping[str, float]  # auc, brier, log_loss, ece, and tested_auc: that of the package's test rows
    gaps: Mapping[str, tuple[float, float]]  # by class: share less mean probability, and its standard error


def scores_in(content: object) -> Scores | None:
    """The scores of a line, None if it holds none."""
    if not isinstance(content, Mapping):
        return None
    model, patients, fewest = (content.get(key) for key in ("model", "patients", "fewest"))
    gaps = content.get("gaps")
    if not (isinstance(model, str) and type(patients) is type(fewest) is int and isinstance(gaps, Mapping)):
        return None
    told = {
        str(name): (float(gap["gap"]), float(gap["error"]))
        for name, gap in gaps.items()
        if isinstance(gap, Mapping) and _is_number(gap.get("gap")) and _is_number(gap.get("error"))
    }
    metrics = {name: float(content[name]) for name in METRICS if _is_number(content.get(name))}
    return Scores(model, int(patients), int(fewest), metrics, told)


def prediction_in(content: object) -> Prediction | None:
    """The prediction of a line, None if it holds none."""
    if not isinstance(content, Mapping):
        return None
    texts = [content.get(key) for key in ("model", "input", "presence", "call")]
    share, distance = content.get("share"), content.get("distance")
    if not all(isinstance(text, str) for text in texts) or not isinstance(distance, Mapping):
        return None
    far = {str(name): float(value) for name, value in distance.items() if _is_number(value)}
    model, patient, pattern, call = map(str, texts)
    told = float(share) if isinstance(share, int | float) and _is_number(share) else None
    return Prediction(model, patient, pattern, call, content.get("seen") == 0, told, far)


def _is_number(value: Any) -> bool:  # noqa: ANN401 - of JSON
    return type(value) in {int, float} and math.isfinite(value)


@dataclass(frozen=True)
class Drift:
    """Patients of a time, against those of training."""

    patients: int
    calls: Mapping[str, int]
    patterns: Mapping[str, int]
    names: Mapping[str, str]  # modalities of a pattern, where a distance was told of each
    shares: Mapping[str, float]  # of the train rows, for patterns of which it was told
    never: int  # patients with a pattern that training never had
    presence: float  # total variation; patterns whose share was not told count as unchanged
    distance: Mapping[str, float]  # by modality, root mean square


def drift_of(predictions: Iterable[Prediction]) -> Drift:
    """Sum up predictions; of one input the last counts.

    Example:
        >>> one = Prediction("m", "a", "10", "no", False, 0.75, {"ct": 1.0})
        >>> other = Prediction("m", "b", "01", "no", False, 0.25, {})
        >>> drift_of([one, other]).presence
        0.25
    """
    last = list({(each.model, each.input): each for each in predictions}.values())
    patterns = Counter(each.pattern for each in last)
    shares = {each.pattern: each.share for each in last if each.share is not None}
    gains = (max(0.0, count / len(last) - shares[name]) for name, count in patterns.items() if name in shares)
    squares: dict[str, list[float]] = {}
    for each in last:
        for name, far in each.distance.items():
            squares.setdefault(name, []).append(far * far)
    return Drift(
        len(last),
        Counter(each.call for each in last),
        patterns,
        {each.pattern: ", ".join(each.distance) for each in last if _all_told(each)},
        shares,
        sum(each.never for each in last),
        sum(gains),
        {name: math.sqrt(sum(values) / len(values)) for name, values in sorted(squares.items())},
    )


def _all_told(prediction: Prediction) -> bool:
    return len(prediction.distance) == prediction.pattern.count("1")


@dataclass
class ModelTally:
    """Counts of one model since the log began, and its latest patients."""

    calls: Counter[str] = field(default_factory=Counter)
    patterns: Counter[str] = field(default_factory=Counter)
    latest: OrderedDict[str, Prediction] = field(default_factory=OrderedDict)  # by input
    scores: Scores | None = None  # the last ones

    def take(self, prediction: Prediction) -> None:
        """Count a prediction."""
        self.calls[prediction.call] += 1
        self.patterns[prediction.pattern] += 1
        self.latest.pop(prediction.input, None)
        self.latest[prediction.input] = prediction
        if len(self.latest) > WINDOW:
            self.latest.popitem(last=False)
