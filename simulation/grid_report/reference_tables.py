"""Cells of a grid beside simple models on the same splits, where the grid asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import pandas as pd

from simulation.grid_report.method_tables import DECIMALS, change, line_name, show
from simulation.grid_report.page import NONE, Cell, Row, Table
from simulation.grid_report.records import Arm, GridRecord
from simulation.grid_report.statistics import Difference, Verdict, paired
from simulation.report.results import MODES, Estimate

__all__ = ["losses", "reference_table"]

RUN: Final = "this run"  # as `simulation.references` writes it


def reference_table(grid: GridRecord, mode: str) -> Table:
    """AUC of each method less that of each simple model, seed by seed."""
    found = {arm: _aucs(grid, arm) for arm in grid.arms if arm.mode == mode}
    names = list(dict.fromkeys(name for aucs in found.values() for name in aucs if name != RUN))
    groups = []
    for regime in grid.regimes:
        rows = []
        for arm, aucs in found.items():
            if arm.regime != regime or aucs.empty:
                continue
            own = aucs[RUN]
            cells = [paired(own, aucs[name]) if name in aucs else None for name in names]
            spread = None if len(own) < 2 else own.std()  # noqa: PLR2004 - one value has none
            head = [Cell(str(len(own))), show(Estimate(own.mean(), sd=spread, runs=len(own)), len(own))]
            rows.append(
                Row(
                    line_name(grid, arm, several=False),
                    [*head, *(NONE if cell is None else change(cell) for cell in cells)],
                )
            )
        if rows:
            groups.append((regime.title, rows))
    caption = f"AUC, {MODES[mode].lower()}, and less each simple model, with 95\u00a0% interval (Student's t)"
    return Table(caption, "Method", ("Seeds", "AUC", *(f"less {name}" for name in names)), groups)


def losses(grid: GridRecord) -> Iterator[str]:
    """A sentence for every method that is behind a simple model, beyond chance or not."""
    for arm in grid.arms:
        aucs = _aucs(grid, arm)
        behind = {name: paired(aucs[RUN], aucs[name]) for name in aucs if name != RUN}
        lost = {name: gap for name, gap in behind.items() if gap.mean is not None and gap.mean < 0}
        if lost:
            name, gap = min(lost.items(), key=lambda each: each[1].mean or 0.0)
            where = f"{grid.name(arm.method)}, {MODES[arm.mode].lower()}, on {arm.regime.title}"
            yield f"{where} loses to {name} by {-(gap.mean or 0.0):.{DECIMALS}f} of AUC{_chance(gap)}."


def _chance(gap: Difference) -> str:
    if gap.low is None or gap.high is None:
        return ", of one seed"
    span = f" ({-gap.high:.{DECIMALS}f} to {-gap.low:.{DECIMALS}f})"
    return span if gap.verdict is Verdict.LOWER else f"{span}, which may be chance"


def _aucs(grid: GridRecord, arm: Arm) -> pd.DataFrame:
    """AUC by seed and model."""
    found: Mapping[int, Mapping[str, Any]] = {
        record.seed: record.references for record in grid.records if record.arm == arm and record.references
    }
    return pd.DataFrame(
        {seed: {name: scores["auc"] for name, scores in models.items()} for seed, models in found.items()}
    ).T
