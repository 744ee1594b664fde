"""Cells of a grid beside simple models on the same splits, where the grid asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pandas as pd

from simulation.grid_report.method_tables import DECIMALS, change, line_name, show
from simulation.grid_report.page import NONE, Cell, Row, Table
from simulation.grid_report.records import Arm, GridRecord, Record
from simulation.grid_report.statistics import Difference, Verdict, paired
from simulation.report.results import MODES, Estimate

__all__ = ["losses", "reference_table"]

RUN: Final = "this run"  # as `simulation.references` writes it


def reference_table(grid: GridRecord, mode: str) -> Table:
    """AUC, of times concordance, of each method less that of each simple model, seed by seed."""
    found = {arm: _scores(grid, arm) for arm in grid.arms if arm.mode == mode}
    names = list(dict.fromkeys(name for scores in found.values() for name in scores if name != RUN))
    title = " or ".join(sorted({_metric(record) for record in grid.records if record.references}))
    groups = []
    for regime in grid.regimes:
        rows = []
        for arm, scores in found.items():
            if arm.regime != regime or scores.empty:
                continue
            own = scores[RUN]
            cells = [paired(own, scores[name]) if name in scores else None for name in names]
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
    caption = (
        f"{title}, {MODES[mode].lower()}, and less each simple model, with 95\u00a0% interval (Student's t)"
    )
    return Table(caption, "Method", ("Seeds", title, *(f"less {name}" for name in names)), groups)


def losses(grid: GridRecord) -> Iterator[str]:
    """A sentence for every method that is behind a simple model, beyond chance or not."""
    for arm in grid.arms:
        scores = _scores(grid, arm)
        behind = {name: paired(scores[RUN], scores[name]) for name in scores if name != RUN}
        lost = {name: gap for name, gap in behind.items() if gap.mean is not None and gap.mean < 0}
        if lost:
            name, gap = min(lost.items(), key=lambda each: each[1].mean or 0.0)
            where = f"{grid.name(arm.method)}, {MODES[arm.mode].lower()}, on {arm.regime.title}"
            metric = next(_metric(record) for record in grid.records if record.arm == arm)
            yield f"{where} loses to {name} by {-(gap.mean or 0.0):.{DECIMALS}f} of {metric}{_chance(gap)}."


def _chance(gap: Difference) -> str:
    if gap.low is None or gap.high is None:
        return ", of one seed"
    span = f" ({-gap.high:.{DECIMALS}f} to {-gap.low:.{DECIMALS}f})"
    return span if gap.verdict is Verdict.LOWER else f"{span}, which may be chance"


def _scores(grid: GridRecord, arm: Arm) -> pd.DataFrame:
    """AUC or concordance by seed and model."""
    return pd.DataFrame(
        {
            record.seed: {name: scores[_metric(record).lower()] for name, scores in record.references.items()}
            for record in grid.records
            if record.arm == arm and record.references
        }
    ).T


def _metric(record: Record) -> str:
    """Of what the simple models are compared by."""
    return "concordance" if "concordance" in record.references.get(RUN, {}) else "AUC"
