"""What is answered on average, of times and numbers: where Shapley values start; no class is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmare.errors import InputError
from mmare.metrics.survival_curves import kaplan_meier
from mmare.study.outcome import N_TIMES
from mmare.tasks.registry import task_of
from mmare.tasks.regression import Regression
from mmare.tasks.survival import Survival
from server.release.decide import OLD, PARTS, Decisions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmare.study.study import Study

__all__ = ["decide_on_average"]


def decide_on_average(study: Study, splits: Mapping[str, Any]) -> Decisions:
    """The prior of the validation rows: Kaplan-Meier risks until the horizons, or the mean target.

    Args:
        study: Of task survival or regression.
        splits: Metric states as the journal keeps them.

    Raises:
        InputError: If they are damaged.
    """
    found = Decisions(not_stated=dict.fromkeys(PARTS, f"they are of classes, this is of task {study.task}"))
    if not splits:
        found.not_stated["prior"] = OLD
        return found
    task = task_of(study)
    try:
        state = task.read(splits["validation"]["pooled"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the metric states in the run's journal are damaged ({error})") from None
    if not state.n:
        found.not_stated["prior"] = "no validation row that sites may tell"
    elif isinstance(task, Survival):
        censored, events = state.histogram.sum(dim=2).double()
        curve = kaplan_meier(events, censored)
        edges = [*task.edges.values()] or [N_TIMES]
        found.made["prior"] = [1 - curve[edge].item() for edge in edges]
    elif isinstance(task, Regression):
        found.made["prior"] = [state.sums[0, 3].item() / state.n * task.spread + task.centre]
    return found
