"""Compare runs in a bar chart of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from simulation.report.results import MODES

if TYPE_CHECKING:
    from simulation.report.results import Comparison

__all__ = ["auc_chart"]

CHANCE = 0.5  # AUC of guessing, where the bars begin


def auc_chart(comparison: Comparison) -> Table:
    """One bar per way to train: AUC on the test rows of all sites, from chance to 1, with its interval."""
    counts = {way.runs[0]["pooled"]["n"] for way in comparison.contenders if way.runs[0]["pooled"]}
    rows = "-".join(map(str, sorted(counts)))
    chart = Table(
        title=f"AUC on the {rows} test rows of all sites; bars run from 0.5 (chance) to 1",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1),
    )
    for heading in ("trained", "AUC", "", "95 % interval"):
        chart.add_column(heading, justify="right" if heading == "AUC" else "left")
    for way in comparison.contenders:
        found = way.on(None, "auc")
        chart.add_row(
            MODES[way.mode].lower() if way.site is None else f"{escape(way.site)} alone",
            "-" if found.value is None else f"{found.value:.3f}",
            ProgressBar(
                total=1 - CHANCE,
                completed=max(0.0, (found.value or 0.0) - CHANCE),
                width=44,
                complete_style="bar.finished" if way.site is None else "bar.complete",
                finished_style="bar.finished",
            ),
            "-" if found.low is None else f"{found.low:.3f} to {found.high:.3f}",
        )
    return chart
