"""The task of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmare.study.choices import Hazard
from mmare.tasks.classification import Classification
from mmare.tasks.cox import Cox
from mmare.tasks.regression import Regression
from mmare.tasks.survival import Survival

if TYPE_CHECKING:
    from mmare.study.study import Study
    from mmare.tasks.base import Task

__all__ = ["task_of"]


def task_of(study: Study) -> Task[Any]:
    """A fresh task, whose buffers hold their starting values.

    Example:
        >>> from mmare.study.choices import Kind
        >>> from mmare.study.specs import ModalitySpec
        >>> from mmare.study.study import Study
        >>> task_of(Study("s", ("a", "b"), (ModalitySpec("ct", Kind.FEATURES, 512),))).outputs
        2
    """
    if study.survival is not None:
        kind = Cox if study.survival.hazard is Hazard.COX else Survival
        return kind(study.survival.intervals, study.survival.edges)
    if study.regression is not None:
        return Regression(study.regression.low, study.regression.high)
    return Classification(len(study.classes), study.positive_index)
