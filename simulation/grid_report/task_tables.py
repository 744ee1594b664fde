"""Methods by the metrics of times and numbers, and the headline per site; a grid may hold several tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmare.study.choices import TaskName
from mmare.study.outcome import TASKS
from simulation.grid_report.method_tables import Line, difference_table, keys_of, mean, method_table
from simulation.grid_report.page import Row, Section, Table
from simulation.grid_report.values import Rows
from simulation.report.results import MODES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulation.grid_report.page import Part
    from simulation.grid_report.records import Arm, GridRecord

__all__ = ["sections_of_tasks", "task_of_arms"]


def task_of_arms(grid: GridRecord) -> dict[Arm, TaskName]:
    """The task of each arm of which a cell is done."""
    return {
        record.arm: TaskName(record.result.get("task", TaskName.CLASSIFICATION)) for record in grid.records
    }


def sections_of_tasks(grid: GridRecord, read: str) -> Iterator[Section]:
    """A section for each task but classification and each mode; ``read`` says how its tables are read."""
    tasks = task_of_arms(grid)
    for task in dict.fromkeys(tasks.values()):
        for mode in grid.modes if task is not TaskName.CLASSIFICATION else ():
            arms = [arm for arm in grid.arms if tasks.get(arm) is task and arm.mode == mode]
            if arms:
                yield _section(grid, task, mode, arms, read)


def _section(grid: GridRecord, task: TaskName, mode: str, arms: list[Arm], read: str) -> Section:
    outcome = TASKS[task]
    columns = {**outcome.shown, **outcome.further}
    groups = {
        regime.title: [arm for arm in arms if arm.regime == regime]
        for regime in dict.fromkeys(arm.regime for arm in arms)
    }
    keys = keys_of(grid, arms, by_data=True)
    caption = f"{task.capitalize()}, {MODES[mode].lower()}"
    lines = {title: [Line(arm) for arm in found] for title, found in groups.items()}
    parts: list[Part] = [
        method_table(grid, caption, columns, lines, keys),
        difference_table(grid, columns, groups, keys),
    ]
    sites = sorted({site for arm in arms for site in grid.values.names(arm, "sites")})
    rows = [
        (
            title,
            [
                Row(
                    grid.name(arm.method),
                    [mean(grid, arm, outcome.headline, Rows("sites", site)) for site in sites],
                )
                for arm in found
            ],
        )
        for title, found in groups.items()
    ]
    title = f"{outcome.shown[outcome.headline]} on each site's own test rows"
    parts.append(Table(title, "Method", sites, rows))
    kept = [part for part in parts if not isinstance(part, Table) or any(found for _, found in part.groups)]
    return Section(f"{task}-{mode}", caption, f"{read} {outcome.method}", kept)
