"""Tables of a grid about patients and machines: patterns, subsets, achieved rates, cost, what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from simulation.grid_report.method_tables import change, show, told, values
from simulation.grid_report.page import Cell, Group, Row, Table
from simulation.grid_report.records import Arm, GridRecord, Record, Regime
from simulation.grid_report.statistics import paired
from simulation.report.page import REASONS
from simulation.report.results import MODES, Estimate

__all__ = [
    "absence_table",
    "cost_table",
    "failure_table",
    "missing_table",
    "pattern_tables",
    "rate_table",
    "subset_tables",
    "unimodal_table",
    "version_table",
]

_VISIBLE = 0.005  # of a mean: a smaller deviation is not worth a line
_CODE_LENGTH = 24  # of a version, beyond which it is a hash


def part(record: Record, kind: str, name: str) -> Mapping[str, Any] | None:
    """Test metrics of a presence pattern (kind ``patterns``) or a subset (``subsets``)."""
    return (record.test.get(kind) or {}).get(name)


def pattern_tables(grid: GridRecord) -> list[Table]:
    """Per regime: what each method does for patients with the same modalities."""
    return [
        table
        for regime in grid.regimes
        for mode in grid.modes
        if (table := _parts(grid, regime, mode, "patterns")) is not None
    ]


def subset_tables(grid: GridRecord) -> list[Table]:
    """Per regime: what each method does when only some modalities are shown to it."""
    return [
        table
        for regime in grid.regimes
        for mode in grid.modes
        if (table := _parts(grid, regime, mode, "subsets")) is not None
    ]


def unimodal_table(grid: GridRecord, mode: str) -> Table | None:
    """One modality at test time: models that trained on all, against a model that trained on this one alone.

    Returns:
        ``None`` if no model was tested on single modalities.
    """
    groups = []
    for regime in grid.regimes:
        names = grid.modalities(regime)
        arms = [arm for arm in grid.arms if (arm.regime, arm.mode) == (regime, mode)]
        alone = {_modality(grid, arm): arm for arm in reversed(arms) if arm.method.model == "unimodal"}
        for slot, modality in enumerate(names):
            only = "".join("1" if place == slot else "0" for place in range(len(names)))
            pick = partial(part, kind="subsets", name=only)
            rows = []
            floor = alone.get(modality)
            for arm in arms:
                if arm.method.model == "unimodal" or not any(pick(one) for one in grid.runs[arm].values()):
                    continue
                cells: list[Cell] = []
                for metric in ("balanced_accuracy", "auc"):
                    done = len(grid.runs[arm])
                    cells.append(show(told(grid, arm, metric, pick), done))
                    if floor is None:
                        cells += [Cell("not run", none=True), Cell("—", none=True)]
                        continue
                    one = values(grid, floor, metric, pick)
                    cells += [
                        show(told(grid, floor, metric, pick), len(grid.runs[floor])),
                        change(paired(values(grid, arm, metric, pick), one)),
                    ]
                rows.append(Row(grid.name(arm.method), (Cell(_rows(grid, arm, pick)), *cells)))
            if rows:
                groups.append(Group(f"{regime.title}: {modality} only", tuple(rows)))
    if not groups:
        return None
    ways = ("after training on all", "trained on it alone", "difference")
    columns = ("Test rows", *(f"{name} {way}" for name in ("Bacc.", "AUC") for way in ways))
    return Table(
        f"One modality at test time, {MODES[mode].lower()}; differences with 95\u00a0% interval",
        "Method",
        columns,
        tuple(groups),
    )


def rate_table(grid: GridRecord) -> Table | None:
    """Achieved missing rates per modality, over all sites; ``None`` where nothing was taken away."""
    names = tuple(dict.fromkeys(name for regime in grid.regimes for name in grid.modalities(regime)))
    rows = []
    for regime in grid.regimes:
        reports = {
            record.seed: record.amputation
            for record in grid.records
            if record.arm.regime == regime and record.amputation
        }
        if not reports:
            continue
        cells = [Cell("—" if regime.rate is None else f"{regime.rate:.3f}")]
        for name in (*names, None):
            rates = [rate for report in reports.values() if (rate := _achieved(report, name)) is not None]
            cells.append(show(_over(rates), 1) if rates else Cell("—", none=True))
        never = sorted(
            f"{site}: {', '.join(map(str, told_['never']))}"
            for site, told_ in next(iter(reports.values())).get("sites", {}).items()
            if told_.get("never")
        )
        cells.append(Cell("; ".join(never) or "—", number=False))
        rows.append(Row(regime.data, tuple(cells), regime.loss))
    if not rows:
        return None
    columns = ("Asked", *names, "All modalities", "Sites that never have")
    return Table(
        "Share of present modalities that was taken away", "Data", columns, (Group("", tuple(rows)),)
    )


def cost_table(grid: GridRecord) -> Table:
    """Size, rounds, time and traffic per arm, mean ± sd over seeds."""
    columns = (
        "Trainable parameters",
        "Parameters that travel",
        "Rounds run",
        "Selected round",
        "Seconds of the run",
        "Seconds of training",
        "of it per round",
        "Sent by sites, a round (MB)",
    )
    groups = []
    for regime in grid.regimes:
        rows = []
        for arm in (arm for arm in grid.arms if arm.regime == regime):
            told_ = [_cost(record) for record in grid.runs[arm].values()]
            cells = [_mean([one[place] for one in told_], whole=place < 2) for place in range(len(columns))]  # noqa: PLR2004 - parameters come first
            rows.append(Row(grid.name(arm.method), tuple(cells), MODES[arm.mode].lower()))
        groups.append(Group(regime.title, tuple(rows)))
    return Table("Mean ± sd over seeds", "Method", columns, tuple(groups))


def absence_table(grid: GridRecord) -> Table | None:
    """Sites that were left out: in how many cells, how often, why; ``None`` for none."""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for record in grid.records:
        for entry in record.result.get("left_out") or []:
            key = (str(entry.get("site")), str(entry.get("reason")), record.arm.regime.title)
            cells = found.setdefault(key, {})
            cells[record.cell] = cells.get(record.cell, 0) + 1
    if not found:
        return None
    rows = tuple(
        Row(
            site,
            (
                Cell(f"{reason}: {REASONS[reason]}" if reason in REASONS else reason, number=False),
                Cell(data, number=False),
                Cell(str(len(cells))),
                Cell(str(sum(cells.values()))),
            ),
        )
        for (site, reason, data), cells in sorted(found.items())
    )
    columns = ("Why", "Data", "Cells", "Times")
    return Table("Sites left out of a run or of rounds", "Site", columns, (Group("", rows),))


def missing_table(grid: GridRecord) -> Table | None:
    """Cells that have no result yet; ``None`` if all have."""
    rows = tuple(
        Row(
            grid.name(arm.method),
            (
                Cell(arm.regime.title, number=False),
                Cell(MODES[arm.mode].lower(), number=False),
                Cell(", ".join(map(str, seeds)), number=False),
            ),
        )
        for arm, seeds in grid.missing
    )
    if not rows:
        return None
    return Table("No result yet", "Method", ("Data", "Mode", "Seeds"), (Group("", rows),))


def failure_table(grid: GridRecord) -> Table | None:
    """Cells that failed, with the sentence; ``None`` if none did."""
    rows = tuple(
        Row(
            failure.arm.method.label,
            (
                Cell(failure.arm.method.ablation or failure.arm.method.strategy, number=False),
                Cell(failure.arm.regime.title, number=False),
                Cell(MODES.get(failure.arm.mode, failure.arm.mode).lower(), number=False),
                Cell("—" if failure.seed is None else str(failure.seed)),
                Cell(failure.sentence, number=False),
            ),
        )
        for failure in grid.failures
    )
    if not rows:
        return None
    columns = ("Variant", "Data", "Mode", "Seed", "Why")
    return Table(
        "Failed; the grid tries them again when it is run again", "Method", columns, (Group("", rows),)
    )


def version_table(grid: GridRecord) -> Table | None:
    """Software that made the results; several versions of one are all told."""
    found: dict[str, dict[str, int]] = {}
    for record in grid.records:
        for name, version in (record.result.get("versions") or {}).items():
            counts = found.setdefault(str(name), {})
            counts[str(version)] = counts.get(str(version), 0) + 1
    if not found:
        return None
    rows = tuple(
        Row(name, (Cell(_versions(counts, len(grid.records)), number=False),))
        for name, counts in sorted(found.items())
    )
    return Table("Of all finished cells", "Software", ("Version",), (Group("", rows),))


def _versions(counts: Mapping[str, int], cells: int) -> str:
    short = {version: version[:_CODE_LENGTH] for version in counts}
    if len(counts) == 1 and sum(counts.values()) == cells:
        return next(iter(short.values()))
    return ", ".join(f"{short[version]} ({n} cells)" for version, n in counts.items())


def _parts(grid: GridRecord, regime: Regime, mode: str, kind: str) -> Table | None:
    """Parts of the test rows by methods: balanced accuracy, and below it the AUC."""
    arms = [
        arm
        for arm in grid.arms
        if (arm.regime, arm.mode) == (regime, mode)
        and any(record.test.get(kind) for record in grid.runs[arm].values())
    ]
    names = {
        name for arm in arms for record in grid.runs[arm].values() for name in record.test.get(kind) or {}
    }
    if not names:
        return None
    rows = []
    for name in sorted(names, key=lambda name: (name.count("1"), -int(f"0{name}", 2))):
        pick = partial(part, kind=kind, name=name)
        cells = []
        for arm in arms:
            has = sum(pick(record) is not None for record in grid.runs[arm].values())
            second = told(grid, arm, "auc", pick)
            below = () if second.value is None else (f"AUC {second.value:.3f}",)
            found = told(grid, arm, "balanced_accuracy", pick)
            cells.append(show(found, has, below) if has else Cell("—", none=True))
        rows.append(Row(_words(name, grid.modalities(regime)), (Cell(_rows(grid, arms[0], pick)), *cells)))
    what = "have" if kind == "patterns" else "are shown with"
    return Table(
        f"{regime.title}, {MODES[mode].lower()}: balanced accuracy, mean ± sd, of patients who {what}",
        "Modalities",
        ("Test rows", *(grid.name(arm.method) for arm in arms)),
        (Group("", tuple(rows)),),
    )


def _rows(grid: GridRecord, arm: Arm, pick: Any) -> str:  # noqa: ANN401 - a `Pick`, with its arguments bound
    counts = [n for n in values(grid, arm, "n", pick).values() if n is not None]
    if not counts:
        return "withheld"
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"  # noqa: RUF001 - a range


def _words(pattern: str, names: Sequence[str]) -> str:
    if len(pattern) != len(names):
        return pattern
    return " + ".join(name for name, there in zip(names, pattern, strict=True) if there == "1")


def _modality(grid: GridRecord, arm: Arm) -> str:
    """What a unimodal model uses: the last modality unless it is set."""
    chosen = dict(text.partition("=")[::2] for text in grid.settings[arm])
    chosen = {key.strip(): value.strip().strip("\"'") for key, value in chosen.items()}
    return chosen.get("model.modality") or (grid.modalities(arm.regime) or ("",))[-1]


def _achieved(report: Mapping[str, Any], name: str | None) -> float | None:
    """The share that was taken away, over sites: of one modality, or of all."""
    told_ = [
        one
        for site in (report.get("sites") or {}).values()
        for modality, one in (site.get("modalities") or {}).items()
        if name in {None, modality}
    ]
    present = sum(one["patients"] for one in told_)
    return sum(one["patients"] * one["achieved"] for one in told_) / present if present else None


def _over(numbers: Sequence[float]) -> Estimate:
    sd = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Estimate(statistics.fmean(numbers), sd=sd, runs=1)


def _cost(record: Record) -> tuple[float | None, ...]:
    result = record.result
    parameters, seconds = result.get("parameters") or {}, result.get("seconds") or {}
    rounds, train = result.get("rounds_run"), seconds.get("train")
    sent = (result.get("bytes") or {}).get("up_per_round")
    return (
        parameters.get("trainable"),
        parameters.get("federated"),
        rounds,
        result.get("best_round"),
        seconds.get("total", record.seconds),
        train,
        train / rounds if train is not None and rounds else None,
        None if sent is None else sent / 1e6,
    )


def _mean(numbers: Iterable[float | None], *, whole: bool) -> Cell:
    known = [number for number in numbers if number is not None]
    if not known:
        return Cell("—", none=True)
    mean = statistics.fmean(known)
    if whole:
        return Cell(f"{round(mean):,}")
    text = f"{mean:,.1f}" if mean >= 10 else f"{mean:.3g}"  # noqa: PLR2004 - three digits are enough
    if len(known) > 1 and (sd := statistics.stdev(known)) > _VISIBLE * mean:
        return Cell(text, (f"± {sd:.2g}",))
    return Cell(text)
