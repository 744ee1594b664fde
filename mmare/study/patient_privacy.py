"""What a study with ``[privacy] dp`` cannot have: settings that need numbers of patients without noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mmare.errors import StudyError
from mmare.study.choices import Schedule
from mmare.study.strategy_options import Weighting

if TYPE_CHECKING:
    from mmare.study.study import Study

__all__ = ["check_patient_privacy"]

LARGEST: Final = 100.0  # epsilon: odds that change by e**100 protect nobody


def check_patient_privacy(study: Study, options: Any) -> None:  # noqa: ANN401 - each strategy has its own
    """Raise `StudyError` if ``dp`` is out of range, or another setting contradicts it."""
    dp, training = study.privacy.dp, study.training
    assert dp is not None  # noqa: S101 - asked for by the caller
    ranges = {
        f"epsilon must be above 0 and at most {LARGEST:g}, found {dp.epsilon:g}": 0 < dp.epsilon <= LARGEST,
        f"delta must be above 0 and below 1, found {dp.delta:g}": 0 < dp.delta < 1,
        f"clip must be positive, found {dp.clip:g}": dp.clip > 0,
    }
    for sentence, holds in ranges.items():
        if not holds:
            raise StudyError(f"[privacy] dp {sentence}")
    zscored = [f"{each.scaling} of {each.name}" for each in study.modalities if each.scaling.standardises]
    several = next((each.name for each in study.modalities if each.scans in {"sample", "attention"}), "")
    exposed = getattr(options, "weighting", None) is Weighting.EXPOSURE
    conflicts = [
        (
            bool(zscored),
            f"scaling {', '.join(zscored)} needs moments of patients; expected l2 or none",
        ),
        (bool(several), f"scans of {several} are weighed anew in every step; expected one or mean"),
        (training.noise_probability > 0, "noise_probability scales its noise by such moments; expected 0"),
        (
            isinstance(training.oversample, str),
            "oversample balanced weighs by a site's class counts; expected weights, which the loss takes",
        ),
        (
            training.schedule is Schedule.PLATEAU,
            "schedule plateau follows the validation loss of every round; expected constant or cosine",
        ),
        (training.distillation > 0, "distillation compares two predictions of a patient; expected 0"),
        (exposed, f"strategy {study.federation.strategy} weighs by exposures; expected weighting by samples"),
        (
            getattr(options, "gap_step", 0.0) > 0,
            "options gap_step needs each site's validation loss; expected 0",
        ),
        (
            bool(study.privacy.extra),
            f"extra {', '.join(study.privacy.extra)} tells more of them",
        ),
    ]
    for applies, reason in conflicts:
        if applies:
            raise StudyError(f"[privacy] dp releases nothing without noise, but {reason}")
