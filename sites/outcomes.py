"""The outcome columns of a manifest: a class, a time and whether it ends with the event, or a number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmare.study.choices import TaskName
from mmare.study.outcome import TASKS, RegressionSpec, time_code
from mmare.study.study import Study
from sites.numbers import Problem, refuse
from sites.tabular import TextTable, finite_number

__all__ = [
    "EVENT",
    "LABEL",
    "TARGET",
    "TIME",
    "Outcomes",
    "fifths",
    "parse_labels",
    "parse_targets",
    "parse_times",
    "read_labels",
    "read_outcomes",
    "strata_of",
    "target_problems",
    "time_problems",
    "unknown_values",
]

LABEL, TIME, EVENT, TARGET = "label", "time", "event", "target"

_MOST_NAMED = 5  # wrong values in a sentence
_STRATA: Final = TASKS[TaskName.SURVIVAL].strata


@dataclass(frozen=True)
class Outcomes:
    """What happened to each patient of a table."""

    labels: NDArray[np.int64] | NDArray[np.float32]  # (n_patients,), as the study's task defines them
    strata: tuple[str, ...]  # what a split is stratified by


def read_outcomes(table: TextTable, study: Study) -> Outcomes:
    """The outcome of each row, from the columns that the study's task has.

    Raises:
        DataError: If a column is missing, or a cell blank or of another kind.
    """
    if study.regression is not None:
        targets = parse_targets(table, TARGET, study.regression)
        return Outcomes(np.array(targets, dtype=np.float32), tuple(fifths(targets)))
    if study.survival is None:
        names = parse_labels(table, LABEL, study.classes)
        index = {name: label for label, name in enumerate(study.classes)}
        return Outcomes(np.array([index[name] for name in names], dtype=np.int64), tuple(names))
    times, events = parse_times(table, TIME, EVENT)
    follow_up = study.survival.follow_up
    codes = [time_code(time, event, follow_up) for time, event in zip(times, events, strict=True)]
    return Outcomes(np.array(codes, dtype=np.int64), tuple(_STRATA[code % 2] for code in codes))


def strata_of(rows: pd.DataFrame, study: Study) -> list[str]:
    """Class, or whether the event was seen, of each row of a table in memory."""
    if study.regression is not None:
        return [*study.classes] * len(rows)
    if study.survival is None:
        return [str(value) for value in rows[LABEL]]
    return [_STRATA[int(value)] for value in rows[EVENT]]


def parse_targets(table: TextTable, column: str, ends: RegressionSpec) -> list[float]:
    """The number of each row.

    Raises:
        DataError: If a cell is blank, text or outside the ends.
    """
    refuse(table, target_problems(table, column, ends.low, ends.high))
    return [finite_number(cell) or 0.0 for cell in table.require(column)]


def target_problems(table: TextTable, column: str, low: float | None, high: float | None) -> list[Problem]:
    """Cells that are no number between two ends; a DataError if one is blank."""
    cells = table.require(column)
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    known = {
        cell for cell in cells if (number := finite_number(cell)) is not None and least <= number <= most
    }
    between = "" if low is None or high is None else f" from {low:g} to {high:g}"
    return unknown_values(column, cells, known, f"a number{between}")


def fifths(values: list[float]) -> list[str]:
    """The fifth of the values in which each lies, for splits."""
    cuts = np.quantile(values or [0.0], [0.2, 0.4, 0.6, 0.8])
    return [str(place) for place in np.searchsorted(cuts, values).tolist()]


def parse_times(table: TextTable, time: str, event: str) -> tuple[list[float], list[bool]]:
    """Times of at least 0 and whether they end with the event, 0 or 1, of each row.

    Raises:
        DataError: If a cell is blank or of another kind.
    """
    refuse(table, time_problems(table, time, event))
    times, events = ([finite_number(cell) or 0.0 for cell in table.require(name)] for name in (time, event))
    return times, [flag == 1 for flag in events]


def time_problems(table: TextTable, time: str, event: str) -> list[Problem]:
    """Cells that are no time, or no 0 or 1; a DataError if one is blank."""
    times, events = table.require(time), table.require(event)
    numbers = {cell: number for cell in {*times, *events} if (number := finite_number(cell)) is not None}
    not_negative = [cell for cell, number in numbers.items() if number >= 0]
    binary = [cell for cell, number in numbers.items() if number in {0, 1}]
    return [
        *unknown_values(time, times, set(not_negative), "a time, which is a number of at least 0"),
        *unknown_values(event, events, set(binary), "1 where the event was seen, 0 where not"),
    ]


def parse_labels(table: TextTable, column: str, classes: Sequence[str]) -> list[str]:
    """The class name of each row; a number is the class of the same value, so ``1.0`` is ``1``.

    Raises:
        DataError: If a label is blank, or for all labels that are not in ``classes``.
    """
    names, problems = read_labels(table, column, classes)
    refuse(table, problems)
    return names


def read_labels(table: TextTable, column: str, classes: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """As `parse_labels`, with the labels that are no class instead of an error about them."""
    names = [name if name in classes else _same_number(name, classes) for name in table.require(column)]
    return names, unknown_values(column, names, classes, f"one of the study's classes {', '.join(classes)}")


def unknown_values(
    column: str, values: Sequence[str], known: Collection[str], expected: str
) -> list[Problem]:
    """What a column holds beside the known values, the first spellings of very many."""
    counts = Counter(value for value in values if value not in known)
    if len(counts) > _MOST_NAMED:
        expected += f" ({len(counts) - _MOST_NAMED} more values are none either)"
    return [
        Problem(column, "value", values.index(value), value, count, expected)
        for value, count in islice(counts.items(), _MOST_NAMED)
    ]


def _same_number(name: str, classes: Sequence[str]) -> str:
    """The one class that is the same number, if there is one; otherwise the name."""
    number = finite_number(name)
    same = [known for known in classes if number is not None and finite_number(known) == number]
    return same[0] if len(same) == 1 else name
