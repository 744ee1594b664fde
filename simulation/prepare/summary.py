"""Print what ``mmare-sim prepare`` wrote."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmare.wire.messages import Split

if TYPE_CHECKING:
    from sites.federation import Prepared, SiteCounts

__all__ = ["show"]


def show(prepared: Prepared) -> None:
    """Print what was written and what to type next."""
    console = Console(highlight=False)
    study = prepared.study
    modalities = [modality.name for modality in study.modalities]
    classes = escape(" / ".join(study.classes))
    view = _table(f"{escape(study.name)}: {classes} by split, share that has a modality")
    for heading in ("site", "patients", *Split, *modalities):
        view.add_column(escape(heading), justify="left" if heading == "site" else "right", overflow="fold")
    for site in prepared.sites:
        counts = ["/".join(str(site.patients[split, name]) for name in study.classes) for split in Split]
        view.add_row(site.id, str(site.n_patients), *counts, *(_share(site, name) for name in modalities))
    console.print(view)
    if prepared.amputation is not None:
        console.print(_removed(prepared.amputation, modalities))
    for note in prepared.notes:
        console.print(escape(f"- {note}"), soft_wrap=True)
    folder = shlex.quote(str(prepared.folder))
    run = shlex.quote(f"{prepared.folder}-run")
    console.print(f"Written to {escape(folder)}. Next:", soft_wrap=True)
    console.print(f"  mmare-sim run {escape(folder)} --out {escape(run)}", soft_wrap=True)


def _removed(amputation: Mapping[str, Any], modalities: Sequence[str]) -> Table:
    """Share of each modality removed at each site: target and achieved."""
    view = _table("removed, of those who had it")
    for heading in ("site", "mechanism", "target", *modalities):
        view.add_column(escape(heading), justify="left" if heading in {"site", "mechanism"} else "right")
    for name, site in amputation["sites"].items():
        driver = f" on {site['driver']}" if site["driver"] else ""
        target = "-" if site["rate"] is None else f"{site['rate']:.2f}"
        achieved = [
            "never" if modality in site["never"] else _achieved(site["modalities"].get(modality))
            for modality in modalities
        ]
        view.add_row(name, escape(f"{site['mechanism'] or '-'}{driver}"), target, *achieved)
    return view


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)


def _achieved(cell: Mapping[str, Any] | None) -> str:
    return "-" if cell is None else f"{cell['achieved']:.2f}"


def _share(site: SiteCounts, modality: str) -> str:
    n_present = site.present[modality]
    return f"{100 * n_present / site.n_patients:.0f}%" if n_present else "-"
