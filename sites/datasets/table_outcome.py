"""Which columns of a table say what is learned: a class, a time and its event, or a number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mmare.errors import StudyError
from mmare.study.choices import TaskName
from mmare.study.outcome import TASKS, RegressionSpec, SurvivalSpec
from mmare.study.specs import TrainingSpec
from sites.datasets.table_rows import check_classes
from sites.federation import SIMULATED
from sites.numbers import Problem, not_available, refuse
from sites.outcomes import (
    EVENT,
    LABEL,
    TARGET,
    TIME,
    fifths,
    parse_labels,
    parse_times,
    read_labels,
    target_problems,
    time_problems,
)
from sites.tabular import TextTable, finite_number

__all__ = ["ClassColumn", "TableOutcome", "TargetColumn", "TimeColumns"]


class TableOutcome(ABC):
    """What is learned, as columns of a table."""

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, str]:
        """What each column means."""

    @abstractmethod
    def problems(self, table: TextTable) -> list[Problem]:
        """Cells that are of another kind."""

    @abstractmethod
    def read(self, table: TextTable) -> tuple[pd.DataFrame, list[str], dict[str, Any]]:
        """The columns of manifests, the stratum of each row, and the settings of the study.

        Raises:
            DataError: If a cell is of another kind, or there is nothing to learn.
        """


@dataclass(frozen=True)
class ClassColumn(TableOutcome):
    """A class name.

    Args:
        label: Column.
        classes: Names in label order.
        positive: Class of binary F1; of two classes the last one by default.

    Raises:
        StudyError: If there are fewer than two different names.
    """

    label: str
    classes: Sequence[str]
    positive: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise StudyError(
                f"--classes is {','.join(self.classes)!r}, expected at least two different names"
            )

    @property
    def columns(self) -> Mapping[str, str]:
        """As of `TableOutcome`."""
        return {self.label: "label"}

    def problems(self, table: TextTable) -> list[Problem]:
        """Labels that are no class; words for no value with the option that takes them for blanks."""
        problems = read_labels(table, self.label, self.classes)[1]
        words = ",".join(
            f"{self.label}={problem.cell}" for problem in problems if not_available(problem.cell)
        )
        hint = f"; --missing-values {words} makes blanks of such labels" if words else ""
        return [replace(problem, expected=problem.expected + hint) for problem in problems]

    def read(self, table: TextTable) -> tuple[pd.DataFrame, list[str], dict[str, Any]]:
        """As of `TableOutcome`."""
        labels = parse_labels(table, self.label, self.classes)
        check_classes(table.source, labels, self.classes)
        positive = self.positive
        if positive is None and len(self.classes) == 2:  # noqa: PLR2004 - binary metrics need two classes
            positive = self.classes[-1]
        return pd.DataFrame({LABEL: labels}), labels, {"classes": tuple(self.classes), "positive": positive}


@dataclass(frozen=True)
class TimeColumns(TableOutcome):
    """A time and whether it ends with the event.

    Args:
        time: Column of times of at least 0.
        event: Column of 1 for an event, 0 for a censored patient.
        unit: Of the times.
        follow_up: End of the time that is modelled; by default the longest time.
        horizons: Times until which risks are judged.
    """

    time: str
    event: str
    unit: str = "months"
    follow_up: float | None = None
    horizons: tuple[float, ...] = ()

    @property
    def columns(self) -> Mapping[str, str]:
        """As of `TableOutcome`."""
        return {self.time: "time", self.event: "event"}

    def problems(self, table: TextTable) -> list[Problem]:
        """As of `TableOutcome`."""
        return time_problems(table, self.time, self.event)

    def read(self, table: TextTable) -> tuple[pd.DataFrame, list[str], dict[str, Any]]:
        """As of `TableOutcome`."""
        times, events = parse_times(table, self.time, self.event)
        end = max(times) if self.follow_up is None else self.follow_up
        spec = SurvivalSpec(end, unit=self.unit, horizons=self.horizons)
        frame = pd.DataFrame({TIME: times, EVENT: [int(event) for event in events]})
        settings = _settings(TaskName.SURVIVAL, survival=spec)
        return frame, [settings["classes"][event] for event in events], settings


@dataclass(frozen=True)
class TargetColumn(TableOutcome):
    """A number.

    Args:
        target: Column.
        low: Lower end of what it can be; by default the lowest number.
        high: Upper end.
        unit: Of the numbers.
    """

    target: str
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @property
    def columns(self) -> Mapping[str, str]:
        """As of `TableOutcome`."""
        return {self.target: "target"}

    def problems(self, table: TextTable) -> list[Problem]:
        """As of `TableOutcome`."""
        return target_problems(table, self.target, self.low, self.high)

    def read(self, table: TextTable) -> tuple[pd.DataFrame, list[str], dict[str, Any]]:
        """As of `TableOutcome`."""
        refuse(table, self.problems(table))
        found = [finite_number(cell) or 0.0 for cell in table.require(self.target)]
        low = min(found) if self.low is None else self.low
        high = max(found) if self.high is None else self.high
        settings = _settings(TaskName.REGRESSION, regression=RegressionSpec(low, high, self.unit))
        return pd.DataFrame({TARGET: found}), fifths(found), settings


def _settings(task: TaskName, **spec: object) -> dict[str, Any]:
    """Of a study of another task than classification."""
    outcome = TASKS[task]
    return {
        "classes": outcome.strata,
        "task": task,
        "training": TrainingSpec(select=outcome.selects[0]),
        "privacy": replace(SIMULATED, extra=()),
        **spec,
    }
