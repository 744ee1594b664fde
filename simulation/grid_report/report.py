"""Write ``report.html`` and ``report.md`` of a grid: what its finished cells say, and which are missing.

::

    results.jsonl ─► grid_records ─► grid_tables, grid_sites, grid_details ─► grid_page ─► report.md
                                     grid_figures                                      └─► report.html

Both pages are made from the same tables. Every value of a row comes from the results of its cells, and in a
cell from one set of predictions, so that rows which cannot be true (as four of the thesis) cannot arise; this
is checked for each result, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulation.grid_report import detail_tables as details
from simulation.grid_report import site_tables as by_site
from simulation.grid_report.figures import Keys, drawings, forests, used
from simulation.grid_report.method_tables import (
    Line,
    difference_table,
    generic_columns,
    increment_tables,
    keys_of,
    line_name,
    method_table,
    mixed,
    reference,
)
from simulation.grid_report.page import Figures, Key, Page, Section, Table, Text, to_markdown
from simulation.grid_report.published_results import PUBLISHED, Published
from simulation.grid_report.records import Arm, GridRecord, Method, Record, load_records
from simulation.grid_report.statistics import impossible
from simulation.grid_report.thesis_rows import thesis_groups
from simulation.report.figures import PALETTE
from simulation.report.page import render_page, replace_page
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
    view = {"page": page, "palette": PALETTE}
    return (
        replace_page(folder / "report.html", render_page(view, "grid_report_template.html.j2")),
        replace_page(folder / "report.md", to_markdown(page)),
    )


def _page(grid: GridRecord) -> Page:
    planned = sum(map(len, grid.seeds.values()))
    chips = (
        ("cells", f"{len(grid.records)} of {planned}"),
        ("seeds", ", ".join(map(str, sorted({seed for seeds in grid.seeds.values() for seed in seeds})))),
        ("modes", ", ".join(MODES[mode].lower() for mode in grid.modes)),
        ("models", str(len({arm.method.label for arm in grid.arms}))),
        ("data", str(len({arm.regime.data for arm in grid.arms}))),
    )
    notes = list(grid.notes)
    notes += dict.fromkeys(f"{note}." for record in grid.records for note in record.result.get("notes") or ())
    if grid.missing:
        lacking = sum(len(seeds) for _, seeds in grid.missing)
        notes.append(
            f"{lacking} of {planned} cells have no result yet; they are listed under “What is missing”."
        )
    if grid.failures:
        some = "1 cell" if len(grid.failures) == 1 else f"{len(grid.failures)} cells"
        notes.append(f"{some} failed; why is under “What is missing”.")
    broken = [record.cell for record in grid.records if any(map(impossible, _blocks(record)))]
    if broken:
        notes.append(f"Metrics that cannot be of one set of predictions: cells {', '.join(broken)}.")
    begun = _begun(grid)
    sections = [*_thesis(begun), *_increments(begun), *_generic(begun), *_modes(begun), *_sites(begun)]
    sections += [*_patients(begun), *_machines(begun), *_gaps(grid), _method(grid, broken)]
    return Page(grid.title, chips, tuple(notes), tuple(sections))


def _begun(grid: GridRecord) -> GridRecord:
    """The grid less data of which no cell is done: their rows would be empty, and what is missing is told."""
    begun = {arm.regime for arm in grid.arms if grid.runs[arm]}
    return replace(grid, arms=tuple(arm for arm in grid.arms if arm.regime in begun))


def _blocks(record: Record) -> Iterator[Mapping[str, Any]]:
    """Every set of test rows that a cell has metrics of."""
    for test in (record.test, *record.alone.values()):
        for name in ("pooled", "own"):
            yield test.get(name) or {}
        for name in ("sites", "patterns", "subsets"):
            yield from (metrics or {} for metrics in (test.get(name) or {}).values())


def _thesis(grid: GridRecord) -> list[Section]:
    """The tables of the thesis that the grid repeats, per mode."""
    known = [PUBLISHED[number] for number in grid.tables if number in PUBLISHED]
    return [_thesis_table(grid, printed, mode) for printed in known for mode in grid.modes]


def _thesis_table(grid: GridRecord, printed: Published, mode: str) -> Section:
    groups, footnotes = thesis_groups(grid, printed, mode)
    lines = [line for members in groups.values() for line in members]
    arms = [line.arm for line in lines if line.arm is not None]
    keys = keys_of(grid, arms)
    columns = printed.columns
    identity = f"table-{_number_id(printed.number)}-{mode}"
    notes = [
        f"“thesis”: Table {printed.number}, measured on {printed.measured}. Ours are over all seeds' splits.",
        *footnotes,
    ]
    if not arms:
        notes.append("No cell of the grid belongs to this table.")
    caption = f"Table {printed.number}. {printed.title}; {MODES[mode].lower()}"
    parts: list[Table | Figures | Text] = [method_table(grid, caption, columns, groups, keys, notes)]
    members = {title: [line.arm for line in told_ if line.arm] for title, told_ in groups.items()}
    parts += _differences(grid, columns, members, keys)
    # The thesis's methods alone, as in its figures: more would be a tangle.
    beside = {
        title: [line.arm for line in told_ if line.arm and line.printed] for title, told_ in groups.items()
    }
    drawn = [] if printed.ablation else drawings(grid, identity, columns, beside, keys)
    if drawn:
        parts.append(Figures(tuple(drawn), tuple(used(keys, beside))))
    return Section(
        identity,
        f"Table {printed.number}: {printed.title}"
        + (f", {MODES[mode].lower()}" if len(grid.modes) > 1 else ""),
        f"{_MEAN} “thesis” is the printed value: of one split, and often of one run. {_PAIRED}",
        tuple(parts),
    )


def _number_id(number: str) -> str:
    """A table's number as part of an id."""
    return number.replace(".", "-")


def _generic(grid: GridRecord) -> list[Section]:
    """Methods by metrics on what no table of the thesis covers."""
    covered = {
        line.arm
        for number in grid.tables
        if number in PUBLISHED
        for mode in grid.modes
        for lines in thesis_groups(grid, PUBLISHED[number], mode)[0].values()
        for line in lines
    }
    sections = []
    for mode in grid.modes:
        left = [arm for arm in grid.arms if arm.mode == mode and arm not in covered]
        for number, task in enumerate(dict.fromkeys(arm.regime.task for arm in left)):
            arms = [arm for arm in left if arm.regime.task == task]
            sections.append(_generic_section(grid, f"methods-{mode}-{number}", task, mode, arms))
    return sections


def _generic_section(grid: GridRecord, identity: str, task: str, mode: str, arms: Sequence[Arm]) -> Section:
    keys = {
        pair: Key(grid.name(pair[0]), key.variable, key.dash)
        for pair, key in _keys_by_method(grid, arms).items()
    }
    columns = generic_columns(grid, arms)
    members: dict[str, list[Arm]] = {}
    for arm in arms:
        members.setdefault(arm.regime.title, []).append(arm)
    groups = {title: [Line(arm) for arm in told_] for title, told_ in members.items()}
    caption = f"{task or 'All tasks'}, {MODES[mode].lower()}, test rows of all sites"
    alone = ("Of sites that trained alone: the mean over sites of what each model reaches on all test rows.",)
    parts: list[Table | Figures | Text] = [
        method_table(grid, caption, columns, groups, keys, alone if mode == "local" else ())
    ]
    headline = {metric: title for metric, title in columns.items() if metric in ("accuracy", *HEADLINE)}
    parts += _differences(grid, headline, members, keys)
    for drawn in (
        forests(grid, identity, members, keys),
        drawings(grid, identity, columns, members, keys, radar=False),
    ):
        if drawn:
            parts.append(Figures(tuple(drawn), tuple(dict.fromkeys(keys.values()))))
    title = f"Methods side by side: {task}" if task else "Methods side by side"
    return Section(identity, f"{title}, {MODES[mode].lower()}", f"{_MEAN} {_PAIRED}", tuple(parts))


def _keys_by_method(grid: GridRecord, arms: Sequence[Arm]) -> dict[tuple[Method, str], Key]:
    """One colour per method, whatever its data: groups of the table are by data here."""
    first = {arm.method: arm for arm in reversed(arms)}
    order = dict.fromkeys(arm.method for arm in arms)
    known = {method: key for (method, _), key in keys_of(grid, [first[method] for method in order]).items()}
    return {(arm.method, arm.regime.data): known[arm.method] for arm in arms}


def _differences(
    grid: GridRecord, columns: Mapping[str, str], members: Mapping[str, Sequence[Arm]], keys: Keys
) -> list[Table | Figures | Text]:
    """The table of paired differences to the reference of each group, where there is one."""
    measured = {metric: title for metric, title in columns.items() if metric != "parameters"}
    firsts = {title: reference(grid, arms) for title, arms in members.items()}
    groups = {
        title: (first, [arm for arm in members[title] if arm != first])
        for title, first in firsts.items()
        if first is not None
    }
    several = mixed(members.values())
    names = dict.fromkeys(line_name(grid, first, several=several) for first, _ in groups.values())
    table = difference_table(grid, " or ".join(names), measured, groups, keys)
    return [table] if table else []


def _increments(grid: GridRecord) -> list[Section]:
    """Strategies, and ablations, in the order of the grid: each against the one before and the first."""
    sections = []
    for axis, title, head in (("strategy", "Aggregation", "Strategy"), ("ablation", "Ablation", "Variant")):
        chains: dict[str, list[tuple[str, Arm]]] = {}
        for arm in grid.arms:
            if axis == "strategy" and arm.mode != "federated":
                continue
            method = arm.method
            fixed = method.ablation if axis == "strategy" else method.strategy
            several = len(
                {getattr(other, "ablation" if axis == "strategy" else "strategy") for other in grid.methods}
            )
            words = [arm.regime.title, method.label, *([fixed] if fixed and several > 1 else [])]
            words += [MODES[arm.mode].lower()] if len(grid.modes) > 1 and axis == "ablation" else []
            chains.setdefault(": ".join((words[0], ", ".join(words[1:]))), []).append(
                (getattr(method, axis) or "as it is", arm)
            )
        whole = {heading: steps for heading, steps in chains.items() if len(steps) > 1}
        if whole:
            sections.append(
                Section(
                    f"steps-{axis}",
                    f"{title}: step by step",
                    f"Each row adds a step, in the order of the grid. {_PAIRED}",
                    tuple(increment_tables(grid, head, whole)),
                )
            )
            if axis == "strategy":
                read = (
                    "AUC on each site's own test rows: a step can serve one hospital and leave the mean. "
                    + _PAIRED
                )
                tables = [by_site.step_table(grid, name, steps, "auc") for name, steps in whole.items()]
                sections.append(Section("steps-sites", f"{title}: site by site", read, tuple(tables)))
    return sections


def _modes(grid: GridRecord) -> list[Section]:
    """Federated, centralised, alone: side by side, what a site gains, each site's model everywhere."""
    sections = []
    if len(grid.modes) > 1:
        read = (
            "The same model on the same test rows; what differs is which rows it could learn from. " + _PAIRED
        )
        table = by_site.modes_table(grid)
        names = [MODES[mode].lower() for mode in grid.modes]
        if table.groups:
            sections.append(
                Section("modes", f"{', '.join(names).capitalize()}: side by side", read, (table,))
            )
    gains: list[Table | Figures | Text] = []
    for arm in by_site.federated_arms(grid):
        alone = by_site.twin(grid, arm, "local")
        if alone is not None and grid.runs[alone] and grid.runs[arm]:
            table, said = by_site.gain_table(grid, arm, alone)
            gains += [table, Text(said)]
    if gains:
        read = f"The federated model on a site's own patients, less the site's own model on them. {_PAIRED}"
        sections.append(Section("gain", "What each site gains by joining", read, tuple(gains)))
    crosses = [
        by_site.cross_table(grid, arm, metric)
        for arm in grid.arms
        if arm.mode == "local" and grid.runs[arm]
        for metric in ("balanced_accuracy", "auc")
    ]
    if crosses:
        read = "On the diagonal a site's model meets its own patients, elsewhere others'; darker is better."
        sections.append(Section("cross", "Each site's model at every site", read, tuple(crosses)))
    return sections


def _sites(grid: GridRecord) -> list[Section]:
    tables = []
    for mode in grid.modes:
        firsts = {
            regime: reference(grid, [arm for arm in grid.arms if (arm.regime, arm.mode) == (regime, mode)])
            for regime in grid.regimes
        }
        tables.append(by_site.worst_table(grid, mode, firsts))
    read = "A value over all patients can hide a hospital that is served badly: per seed, the lowest site. "
    return [Section("worst", "Worst site", read + _PAIRED, tuple(tables))]


def _patients(grid: GridRecord) -> list[Section]:
    sections = []
    patterns = details.pattern_tables(grid)
    if patterns:
        read = (
            "The test rows are cut by what a patient has. Few rows make a value uncertain; “—” is not "
            "defined or withheld."
        )
        sections.append(Section("patterns", "By what a patient has", read, tuple(patterns)))
    singles = [table for mode in grid.modes if (table := details.unimodal_table(grid, mode))]
    subsets = details.subset_tables(grid)
    if singles or subsets:
        read = (
            "Rows that have all of a subset, with every other modality hidden at test time. The thesis asks "
            f"in section 6.1 whether training on several modalities helps when one is left. {_PAIRED}"
        )
        sections.append(Section("subsets", "Fewer modalities at test time", read, (*singles, *subsets)))
    return sections


def _machines(grid: GridRecord) -> list[Section]:
    sections = []
    if rates := details.rate_table(grid):
        read = "What the draw and its repair (nobody is left without any modality) came to, mean ± sd."
        sections.append(Section("rates", "Achieved missing rates", read, (rates,)))
    read = (
        "Seconds of training are summed over sites; the run's seconds also hold waiting, averaging and tests."
    )
    sections.append(Section("cost", "Size, time and traffic", read, (details.cost_table(grid),)))
    if absent := details.absence_table(grid):
        read = (
            "A site that is left out of a round is asked again in the next; its rows did not train meanwhile."
        )
        sections.append(Section("left-out", "Sites that were left out", read, (absent,)))
    return sections


def _gaps(grid: GridRecord) -> list[Section]:
    gaps = [table for table in (details.missing_table(grid), details.failure_table(grid)) if table]
    read = (
        "Tables above show these as missing, where any cell of their data is done: a mean is over the "
        "seeds at hand, a difference over pairs."
    )
    return [Section("missing", "What is missing", read, tuple(gaps))] if gaps else []


def _method(grid: GridRecord, broken: Sequence[str]) -> Section:
    checked = sum(1 for record in grid.records for _ in _blocks(record))
    parts: list[Table | Figures | Text] = [
        Text(
            "A pooled value is computed from the counts of all sites added up, as if all test rows lay in "
            "one place. Recall, precision and F1 are of the positive class, those with an m the plain mean "
            "over classes; balanced accuracy is the mean of the shares of each class that were recognised."
        ),
        Text(
            "Intervals of differences are Student's t over seeds. They speak of other seeds (split, "
            "amputation, first weights) on these patients and not of other patients, and as train rows of "
            "different seeds overlap, they are rather too narrow. No interval is corrected for how many are "
            "shown: of twenty true zeros, one is expected to look like a difference."
        ),
        Text(
            f"All metrics of a method and seed are of one set of predictions. {checked} sets of rows were "
            "checked for what must then hold (F1 not above the mean of precision and recall, macro recall "
            f"equal to balanced accuracy); {len(broken)} cells break it."
        ),
    ]
    if versions := details.version_table(grid):
        parts.append(versions)
    read = "What the numbers are over, and with which software they were made."
    return Section("method", "How the numbers are made", read, tuple(parts))
