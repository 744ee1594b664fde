"""Tables of a grid about sites: ways to train, gain from joining, each model everywhere, the worst site."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from simulation.grid_report.method_tables import (
    BLANK,
    WORST_TITLE,
    change,
    less,
    mean,
    reference,
    seeds_done,
    show,
)
from simulation.grid_report.page import Cell, Row, Table
from simulation.grid_report.records import Arm, GridRecord
from simulation.grid_report.statistics import Verdict
from simulation.grid_report.values import POOLED, WORST, Rows
from simulation.report.results import HEADLINE, MODES

__all__ = ["cross_table", "gain_table", "modes_table", "row_counts", "step_table", "twin", "worst_table"]

_CROSS = {"balanced_accuracy": "balanced accuracy", "auc": "AUC"}
_REFERENCE = Cell("reference", none=True)
_WAYS = ("alone", "federated", "gain")


def twin(grid: GridRecord, arm: Arm, mode: str) -> Arm | None:
    """The same model on the same data in another mode; of the same strategy if there is one."""
    strategy = arm.method.strategy
    alike = [
        other for other in grid.of(arm.regime, mode) if replace(other.method, strategy=strategy) == arm.method
    ]
    return min(alike, key=lambda other: other.method.strategy != strategy, default=None)


def row_counts(counts: pd.Series[float]) -> str:
    """How many test rows there are, over seeds."""
    if counts.empty:
        return "withheld"
    least, most = int(counts.min()), int(counts.max())
    return str(least) if least == most else f"{least}–{most}"  # noqa: RUF001 - a range


def modes_table(grid: GridRecord) -> Table:
    """Federated, centralised and alone, one under the other, on the same test rows."""
    columns = {**HEADLINE, "worst_site": WORST_TITLE}
    groups: dict[str, list[Row]] = {}
    for arm in [arm for arm in grid.arms if arm.mode == "federated"] or grid.arms:
        rows = []
        for mode in grid.modes:
            other = twin(grid, arm, mode)
            if other is None:
                continue
            cells = [mean(grid, other, metric) for metric in columns]
            changes = [BLANK if other == arm else less(grid, other, arm, metric) for metric in _CROSS]
            name = f"{MODES[mode]}, mean over sites" if mode == "local" else MODES[mode]
            rows.append(
                Row(name, [Cell(seeds_done(grid, other).text), *cells, *changes], strong=other == arm)
            )
        if len(rows) > 1:
            groups.setdefault(f"{arm.regime.title}: {grid.name(arm.method)}", rows)
    return Table(
        "Test rows of all sites, mean ± sd over seeds; differences to federated with 95\u00a0% interval",
        "Trained",
        ("Seeds", *columns.values(), "Balanced accuracy less federated", "AUC less federated"),
        list(groups.items()),
    )


def gain_table(grid: GridRecord, arm: Arm, alone: Arm) -> tuple[Table, str]:
    """What each site gains by joining: the joint model less its own, on its own test rows, over equal seeds.

    Returns:
        The table, and a sentence that counts the sites.
    """
    rows, verdicts = [], Counter[Verdict]()
    for site in sorted(grid.values.names(arm, "sites")):
        own = Rows("sites", site)
        cells = []
        for metric in _CROSS:
            found = grid.values.difference(arm, alone, metric, own)
            cells += [mean(grid, alone, metric, own), mean(grid, arm, metric, own), change(found)]
            if metric == "balanced_accuracy":
                verdicts[found.verdict] += 1
        counts = grid.values.by_seed(arm, "n", own)
        pairs = len(set(grid.done[arm]) & set(grid.done[alone]))
        rows.append(Row(site, [Cell(row_counts(counts[counts > 0])), Cell(str(pairs)), *cells]))
    said = (
        f"By balanced accuracy, of {len(rows)} sites {verdicts[Verdict.HIGHER]} gain, "
        f"{verdicts[Verdict.LOWER]} lose, and {verdicts[Verdict.OPEN]} are not distinguishable"
        + (f"; {verdicts[Verdict.UNKNOWN]} have too few seeds." if verdicts[Verdict.UNKNOWN] else ".")
    )
    columns = ("Test rows", "Pairs", *(f"{name} {way}" for name in ("Bacc.", "AUC") for way in _WAYS))
    title = f"{arm.regime.title}: {grid.name(arm.method)}, each site on its own test rows"
    return Table(title, "Site", columns, [("", rows)]), said


def cross_table(grid: GridRecord, alone: Arm, metric: str) -> Table:
    """Each site's model on every site's test rows, mean over seeds, shaded by value; joint models below."""
    sites = sorted(grid.values.names(alone, "sites"))
    columns = [*(Rows("sites", site) for site in sites), POOLED]
    lines = [(site, alone, [rows._replace(trained=site) for rows in columns]) for site in sites]
    joint = {MODES[mode]: twin(grid, alone, mode) for mode in ("federated", "centralised")}
    lines += [(name, arm, columns) for name, arm in joint.items() if arm]
    found = [[grid.values.estimate(arm, metric, rows) for rows in line] for _, arm, line in lines]
    known = [one.value for line in found for one in line if one.value is not None] or [0.0]
    low, span = min(known), (max(known) - min(known)) or 1.0
    table = []
    for (name, arm, _), line in zip(lines, found, strict=True):
        heats = [None if one.value is None else (one.value - low) / span for one in line]
        cells = [
            replace(show(one, len(grid.done[arm])), heat=heat) for one, heat in zip(line, heats, strict=True)
        ]
        table.append(Row(name, cells, strong=arm != alone))
    return Table(
        f"{alone.regime.title}: {grid.name(alone.method)}, {_CROSS[metric]}; "
        "trained as in the row, tested on the rows of the column",
        "Trained at",
        (*sites, "All test rows"),
        [("", table)],
    )


def worst_table(grid: GridRecord, mode: str) -> Table:
    """The site that fares worst, per method, beside that of the reference of each regime."""
    groups = []
    for regime in grid.regimes:
        arms = grid.of(regime, mode)
        rows = []
        for arm in arms:
            first, lowest = reference(grid, arms), grid.values.lowest(arm)
            cells = [
                mean(grid, arm, "balanced_accuracy", WORST),
                mean(grid, arm, "spread", WORST),
                mean(grid, arm, "balanced_accuracy"),
                _REFERENCE if arm == first else less(grid, arm, first, "balanced_accuracy", WORST),
                Cell(", ".join(f"{site} ({n})" for site, n in lowest.most_common()) or "—", number=False),
            ]
            rows.append(Row(grid.name(arm.method), cells))
        groups += [(regime.title, rows)] if rows else []
    columns = (
        WORST_TITLE,
        "Best site less worst",
        "All test rows",
        "Worst site less the reference's",
        "Which site (seeds)",
    )
    return Table(f"{MODES[mode]}, mean ± sd over seeds", "Method", columns, groups)


def step_table(grid: GridRecord, heading: str, steps: Sequence[tuple[str, Arm]], metric: str) -> Table:
    """What each named step of a chain did on each site's own test rows, less the step before."""
    arms = [arm for _, arm in steps]
    rows = []
    for site in sorted(grid.values.names(arms[0], "sites")):
        own = Rows("sites", site)
        changes = [less(grid, arm, before, metric, own) for before, arm in itertools.pairwise(arms)]
        rows.append(Row(site, [mean(grid, arms[0], metric, own), *changes]))
    return Table(f"{heading}, less the step before", "Rows of", [name for name, _ in steps], [("", rows)])
