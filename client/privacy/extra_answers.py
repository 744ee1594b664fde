"""Checks of what a site tells beside the metrics of a split, if its study names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmare.metrics.attribution import AttributionState
from mmare.metrics.calibration import CalibrationState
from mmare.wire.messages import Split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmare.study.study import Study
    from mmare.wire.messages import Evaluation

__all__ = ["check_attribution", "check_calibration"]


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


def check_attribution(evaluation: Evaluation, disclosed: Mapping[str, tuple[int, ...]], study: Study) -> None:
    """Check that Shapley values are summed over the test rows of ``disclosed`` patterns, rows by class.

    Raises:
        ValueError: If they are not.
    """
    if evaluation.split is not Split.TEST:
        raise ValueError(f"Shapley values of the split {evaluation.split}")
    try:
        state = AttributionState.from_dict(evaluation.attribution, len(study.modalities))
    except ValueError as error:
        raise ValueError(f"an invalid attribution state: {error}") from None
    rows = [
        sum(sum(counts) for pattern, counts in disclosed.items() if pattern[slot] == "1")
        for slot in range(len(study.modalities))
    ]
    if state.rows.tolist() != rows:
        raise ValueError("Shapley values of other rows than the patterns")
