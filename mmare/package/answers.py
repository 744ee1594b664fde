"""What a released model answers: probabilities of classes, risks until horizons, or a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmare.study.outcome import N_TIMES
from mmare.tasks.survival import Survival

if TYPE_CHECKING:
    from torch import Tensor

    from mmare.study.study import Study
    from mmare.tasks.base import Task

__all__ = ["NUMBER", "answers_of", "curve_times", "medians", "tells", "values_of"]

NUMBER = "value"  # the answer of task regression
_HALF = 0.5


def answers_of(study: Study) -> tuple[str, ...]:
    """Names of what is answered: classes, ``risk_12`` for the horizon 12, or ``value``.

    Without a horizon the risk is until the end of follow-up.
    """
    if study.survival is not None:
        times = study.survival.horizons or (study.survival.follow_up,)
        return tuple(f"risk_{time:g}" for time in times)
    return (NUMBER,) if study.regression is not None else study.classes


def tells(study: Study) -> str:
    """The same in words."""
    if study.survival is not None:
        times = ", ".join(name.removeprefix("risk_") for name in answers_of(study))
        return f"the risk of the event until {times} {study.survival.unit}"
    if study.regression is not None:
        spec = study.regression
        return f"a number from {spec.low:g} to {spec.high:g} {spec.unit}".strip()
    return " from ".join(study.classes)


def values_of(task: Task[Any], outputs: Tensor) -> Tensor:
    """Answers ``(B, V)`` float64 of times or numbers to outputs ``(B, K)``."""
    outputs = outputs.double()
    with torch.no_grad():
        if isinstance(task, Survival):
            edges = [*task.edges.values()] or [N_TIMES]
            return 1 - task.survival(outputs, torch.tensor(edges))
        return task.prediction(outputs)[:, None]


def curve_times(study: Study) -> list[float]:
    """Times at which a predicted curve is told, in the study's unit: every 16th of the follow-up."""
    assert study.survival is not None  # noqa: S101 - of task survival
    return [study.survival.follow_up * part / 16 for part in range(17)]


def medians(study: Study, curves: Tensor) -> list[float | None]:
    """Times until which half is expected to have the event, None where that is beyond follow-up.

    Args:
        study: Of task survival.
        curves: ``(B, T + 1)``, probability of no event until each edge of the bins.
    """
    assert study.survival is not None  # noqa: S101 - of task survival
    found: list[float | None] = []
    for curve in curves.tolist():
        place = next((edge for edge, left in enumerate(curve) if left <= _HALF), None)
        if place is None:
            found.append(None)
            continue
        before, after = curve[place - 1], curve[place]
        part = (before - _HALF) / (before - after)
        found.append((place - 1 + part) / N_TIMES * study.survival.follow_up)
    return found
