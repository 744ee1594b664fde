"""Calibration, operating point and prediction sets of a run's model, from the sums that its sites sent.

All is chosen on validation rows and reported on test rows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from mmare.errors import InputError
from mmare.metrics.decisions import Calibration, OperatingPoint, PredictionSets
from mmare.metrics.operating import (
    Rule,
    choose_threshold,
    counts_at,
    decision_curve,
    positive_scores,
    prediction_thresholds,
    rates,
    reliability,
    set_coverage,
)
from mmare.metrics.state import BINARY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmare.metrics.state import MetricState
    from mmare.study.study import Study
    from server.store.states import KeptStates

__all__ = ["Decisions", "PointRule", "decide", "point_rule"]

LEVEL: Final = 0.9  # of prediction sets
FEWEST: Final = math.ceil(1 / (1 - LEVEL) - 1e-9) - 1  # validation rows of a class, for a set to leave it out
FEW: Final = 100  # validation rows of a class, below which a calibration rests on few
OLD: Final = "the run is of an earlier version and kept no metric states"
UNNAMED: Final = 'the study does not name it: [privacy] extra = ["calibration"]'
PARTS: Final = ("calibration", "operating_point", "prediction_sets")


@dataclass(frozen=True)
class PointRule:
    """How an operating point is chosen."""

    rule: Rule
    least: float = 0.0

    def __str__(self) -> str:
        if self.rule is Rule.YOUDEN:
            return "largest sum of sensitivity and specificity on validation"
        return f"{self.rule} of at least {self.least:g} on validation"


@dataclass
class Decisions:
    """What is made of the states, how it did, and why a part was not made."""

    made: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    not_stated: dict[str, str] = field(default_factory=dict)


def point_rule(sensitivity: float | None, specificity: float | None, *, youden: bool) -> PointRule | None:
    """The rule that options ask for, if any; an `InputError` if there are two."""
    asked = [
        PointRule(rule, least)
        for rule, least in ((Rule.SENSITIVITY, sensitivity), (Rule.SPECIFICITY, specificity))
        if least is not None
    ]
    asked += [PointRule(Rule.YOUDEN)] if youden else []
    if len(asked) > 1:
        raise InputError("--sensitivity, --specificity and --youden: expected one of them")
    return asked[0] if asked else None


def decide(study: Study, states: Mapping[str, KeptStates], rule: PointRule | None) -> Decisions:
    """Make what can be made; ``states`` are those of validation and test."""
    found = Decisions()
    if not states:
        found.not_stated = dict.fromkeys(PARTS, OLD)
        return found
    validation, test = states["validation"], states["test"]
    missing = [name for name, n in zip(study.classes, validation.pooled.counts, strict=True) if not n]
    lacks = f"validation has no rows of {', '.join(missing)} to tell" if missing else ""
    calibration = _calibrate(study, validation, test, lacks, found)
    _choose_point(study, validation, test, lacks, rule, calibration, found)
    _predict_sets(study, validation.pooled, test.pooled, found)
    if study.positive_index is not None and len(study.classes) == BINARY and test.pooled.n:
        curve = decision_curve(test.pooled, study.positive_index, calibration)
        found.report["decision_curve"] = curve
    found.report["bins_of_at_least"] = max(validation.pooled.coarse, test.pooled.coarse)
    return found


def _calibrate(
    study: Study, validation: KeptStates, test: KeptStates, lacks: str, found: Decisions
) -> Calibration | None:
    grid = validation.calibration
    made = None if grid is None else grid.fit()
    if grid is None or made is None:
        found.not_stated["calibration"] = UNNAMED if grid is None else lacks
        return None
    classes = len(study.classes)
    found.made["calibration"] = asdict(made)
    report: dict[str, Any] = {
        "rows": dict(zip(study.classes, grid.counts.tolist(), strict=True)),
        "log_loss": {},
        "brier": {},
        "ece": {},
        "caution": _caution(study, grid.counts.tolist()),
    }
    for name, split in (("validation", validation), ("test", test)):
        if split.calibration is not None and split.pooled.n:
            unchanged = Calibration(1.0, (0.0,) * classes)
            before, after = (split.calibration.means_at(each) for each in (unchanged, made))
            for loss, value in before.items():
                report[loss][name] = [value, after[loss]]
            plots = [reliability(split.pooled, study.positive_index, at) for at in (None, made)]
            plots = plots if classes == BINARY else plots[:1]
            report["ece"][name] = [plot["ece"] for plot in plots]
            report["reliability"] = {"rows": name, **dict(zip(("before", "after"), plots, strict=False))}
    found.report["calibration"] = report
    return made


def _caution(study: Study, counts: list[int]) -> str:
    """What to know of a calibration on few rows; empty if they are enough."""
    fewest = min(counts)
    if fewest >= FEW:
        return ""
    rare = study.classes[counts.index(fewest)]
    return (
        f"the calibration rests on {sum(counts)} validation rows, {fewest} of them {rare}; "
        "where rows are few, a prior keeps it close to no change"
    )


def _choose_point(
    study: Study,
    validation: KeptStates,
    test: KeptStates,
    lacks: str,
    rule: PointRule | None,
    calibration: Calibration | None,
    found: Decisions,
) -> None:
    positive = study.positive_index
    if positive is None or len(study.classes) != BINARY:
        why = "it needs two classes, of which the study names one as positive"
    elif rule is None:
        why = "no rule was given, so the more probable class is called"
    else:
        why = lacks
    if why or positive is None or rule is None:
        found.not_stated["operating_point"] = why
        return
    scores = positive_scores(validation.pooled, positive)
    threshold = choose_threshold(*scores, rule.rule, rule.least)
    made = OperatingPoint(str(rule), threshold, _calibrated(threshold, positive, calibration))
    found.made["operating_point"] = asdict(made)

    def at(state: MetricState) -> dict[str, Any]:
        return rates(counts_at(*positive_scores(state, positive), threshold))

    found.report["operating_point"] = {
        "validation": at(validation.pooled),
        "test": {"pooled": at(test.pooled), "sites": {site: at(state) for site, state in test.sites.items()}},
    }


def _calibrated(threshold: float, positive: int, calibration: Calibration | None) -> float:
    if calibration is None:
        return threshold
    logits = torch.tensor([[1 - threshold, threshold]], dtype=torch.float64).log()
    logits = logits if positive == 1 else logits.flip(1)
    return 1.0 if threshold == 1 else calibration.probabilities(logits)[0, positive].item()


def _predict_sets(study: Study, validation: MetricState, test: MetricState, found: Decisions) -> None:
    thresholds = prediction_thresholds(validation, LEVEL)
    cannot = {
        name: f"{n} validation cases that sites may tell, expected at least {FEWEST}"
        for name, n, threshold in zip(study.classes, validation.counts, thresholds, strict=True)
        if threshold is None
    }
    if len(cannot) == len(study.classes):
        listed = "; ".join(f"{name}: {why}" for name, why in cannot.items())
        found.not_stated["prediction_sets"] = listed
        return
    found.made["prediction_sets"] = asdict(PredictionSets(LEVEL, thresholds))
    told = set_coverage(test, thresholds)
    found.report["prediction_sets"] = {
        "cannot": cannot,
        "test": {
            "coverage": dict(zip(study.classes, told["coverage"], strict=True)),
            "mean_size": told["mean_size"],
        },
    }
