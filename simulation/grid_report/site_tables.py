"""Tables of a grid about sites: ways to train, gain from joining, each model everywhere, the worst site."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from simulation.grid_report.method_tables import change, differences, pooled, show, told, values, worst
from simulation.grid_report.page import Cell, Group, Row, Table
from simulation.grid_report.records import Arm, GridRecord, Record
from simulation.grid_report.statistics import Verdict, paired
from simulation.report.results import HEADLINE, MODES, estimate

__all__ = [
    "cross_table",
    "federated_arms",
    "gain_table",
    "modes_table",
    "sites_of",
    "step_table",
    "twin",
    "worst_table",
]

_CROSS = {"balanced_accuracy": "balanced accuracy", "auc": "AUC"}
_ALONE = f"{MODES['local']}, mean over sites"


def federated_arms(grid: GridRecord) -> list[Arm]:
    """Arms of sites that train together."""
    return [arm for arm in grid.arms if arm.mode == "federated"]


def twin(grid: GridRecord, arm: Arm, mode: str) -> Arm | None:
    """The same model on the same data in another mode; of the same strategy if there is one."""
    alike = [
        other
        for other in grid.arms
        if (other.regime, other.mode, other.method.label, other.method.model, other.method.ablation)
        == (arm.regime, mode, arm.method.label, arm.method.model, arm.method.ablation)
    ]
    return min(alike, key=lambda other: other.method.strategy != arm.method.strategy, default=None)


def sites_of(grid: GridRecord, arm: Arm) -> list[str]:
    """Sites whose test rows an arm was measured on, sorted."""
    records = grid.runs[arm].values()
    return sorted({site for record in records for site in [*(record.test.get("sites") or {}), *record.alone]})


def on_site(record: Record, site: str) -> Mapping[str, Any] | None:
    """Test metrics on one site's rows: of the joint model, or of the site's own."""
    if record.arm.mode == "local":
        own: Mapping[str, Any] | None = (record.alone.get(site) or {}).get("own")
        return own
    return (record.test.get("sites") or {}).get(site)


def elsewhere(record: Record, trained: str, site: str | None) -> Mapping[str, Any] | None:
    """Test metrics of one site's own model on another site's rows, or on those of all for ``None``."""
    test = record.alone.get(trained) or {}
    if site is None:
        return test.get("pooled")
    return (test.get("sites") or {}).get(site) or (test.get("own") if site == trained else None)


def modes_table(grid: GridRecord) -> Table:
    """Federated, centralised and alone, one under the other, on the same test rows."""
    arms = federated_arms(grid) or list(grid.arms)
    columns = {**HEADLINE, "worst_site": "Worst site's balanced accuracy"}
    groups, seen = [], set()
    for arm in arms:
        rows = []
        for mode in grid.modes:
            other = twin(grid, arm, mode)
            if other is None:
                continue
            cells = [show(told(grid, other, metric), len(grid.runs[other])) for metric in columns]
            less = [
                change(differences(grid, other, arm, metric)) if other != arm else Cell("", none=True)
                for metric in ("balanced_accuracy", "auc")
            ]
            seeds = Cell(f"{len(grid.runs[other])} of {len(grid.seeds[other])}")
            rows.append(
                Row(_ALONE if mode == "local" else MODES[mode], (seeds, *cells, *less), strong=other == arm)
            )
        title = f"{arm.regime.title}: {grid.name(arm.method)}"
        if len(rows) > 1 and title not in seen:
            seen.add(title)
            groups.append(Group(title, tuple(rows)))
    return Table(
        "Test rows of all sites, mean ± sd over seeds; differences to federated with 95\u00a0% interval",
        "Trained",
        ("Seeds", *columns.values(), "Balanced accuracy less federated", "AUC less federated"),
        tuple(groups),
    )


def gain_table(grid: GridRecord, arm: Arm, alone: Arm) -> tuple[Table, str]:
    """What each site gains by joining: the joint model less its own, on its own test rows, over equal seeds.

    Returns:
        The table, and a sentence that counts the sites.
    """
    rows, verdicts = [], Counter[Verdict]()
    sites = sites_of(grid, arm)
    for site in sites:
        pick = partial(on_site, site=site)
        cells = []
        for metric in _CROSS:
            found = paired(values(grid, arm, metric, pick), values(grid, alone, metric, pick))
            cells += [
                show(told(grid, alone, metric, pick), len(grid.runs[alone])),
                show(told(grid, arm, metric, pick), len(grid.runs[arm])),
                change(found),
            ]
            if metric == "balanced_accuracy":
                verdicts[found.verdict] += 1
        counts = [n for n in values(grid, arm, "n", pick).values() if n]
        pairs = len(grid.runs[arm].keys() & grid.runs[alone].keys())
        span = f"{min(counts)}–{max(counts)}" if counts and min(counts) < max(counts) else str(*counts[:1])  # noqa: RUF001 - a range
        rows.append(Row(site, (Cell(span or "withheld"), Cell(str(pairs)), *cells)))
    said = (
        f"By balanced accuracy, of {len(sites)} sites {verdicts[Verdict.HIGHER]} gain, "
        f"{verdicts[Verdict.LOWER]} lose, and {verdicts[Verdict.OPEN]} are not distinguishable"
        + (f"; {verdicts[Verdict.UNKNOWN]} have too few seeds." if verdicts[Verdict.UNKNOWN] else ".")
    )
    columns = ("Test rows", "Pairs", *(f"{name} {way}" for name in ("Bacc.", "AUC") for way in _WAYS))
    title = f"{arm.regime.title}: {grid.name(arm.method)}, each site on its own test rows"
    return Table(title, "Site", columns, (Group("", tuple(rows)),)), said


_WAYS = ("alone", "federated", "gain")


def cross_table(grid: GridRecord, alone: Arm, metric: str = "balanced_accuracy") -> Table:
    """Each site's model on every site's test rows, mean over seeds, shaded by value; joint models below."""
    sites = sites_of(grid, alone)
    lines: list[tuple[str, Arm, list[Any]]] = [
        (site, alone, [partial(elsewhere, trained=site, site=rows) for rows in (*sites, None)])
        for site in sites
    ]
    for mode in ("federated", "centralised"):
        joint = twin(grid, alone, mode)
        if joint is not None:
            picks = [*(partial(on_site, site=site) for site in sites), pooled]
            lines.append((MODES[mode], joint, picks))
    found = [
        [estimate([pick(record) for record in grid.runs[arm].values()], metric) for pick in picks]
        for _, arm, picks in lines
    ]
    known = [one.value for line in found for one in line if one.value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    rows = []
    for (name, arm, _), line in zip(lines, found, strict=True):
        cells = []
        for one in line:
            cell = show(one, len(grid.runs[arm]))
            heat = None if one.value is None else (one.value - low) / ((high - low) or 1.0)
            cells.append(Cell(cell.text, cell.small, heat=heat, none=cell.none))
        rows.append(Row(name, tuple(cells), strong=arm != alone))
    return Table(
        f"{alone.regime.title}: {grid.name(alone.method)}, {_CROSS[metric]}; "
        "trained as in the row, tested on the rows of the column",
        "Trained at",
        (*sites, "All test rows"),
        (Group("", tuple(rows)),),
    )


def worst_table(grid: GridRecord, mode: str, first: Mapping[Any, Arm | None]) -> Table:
    """The site that fares worst, per method; ``first`` is the reference of each regime."""
    groups = []
    for regime in grid.regimes:
        rows = []
        for arm in grid.arms:
            if arm.regime != regime or arm.mode != mode:
                continue
            done = grid.runs[arm]
            lowest = Counter(str(site["site"]) for record in done.values() if (site := worst(record)))
            names = ", ".join(f"{site} ({n})" for site, n in lowest.most_common()) or "—"
            other = first.get(regime)
            less = differences(grid, arm, other, "balanced_accuracy", worst)
            rows.append(
                Row(
                    grid.name(arm.method),
                    (
                        show(told(grid, arm, "balanced_accuracy", worst), len(done)),
                        show(told(grid, arm, "spread", worst), len(done)),
                        show(told(grid, arm, "balanced_accuracy"), len(done)),
                        Cell("reference", none=True) if arm == other else change(less),
                        Cell(names, number=False),
                    ),
                )
            )
        if rows:
            groups.append(Group(regime.title, tuple(rows)))
    columns = (
        "Worst site's balanced accuracy",
        "Best site less worst",
        "All test rows",
        "Worst site less the reference's",
        "Which site (seeds)",
    )
    return Table(f"{MODES[mode]}, mean ± sd over seeds", "Method", columns, tuple(groups))


def step_table(grid: GridRecord, heading: str, steps: Sequence[tuple[str, Arm]], metric: str) -> Table:
    """What each step of a chain did on each site's own test rows, less the step before.

    Args:
        grid: Whose results.
        heading: Of the chain.
        steps: Named, in order.
        metric: That is compared.
    """
    rows = []
    for site in sites_of(grid, steps[0][1]):
        pick = partial(on_site, site=site)
        first = steps[0][1]
        cells = [show(told(grid, first, metric, pick), len(grid.runs[first]))]
        for (_, before), (_, arm) in itertools.pairwise(steps):
            cells.append(change(differences(grid, arm, before, metric, pick)))
        rows.append(Row(site, tuple(cells)))
    columns = (steps[0][0], *(name for name, _ in steps[1:]))
    return Table(f"{heading}, less the step before", "Rows of", columns, (Group("", tuple(rows)),))
