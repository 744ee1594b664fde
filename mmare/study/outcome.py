"""What a study learns of a patient, without torch: its task, the names of its metrics, times as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mmare.study.choices import ExtraAnswer, Hazard, Select, TaskName

if TYPE_CHECKING:
    from mmare.study.study import Study

__all__ = [
    "CLASSES",
    "N_TIMES",
    "SPECS",
    "TASKS",
    "Outcome",
    "RegressionSpec",
    "SurvivalSpec",
    "headline_of",
    "outcome_rules",
    "time_code",
]

N_TIMES: Final = 128  # bins of the time from 0 to the end of follow-up, of equal width


@dataclass(frozen=True)
class SurvivalSpec:
    """Time to an event, as hazards of intervals.

    Args:
        follow_up: End of the time that is modelled, in ``unit``; who is followed longer is censored there.
        intervals: Of the hazard, with about equally many events each.
        unit: Of all times.
        horizons: Times until which risks are judged.
        hazard: ``cox``: one log risk, the same at all times.
    """

    follow_up: float
    intervals: int = 8
    unit: str = "months"
    horizons: tuple[float, ...] = ()
    hazard: Hazard = Hazard.INTERVALS

    @property
    def edges(self) -> dict[float, int]:
        """Number of bins of the time before each horizon."""
        return {time: max(round(time / self.follow_up * N_TIMES), 1) for time in self.horizons}


@dataclass(frozen=True)
class RegressionSpec:
    """A number between two ends, which are told: what is outside is a mistake.

    Args:
        low: Lower end.
        high: Upper end.
        unit: Of both.
    """

    low: float
    high: float
    unit: str = ""


SPECS: Final = {"survival": SurvivalSpec, "regression": RegressionSpec}  # tables of the tasks of these names


@dataclass(frozen=True)
class Outcome:
    """A kind of outcome.

    Args:
        headline: Metric by which sites are compared; larger is better.
        shown: Titles of metrics, the first of a page and of the console.
        further: The same, of further columns of a report.
        selects: Scores that can select the best round, the default first.
        strata: Groups that are counted and split alike; none: the study's classes.
        method: How the metrics are made, a sentence for reports.
    """

    headline: str
    shown: Mapping[str, str]
    further: Mapping[str, str]
    selects: tuple[Select, ...]
    strata: tuple[str, ...] = ()
    method: str = ""


CLASSES: Final = Outcome(
    headline="balanced_accuracy",
    shown={"balanced_accuracy": "Balanced accuracy", "auc": "AUC", "macro_f1": "Macro F1"},
    further={
        "accuracy": "Accuracy",
        "macro_precision": "Macro precision",
        "macro_recall": "Macro recall",
    },
    selects=(
        Select.BALANCED_ACCURACY,
        Select.WORST_SITE,
        Select.AUC,
        Select.LOSS,
        Select.BALANCED_LOSS,
    ),
    method="Balanced accuracy is the mean of the shares of each class that were recognised, macro F1 the "
    "mean of the classes' F1. AUC is the chance that a patient of the class gets a higher score than "
    "one without it; with more than two classes, the mean over one class against the rest.",
)

TASKS: Final[Mapping[TaskName, Outcome]] = {
    TaskName.CLASSIFICATION: CLASSES,
    TaskName.SURVIVAL: Outcome(
        headline="concordance",
        shown={"concordance": "Concordance", "log_loss": "Log loss"},
        further={"integrated_brier": "Integrated Brier score", "events": "Events"},
        selects=(Select.LOSS, Select.CONCORDANCE, Select.WORST_SITE),
        strata=("censored", "event"),
        method="Concordance is the chance that of two patients, of whom one is known to have had the event "
        "first, that one got the higher risk; pairs that share a bin of the risk count half, pairs that "
        f"share one of the {N_TIMES} bins of the time are not counted. Log loss is the negative "
        "log-likelihood of a patient's time, censoring taken into account. AUC at a time is the chance that "
        "a patient with the event by then has a higher risk than one without, cases weighed by the inverse "
        "probability of not being censored before, from the Kaplan-Meier curve of all sites.",
    ),
    TaskName.REGRESSION: Outcome(
        headline="r2",
        shown={"r2": "R²", "mae": "MAE", "rmse": "RMSE"},
        further={"slope": "Calibration slope"},
        selects=(Select.LOSS, Select.R2, Select.WORST_SITE),
        strata=("measured",),
        method="MAE is the mean absolute, RMSE the root mean squared error. R² is the share of the variance "
        "of the targets that is explained, below zero where their mean predicts better. The calibration "
        "slope is that of the targets over the predictions: below one where these are too extreme. Intervals "
        "are those of the normal limit.",
    ),
}


def outcome_rules(study: Study) -> list[tuple[bool, str]]:
    """What must hold of a study's task, each with the sentence for where it does not."""
    selects = TASKS[study.task].selects
    select = study.training.select
    rules = [
        (
            select in selects,
            f"[training] select of task {study.task} must be one of {', '.join(selects)}, found {select}",
        ),
        *(
            (
                (getattr(study, name) is not None) == (study.task == name),
                f"[{name}] and task {name} belong together, found task {study.task}",
            )
            for name in SPECS
        ),
    ]
    if study.task is TaskName.CLASSIFICATION:
        return rules + _rules_of_classes(study)
    counted = any(each.scaling != "site" for each in study.modalities)
    cox = study.survival is not None and study.survival.hazard is Hazard.COX
    rules.append(
        (counted or not cox, "[survival] hazard cox needs a number of rows, which scaling site of all hides")
    )
    return [*rules, *_rules_of_spec(study), *_rules_of_others(study)]


def _rules_of_classes(study: Study) -> list[tuple[bool, str]]:
    classes = study.classes
    return [
        (len(classes) > 1, f"[study] classes must name at least two, found {list(classes)}"),
        (all(classes), "[study] classes holds an empty name"),
        (len(set(classes)) == len(classes), "[study] classes names one class twice"),
        (
            study.positive in (None, *classes),
            f"[study] positive {study.positive!r} is not one of the classes",
        ),
    ]


def _rules_of_spec(study: Study) -> list[tuple[bool, str]]:
    spec, most = study.survival or study.regression, N_TIMES // 2
    if isinstance(spec, RegressionSpec):
        ends = -math.inf < spec.low < spec.high < math.inf
        return [(ends, f"[regression] low must be below high, found {spec.low:g} and {spec.high:g}")]
    if spec is None:
        return []
    return [
        (
            0 < spec.follow_up < math.inf,
            f"[survival] follow_up must be a positive number of {spec.unit}, found {spec.follow_up:g}",
        ),
        (
            1 < spec.intervals <= most,
            f"[survival] intervals must be between 2 and {most}, found {spec.intervals}",
        ),
        (bool(spec.unit), "[survival] unit is empty"),
        *(
            (
                0 < time < spec.follow_up,
                f"[survival] a horizon of {time:g} {spec.unit}, expected one above 0 and before the end of "
                f"follow-up, {spec.follow_up:g}",
            )
            for time in spec.horizons
        ),
    ]


def _rules_of_others(study: Study) -> list[tuple[bool, str]]:
    """What is of classes alone."""
    task = study.task
    return [
        (study.positive is None, f"[study] positive is of task classification, found task {task}"),
        (
            study.training.oversample is None,
            f"[training] oversample is of classes: of task {task} it would shift what is predicted",
        ),
        (
            study.privacy.dp is None,
            f"[privacy] dp has no noise for the metrics of task {task} yet: they are not counts of scores",
        ),
        *(
            (each not in study.privacy.extra, f"[privacy] extra {each} is of predicted classes")
            for each in (ExtraAnswer.CALIBRATION, ExtraAnswer.COMPARISON, ExtraAnswer.SHAPLEY)
        ),
    ]


def headline_of(metrics: Mapping[str, Any]) -> str:
    """Name of the metric by which sites are compared, among those of one group of rows.

    Example:
        >>> headline_of({"n": 9, "concordance": 0.7}), headline_of({})
        ('concordance', 'balanced_accuracy')
    """
    known = (outcome.headline for outcome in TASKS.values())
    return next((name for name in known if name in metrics), CLASSES.headline)


def time_code(time: float, event: bool, follow_up: float) -> int:
    """A time and whether it ends with the event, as one label: twice the bin, and one for an event.

    Bins are closed on the right; who is followed beyond ``follow_up`` is censored in the last one.

    Example:
        >>> time_code(0.0, True, 128.0), time_code(3.0, False, 128.0), time_code(500.0, True, 128.0)
        (1, 4, 254)
    """
    if time > follow_up:
        return 2 * (N_TIMES - 1)
    place = math.ceil(time / follow_up * N_TIMES) - 1
    return 2 * min(max(place, 0), N_TIMES - 1) + int(event)
