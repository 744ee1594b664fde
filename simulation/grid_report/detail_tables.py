"""Tables of a grid about patients and machines: patterns, subsets, achieved rates, cost, what is missing."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from simulation.grid_report.method_tables import less, mean, show
from simulation.grid_report.page import NONE, Cell, Row, Table
from simulation.grid_report.records import Arm, GridRecord
from simulation.grid_report.site_tables import row_counts
from simulation.grid_report.values import RUN, Rows
from simulation.report.page import REASONS
from simulation.report.results import MODES, Estimate

__all__ = [
    "absence_table",
    "cost_table",
    "failure_table",
    "missing_table",
    "part_tables",
    "rate_table",
    "unimodal_table",
    "version_table",
]

_VISIBLE = 0.005  # of a mean: a smaller deviation is not worth a line
_CODE_LENGTH = 24  # of a version, beyond which it is a hash
_NOT_RUN = Cell("not run", none=True)
_WHOLE = ("parameters", "travelling")
_COSTS = {
    "parameters": "Trainable parameters",
    "travelling": "Parameters that travel",
    "rounds": "Rounds run",
    "best_round": "Selected round",
    "seconds": "Seconds of the run",
    "train_seconds": "Seconds of training",
    "train_seconds_per_round": "of it per round",
    "megabytes_per_round": "Sent by sites, a round (MB)",
}


def part_tables(grid: GridRecord, kind: str) -> list[Table]:
    """Per regime and mode: each method on the ``patterns`` that patients have, or ``subsets`` of them."""
    what = "have" if kind == "patterns" else "are shown with"
    tables = []
    for regime, mode in [(regime, mode) for regime in grid.regimes for mode in grid.modes]:
        arms = [arm for arm in grid.of(regime, mode) if grid.values.names(arm, kind)]
        names = {name for arm in arms for name in grid.values.names(arm, kind)}
        rows = []
        for name in sorted(names, key=lambda name: (name.count("1"), -int(name, 2))):
            counts = grid.values.by_seed(arms[0], "n", Rows(kind, name)).dropna()
            cells = [_part(grid, arm, Rows(kind, name)) for arm in arms]
            rows.append(Row(_words(name, grid.modalities(regime)), [Cell(row_counts(counts)), *cells]))
        title = f"{regime.title}, {MODES[mode].lower()}: balanced accuracy, mean ± sd, of patients who {what}"
        columns = ("Test rows", *(grid.name(arm.method) for arm in arms))
        tables.append(Table(title, "Modalities", columns, [("", rows)]))
    return tables


def unimodal_table(grid: GridRecord, mode: str) -> Table:
    """One modality at test time: models that trained on all, against one that trained on it alone."""
    groups = []
    for regime in grid.regimes:
        names, arms = grid.modalities(regime), grid.of(regime, mode)
        alone = {_modality(grid, arm): arm for arm in reversed(arms) if arm.method.model == "unimodal"}
        for slot, modality in enumerate(names):
            only = Rows("subsets", f"{1 << (len(names) - 1 - slot):0{len(names)}b}")
            rows = [
                Row(grid.name(arm.method), _one_modality(grid, arm, alone.get(modality), only))
                for arm in arms
                if arm.method.model != "unimodal" and only.name in grid.values.names(arm, "subsets")
            ]
            if rows:
                groups.append((f"{regime.title}: {modality} only", rows))
    ways = ("after training on all", "trained on it alone", "difference")
    return Table(
        f"One modality at test time, {MODES[mode].lower()}; differences with 95\u00a0% interval",
        "Method",
        ("Test rows", *(f"{name} {way}" for name in ("Bacc.", "AUC") for way in ways)),
        groups,
    )


def rate_table(grid: GridRecord) -> Table:
    """Achieved missing rates per modality, over all sites, where something was taken away."""
    names = tuple(dict.fromkeys(name for regime in grid.regimes for name in grid.modalities(regime)))
    rows = []
    for regime in grid.regimes:
        reports = {
            record.seed: record.amputation.get("sites") or {}
            for record in grid.records
            if record.arm.regime == regime and record.amputation
        }
        lost = pd.DataFrame(
            [
                (seed, modality, one["patients"], one["patients"] * one["achieved"])
                for seed, sites in reports.items()
                for site in sites.values()
                for modality, one in (site.get("modalities") or {}).items()
            ],
            columns=["seed", "modality", "present", "lost"],
        )
        cells = [Cell("—" if regime.rate is None else f"{regime.rate:.3f}")]
        for some in [*(lost[lost.modality == name] for name in names), lost]:
            sums = some.groupby("seed")[["present", "lost"]].sum()
            rates = (sums.lost / sums.present).dropna()
            sd = rates.std() if len(rates) > 1 else None
            cells.append(NONE if rates.empty else show(Estimate(rates.mean(), sd=sd, runs=1), 1))
        first = next(iter(reports.values()), {})
        never = sorted(
            f"{site}: {', '.join(map(str, of['never']))}" for site, of in first.items() if of.get("never")
        )
        cells.append(Cell("; ".join(never) or "—", number=False))
        if reports:
            rows.append(Row(regime.data, cells, regime.loss))
    columns = ("Asked", *names, "All modalities", "Sites that never have")
    return Table("Share of present modalities that was taken away", "Data", columns, [("", rows)])


def cost_table(grid: GridRecord) -> Table:
    """Size, rounds, time and traffic per arm, mean ± sd over seeds."""
    groups = []
    for regime in grid.regimes:
        rows = []
        for arm in (arm for arm in grid.arms if arm.regime == regime):
            cells = [
                _cost(grid.values.estimate(arm, metric, RUN), whole=metric in _WHOLE) for metric in _COSTS
            ]
            rows.append(Row(grid.name(arm.method), cells, MODES[arm.mode].lower()))
        groups.append((regime.title, rows))
    return Table("Mean ± sd over seeds", "Method", list(_COSTS.values()), groups)


def absence_table(grid: GridRecord) -> Table:
    """Sites that were left out: in how many cells, how often, why."""
    absences = pd.DataFrame(
        [
            (str(entry.get("site")), str(entry.get("reason")), record.arm.regime.title, record.cell)
            for record in grid.records
            for entry in record.result.get("left_out") or []
        ],
        columns=["site", "reason", "data", "cell"],
    )
    rows = []
    for key, cells in absences.groupby(["site", "reason", "data"]).cell:
        site, reason, data = map(str, key)
        why = f"{reason}: {REASONS[reason]}" if reason in REASONS else reason
        rows.append(Row(site, [*_words_of(why, data), Cell(str(cells.nunique())), Cell(str(len(cells)))]))
    return Table(
        "Sites left out of a run or of rounds", "Site", ("Why", "Data", "Cells", "Times"), [("", rows)]
    )


def missing_table(grid: GridRecord) -> Table:
    """Cells that have no result yet."""
    rows = [
        Row(
            grid.name(arm.method),
            _words_of(arm.regime.title, MODES[arm.mode].lower(), ", ".join(map(str, seeds))),
        )
        for arm, seeds in grid.missing.items()
    ]
    return Table("No result yet", "Method", ("Data", "Mode", "Seeds"), [("", rows)])


def failure_table(grid: GridRecord) -> Table:
    """Cells that failed, with the sentence."""
    rows = []
    for failure in grid.failures:
        method, mode = failure.arm.method, failure.arm.mode
        variant = method.ablation or method.strategy
        cells = _words_of(variant, failure.arm.regime.title, MODES.get(mode, mode).lower())
        seed = Cell("—" if failure.seed is None else str(failure.seed))
        rows.append(Row(method.label, [*cells, seed, *_words_of(failure.sentence)]))
    columns = ("Variant", "Data", "Mode", "Seed", "Why")
    return Table("Failed; the grid tries them again when it is run again", "Method", columns, [("", rows)])


def version_table(grid: GridRecord) -> Table:
    """Software that made the results; where there are several versions of one, all of them."""
    versions = pd.DataFrame(
        [
            (str(name), str(version))
            for record in grid.records
            for name, version in (record.result.get("versions") or {}).items()
        ],
        columns=["name", "version"],
    )
    rows = []
    for name, found in versions.groupby("name").version:
        counts = found.groupby(found, sort=False).size()
        words = [f"{str(version)[:_CODE_LENGTH]} ({n} cells)" for version, n in counts.items()]
        if counts.iloc[0] == len(grid.records):
            words = [str(counts.index[0])[:_CODE_LENGTH]]
        rows.append(Row(str(name), _words_of(", ".join(words))))
    return Table("Of all finished cells", "Software", ("Version",), [("", rows)])


def _words_of(*texts: str) -> list[Cell]:
    return [Cell(text, number=False) for text in texts]


def _part(grid: GridRecord, arm: Arm, rows: Rows) -> Cell:
    auc = grid.values.estimate(arm, "auc", rows).value
    below = [] if auc is None else [f"AUC {auc:.3f}"]
    seeds = grid.values.names(arm, rows.kind)[rows.name]
    return show(grid.values.estimate(arm, "balanced_accuracy", rows), seeds, below) if seeds else NONE


def _words(pattern: str, names: Sequence[str]) -> str:
    if len(pattern) != len(names):
        return pattern
    return " + ".join(name for name, there in zip(names, pattern, strict=True) if there == "1")


def _one_modality(grid: GridRecord, arm: Arm, floor: Arm | None, rows: Rows) -> list[Cell]:
    """Of an arm, of the arm that trained on the modality alone, and the difference."""
    cells = [Cell(row_counts(grid.values.by_seed(arm, "n", rows).dropna()))]
    for metric in ("balanced_accuracy", "auc"):
        cells.append(mean(grid, arm, metric, rows))
        cells += (
            [mean(grid, floor, metric, rows), less(grid, arm, floor, metric, rows)]
            if floor
            else [_NOT_RUN, NONE]
        )
    return cells


def _modality(grid: GridRecord, arm: Arm) -> str:
    """What a unimodal model uses: the last modality unless it is set."""
    return grid.setting(arm, "model.modality") or (grid.modalities(arm.regime) or ("",))[-1]


def _cost(found: Estimate, *, whole: bool) -> Cell:
    if found.value is None:
        return NONE
    if whole:
        return Cell(f"{round(found.value):,}")
    text = f"{found.value:,.1f}" if found.value >= 10 else f"{found.value:.3g}"  # noqa: PLR2004 - three digits are enough
    spread = found.sd is not None and found.sd > _VISIBLE * found.value
    return Cell(text, (f"± {found.sd:.2g}",) if spread else ())
