"""Write ``report.html`` and ``report.md`` of a grid: what its finished cells say, and which are missing.

::

    results.jsonl ─► records ─► values ─► method_tables, site_tables, detail_tables ─► page ─► report.md
                                          figures                                           └─► report.html

Both pages are made from the same tables. Every value of a row comes from the results of its cells, and in a
cell from one set of predictions, so that rows which cannot be true (as four of the thesis) cannot arise; this
is checked for each result, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mmare.study.choices import TaskName
from simulation.grid_report import detail_tables as details
from simulation.grid_report import explained
from simulation.grid_report import site_tables as by_site
from simulation.grid_report.figures import drawings, forests
from simulation.grid_report.method_tables import (
    Line,
    difference_table,
    generic_columns,
    increment_tables,
    keys_of,
    method_table,
)
from simulation.grid_report.page import Figures, Key, Page, Part, Section, Table, Text, to_html, to_markdown
from simulation.grid_report.published_results import PUBLISHED, Published
from simulation.grid_report.records import Arm, GridRecord, load_records
from simulation.grid_report.reference_tables import losses, reference_table
from simulation.grid_report.statistics import impossible
from simulation.grid_report.task_tables import sections_of_tasks, task_of_arms
from simulation.grid_report.thesis_rows import thesis_groups
from simulation.grid_report.values import blocks
from simulation.report.figures import Drawing
from simulation.report.page import replace_page
from simulation.report.results import HEADLINE, MODES

__all__ = ["write_grid_report"]

_MEAN = (
    "Each value is the mean ± standard deviation over seeds (of one seed, its bootstrap interval below it); "
    "bold is the best of its group, underlined the second."
)
_PAIRED = (
    "A difference is taken seed by seed and then averaged; below it is its 95\u00a0% interval, and “not "
    "distinguishable” where zero is inside."
)
_HOW = (
    "A pooled value is computed from the counts of all sites added up, as if all test rows lay in one place. "
    "Recall, precision and F1 are of the positive class, those with an m the plain mean over classes; "
    "balanced accuracy is the mean of the shares of each class that were recognised.",
    "Intervals of differences are Student's t over seeds. They speak of other seeds (split, amputation, "
    "first weights) on these patients and not of other patients, and as train rows of different seeds "
    "overlap, they are rather too narrow. No interval is corrected for how many are shown: of twenty true "
    "zeros, one is expected to look like a difference.",
)


def write_grid_report(folder: Path) -> tuple[Path, Path]:
    """Write the two pages of a grid's folder; pages that were there are replaced.

    Args:
        folder: Holds ``results.jsonl``, and ``grid.toml`` and ``failures.jsonl`` where there are any.

    Returns:
        ``report.html`` and ``report.md``.

    Raises:
        InputError: If no cell is finished, or a line or the plan is damaged.
    """
    page = _page(load_records(folder))
    return (
        replace_page(folder / "report.html", to_html(page)),
        replace_page(folder / "report.md", to_markdown(page)),
    )


def _page(grid: GridRecord) -> Page:
    planned = sum(map(len, grid.seeds.values()))
    chips = {
        "cells": f"{len(grid.records)} of {planned}",
        "seeds": ", ".join(map(str, sorted({seed for seeds in grid.seeds.values() for seed in seeds}))),
        "modes": ", ".join(MODES[mode].lower() for mode in grid.modes),
        "models": str(len({arm.method.label for arm in grid.arms})),
        "data": str(len({arm.regime.data for arm in grid.arms})),
    }
    notes = list(grid.notes)
    notes += dict.fromkeys(f"{note}." for record in grid.records for note in record.result.get("notes") or ())
    if lacking := sum(map(len, grid.missing.values())):
        notes.append(
            f"{lacking} of {planned} cells have no result yet; they are listed under “What is missing”."
        )
    if grid.failures:
        some = "1 cell" if len(grid.failures) == 1 else f"{len(grid.failures)} cells"
        notes.append(f"{some} failed; why is under “What is missing”.")
    broken = [
        record.cell
        for record in grid.records
        if any(impossible(block or {}) for _, block in blocks(record.result))
    ]
    if broken:
        notes.append(f"Metrics that cannot be of one set of predictions: cells {', '.join(broken)}.")
    if lost := sum(1 for _ in losses(grid)):
        notes.append(f"{lost} of the methods here lose to a simple model; see “Beside simple models”.")
    # Of data without a finished cell every row would be empty; what is missing has a section of its own.
    begun = {record.arm.regime for record in grid.records}
    others = {arm for arm, task in task_of_arms(grid).items() if task is not TaskName.CLASSIFICATION}
    apart = {arm.regime for arm in others}
    classes = tuple(arm for arm in grid.arms if arm.regime in begun - apart)
    if not classes:
        sections = [*sections_of_tasks(grid, f"{_MEAN} {_PAIRED}"), *_machines(grid), *_gaps(grid)]
        return Page(grid.title, chips, notes, [*sections, *_method(grid, len(broken))])
    tables = replace(grid, arms=classes)
    sections = [*_thesis(tables), *_increments(tables), *_generic(tables), *_simple(tables)]
    sections += [*_modes(tables), *_sites(tables), *_patients(tables), *_explained(tables)]
    sections += [
        *sections_of_tasks(grid, f"{_MEAN} {_PAIRED}"),
        *_machines(tables),
        *_gaps(grid),
        *_method(grid, len(broken)),
    ]
    return Page(grid.title, chips, notes, sections)


def _section(identity: str, title: str, read: str, parts: Iterable[Part]) -> list[Section]:
    """A section, or none where its tables have no row."""
    kept = [part for part in parts if not isinstance(part, Table) or any(rows for _, rows in part.groups)]
    return [Section(identity, title, read, kept)] if kept else []


def _figures(drawn: Iterable[Drawing], legend: Iterable[Key]) -> list[Part]:
    kept = list(drawn)
    return [Figures(kept, list(dict.fromkeys(legend)))] if kept else []


def _thesis_tables(grid: GridRecord) -> list[tuple[Published, str, dict[str, list[Line]], tuple[str, ...]]]:
    """The tables of the thesis that the grid repeats, per mode, with their rows and footnotes."""
    known = [PUBLISHED[number] for number in grid.tables if number in PUBLISHED]
    return [(printed, mode, *thesis_groups(grid, printed, mode)) for printed in known for mode in grid.modes]


def _thesis(grid: GridRecord) -> list[Section]:
    sections = []
    for printed, mode, groups, footnotes in _thesis_tables(grid):
        ours = {title: [line.arm for line in lines if line.arm] for title, lines in groups.items()}
        keys = keys_of(grid, [arm for arms in ours.values() for arm in arms], by_data=True)
        columns = printed.columns
        identity = f"table-{printed.number.replace('.', '-')}-{mode}"
        notes = [
            f"“thesis”: Table {printed.number}, measured on {printed.measured}. "
            "Ours are over all seeds' splits.",
            *footnotes,
        ]
        if not keys:
            notes.append("No cell of the grid belongs to this table.")
        caption = f"Table {printed.number}. {printed.title}; {MODES[mode].lower()}"
        parts: list[Part] = [
            method_table(grid, caption, columns, groups, keys, notes),
            difference_table(grid, columns, ours, keys),
        ]
        if not printed.ablation:
            # The thesis's methods alone, as in its figures: more would be a tangle.
            beside = {
                title: [line.arm for line in lines if line.arm and line.printed]
                for title, lines in groups.items()
            }
            legend = [keys[arm] for arms in beside.values() for arm in arms]
            parts += _figures(drawings(grid, identity, columns, beside, keys), legend)
        title = f"Table {printed.number}: {printed.title}"
        title += f", {MODES[mode].lower()}" if len(grid.modes) > 1 else ""
        read = f"{_MEAN} “thesis” is the printed value: of one split, and often of one run. {_PAIRED}"
        sections += _section(identity, title, read, parts)
    return sections


def _generic(grid: GridRecord) -> list[Section]:
    """Methods by metrics on what no table of the thesis covers, by task."""
    printed = _thesis_tables(grid)
    covered = {line.arm for _, _, groups, _ in printed for lines in groups.values() for line in lines}
    sections = []
    for mode in grid.modes:
        by_task: dict[str, list[Arm]] = {}
        for arm in grid.arms:
            if arm.mode == mode and arm not in covered:
                by_task.setdefault(arm.regime.task, []).append(arm)
        for number, (task, arms) in enumerate(by_task.items()):
            parts = _generic_parts(grid, f"methods-{mode}-{number}", task, arms)
            title = f"Methods side by side: {task}" if task else "Methods side by side"
            title = f"{title}, {MODES[mode].lower()}"
            sections += _section(f"methods-{mode}-{number}", title, f"{_MEAN} {_PAIRED}", parts)
    return sections


def _generic_parts(grid: GridRecord, identity: str, task: str, arms: Sequence[Arm]) -> list[Part]:
    mode = arms[0].mode
    keys = keys_of(grid, arms, by_data=False)
    columns = generic_columns(grid, arms)
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.regime.title, []).append(arm)
    lines = {title: [Line(arm) for arm in members] for title, members in groups.items()}
    caption = f"{task or 'All tasks'}, {MODES[mode].lower()}, test rows of all sites"
    alone = "Of sites that trained alone: the mean over sites of what each model reaches on all test rows."
    headline = {metric: title for metric, title in columns.items() if metric in ("accuracy", *HEADLINE)}
    return [
        method_table(grid, caption, columns, lines, keys, [alone] if mode == "local" else []),
        difference_table(grid, headline, groups, keys),
        *_figures(forests(grid, identity, groups, keys), keys.values()),
        *_figures(drawings(grid, identity, columns, groups, keys, radar=False), keys.values()),
    ]


def _simple(grid: GridRecord) -> list[Section]:
    """Simple models on the same splits, and a sentence for every method that is behind one."""
    read = (
        "Logistic regression with indicators of absence, pooled and by sums over the sites, and gradient "
        f"boosting: fitted on the same train rows, chosen on validation, tested on the same rows. {_PAIRED}"
    )
    tables = [reference_table(grid, mode) for mode in grid.modes]
    parts: list[Part] = [*map(Text, losses(grid)), *(table for table in tables if table.groups)]
    return _section("simple", "Beside simple models", read, parts)


def _increments(grid: GridRecord) -> list[Section]:
    """Strategies, and ablations, in the order of the grid: each against the one before and the first."""
    sections = []
    for axis, title, head in (("strategy", "Aggregation", "Strategy"), ("ablation", "Ablation", "Variant")):
        chains = _chains(grid, axis)
        read = f"Each row adds a step, in the order of the grid. {_PAIRED}"
        tables = increment_tables(grid, head, chains)
        sections += _section(f"steps-{axis}", f"{title}: step by step", read, tables)
        if axis == "strategy":
            read = "AUC on each site's own test rows: a step can serve one hospital and leave the mean."
            tables = [by_site.step_table(grid, name, steps, "auc") for name, steps in chains.items()]
            sections += _section("steps-sites", f"{title}: site by site", f"{read} {_PAIRED}", tables)
    return sections


def _chains(grid: GridRecord, axis: str) -> dict[str, list[tuple[str, Arm]]]:
    """Arms that differ in one axis alone, named by it; only federated ones have a strategy."""
    other = "ablation" if axis == "strategy" else "strategy"
    several = len({getattr(method, other) for method in grid.methods}) > 1
    chains: dict[str, list[tuple[str, Arm]]] = {}
    for arm in grid.arms:
        if axis == "strategy" and arm.mode != "federated":
            continue
        words = [arm.method.label]
        if several and (fixed := getattr(arm.method, other)):
            words.append(fixed)
        if axis == "ablation" and len(grid.modes) > 1:
            words.append(MODES[arm.mode].lower())
        steps = chains.setdefault(f"{arm.regime.title}: {', '.join(words)}", [])
        steps.append((getattr(arm.method, axis) or "as it is", arm))
    return {heading: steps for heading, steps in chains.items() if len(steps) > 1}


def _modes(grid: GridRecord) -> list[Section]:
    """Federated, centralised, alone: side by side, what a site gains, each site's model everywhere."""
    names = ", ".join(MODES[mode].lower() for mode in grid.modes).capitalize()
    read = f"The same model on the same test rows; what differs is which rows it could learn from. {_PAIRED}"
    sections = _section("modes", f"{names}: side by side", read, [by_site.modes_table(grid)])
    gains: list[Part] = []
    crosses: list[Part] = []
    for arm in (arm for arm in grid.arms if grid.done[arm]):
        alone = by_site.twin(grid, arm, "local")
        if arm.mode == "federated" and alone and grid.done[alone]:
            table, said = by_site.gain_table(grid, arm, alone)
            gains += [table, Text(said)]
        if arm.mode == "local":
            crosses += [by_site.cross_table(grid, arm, metric) for metric in ("balanced_accuracy", "auc")]
    read = f"The federated model on a site's own patients, less the site's own model on them. {_PAIRED}"
    sections += _section("gain", "What each site gains by joining", read, gains)
    read = "On the diagonal a site's model meets its own patients, elsewhere others'; darker is better."
    return [*sections, *_section("cross", "Each site's model at every site", read, crosses)]


def _sites(grid: GridRecord) -> list[Section]:
    read = "A value over all patients can hide a hospital that is served badly: per seed, the lowest site."
    tables = [by_site.worst_table(grid, mode) for mode in grid.modes]
    return _section("worst", "Worst site", f"{read} {_PAIRED}", tables)


def _patients(grid: GridRecord) -> list[Section]:
    read = (
        "The test rows are cut by what a patient has. Few rows make a value uncertain; “—” is not "
        "defined or withheld."
    )
    patterns = _section("patterns", "By what a patient has", read, details.part_tables(grid, "patterns"))
    read = (
        "Rows that have all of a subset, with every other modality hidden at test time. The thesis asks "
        f"in section 6.1 whether training on several modalities helps when one is left. {_PAIRED}"
    )
    singles = [details.unimodal_table(grid, mode) for mode in grid.modes]
    subsets = [*singles, *details.part_tables(grid, "subsets")]
    return [*patterns, *_section("subsets", "Fewer modalities at test time", read, subsets)]


def _explained(grid: GridRecord) -> list[Section]:
    read = (
        "How far probabilities can be taken at their word, and for which decisions they help. Curves are "
        "over the test rows of all seeds; net benefit of treating none is zero."
    )
    calibration = _section("calibration", "Calibration", read, explained.calibration_parts(grid))
    read = (
        "The threshold of the positive class has the largest sum of sensitivity and specificity on the "
        "validation rows; otherwise the more probable class is called, which may be one for everybody."
    )
    called = _section("thresholds", "Classes by a threshold", read, [explained.threshold_table(grid)])
    read = (
        "How much of what moves predicted probabilities is each modality's: its part of the sum of "
        "absolute Shapley values, over all subsets of what a patient has. It explains the model alone."
    )
    return [
        *called,
        *calibration,
        *_section("shapley", "What predictions rest on", read, explained.shapley_parts(grid)),
    ]


def _machines(grid: GridRecord) -> list[Section]:
    read = "What the draw and its repair (nobody is left without any modality) came to, mean ± sd."
    rates = _section("rates", "Achieved missing rates", read, [details.rate_table(grid)])
    read = (
        "Seconds of training are summed over sites; the run's seconds also hold waiting, averaging and tests."
    )
    costs = _section("cost", "Size, time and traffic", read, [details.cost_table(grid)])
    read = "A site that is left out of a round is asked again in the next; its rows did not train meanwhile."
    absent = _section("left-out", "Sites that were left out", read, [details.absence_table(grid)])
    return [*rates, *costs, *absent]


def _gaps(grid: GridRecord) -> list[Section]:
    read = (
        "Tables above show these as missing, where any cell of their data is done: a mean is over the "
        "seeds at hand, a difference over pairs."
    )
    tables = [details.missing_table(grid), details.failure_table(grid)]
    return _section("missing", "What is missing", read, tables)


def _method(grid: GridRecord, broken: int) -> list[Section]:
    checked = sum(1 for record in grid.records for _ in blocks(record.result))
    check = (
        f"All metrics of a method and seed are of one set of predictions. {checked} sets of rows were "
        "checked for what must then hold (F1 not above the mean of precision and recall, macro recall "
        f"equal to balanced accuracy); {broken} cells break it."
    )
    read = "What the numbers are over, and with which software they were made."
    parts: list[Part] = [*map(Text, (*_HOW, check)), details.version_table(grid)]
    return _section("method", "How the numbers are made", read, parts)
