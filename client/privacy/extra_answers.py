"""Checks of what a site tells beside metrics and moments, if its study calls for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmare.metrics.attribution import AttributionState
from mmare.metrics.calibration import CalibrationState
from mmare.study.outcome import N_TIMES
from mmare.wire.messages import EVENT_TIMES, Split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmare.study.study import Study
    from mmare.wire.messages import Evaluation, Moments

__all__ = ["check_attribution", "check_calibration", "check_events"]


def check_calibration(evaluation: Evaluation, whole: tuple[int, ...], study: Study) -> None:
    """Check that losses are of the rows that the metrics of the split disclose, ``whole`` by class.

    Raises:
        ValueError: If they are not.
    """
    try:
        state = CalibrationState.from_dict(evaluation.calibration, len(study.classes))
    except ValueError as error:
        raise ValueError(f"an invalid calibration state: {error}") from None
    if tuple(state.counts.tolist()) != whole:
        raise ValueError("calibration of other rows than the metrics")


def check_attribution(
    evaluation: Evaluation,
    whole: tuple[int, ...],
    disclosed: Mapping[str, tuple[int, ...]],
    study: Study,
    limit: int,
) -> None:
    """Check that Shapley values are summed over test rows in large groups.

    Those of ``disclosed`` patterns (rows by class), and of the rest of the ``whole`` as many as neither are
    few nor leave few out.

    Raises:
        ValueError: If they are not.
    """
    if evaluation.split is not Split.TEST:
        raise ValueError(f"Shapley values of the split {evaluation.split}")
    try:
        state = AttributionState.from_dict(evaluation.attribution, len(study.modalities))
    except ValueError as error:
        raise ValueError(f"an invalid attribution state: {error}") from None
    rest = sum(whole) - sum(map(sum, disclosed.values()))
    for slot, rows in enumerate(state.rows.tolist()):
        more = rows - sum(sum(counts) for pattern, counts in disclosed.items() if pattern[slot] == "1")
        large = limit <= more <= rest and (more == rest or rest - more >= limit)
        if more and not large:
            raise ValueError("Shapley values of a small group, or of other rows than the patterns")


def check_events(events: Moments | None, study: Study, limit: int) -> None:
    """Check the events by bin of the time: whole patients, at least ``limit`` in each bin that has any.

    Raises:
        ValueError: If they are not.
    """
    if events is None or study.survival is None:
        raise ValueError("event times missing, or of another task")
    if events.modality != EVENT_TIMES or events.counts or events.squares != events.total:
        raise ValueError("event times of another form")
    if len(events.total) != N_TIMES or sum(events.total) != events.n:
        raise ValueError("event times of other bins or rows")
    if not all(count == 0 or (count.is_integer() and count >= max(limit, 1)) for count in events.total):
        raise ValueError("event times of a group that is too small, or no number of patients")
