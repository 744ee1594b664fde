"""A summary table of a conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from client.ingest.report import Report

__all__ = ["converted_table"]


def converted_table(report: Report) -> Table:
    """One row per series: what it is, its outcome, and why."""
    title = (
        f"{len(report.converted)} of {len(report.series)} series converted, "
        f"{report.n_files} files, {len(report.ignored)} of them ignored"
    )
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for heading in ("series", "", "size", "spacing mm"):
        table.add_column(heading, no_wrap=True)
    table.add_column("volume", overflow="fold")
    table.add_column("reasons, corrections", no_wrap=True)  # codes to search for
    for entry in report.series:
        table.add_row(
            str(entry.series_number),
            escape(entry.modality),
            "x".join(str(count) for count in entry.size or ()) or "-",
            " ".join(f"{spacing:.3g}" for spacing in entry.spacing_mm or ()) or "-",
            escape(entry.output or f"refused: {entry.description}"),
            escape("\n".join([*entry.reasons, *entry.corrections]) or "-"),
        )
    return table
