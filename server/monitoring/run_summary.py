"""A run in a screenful, from its journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from mmare.errors import InputError
from server.store.journal import read_journal

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run_status"]


def run_status(run: Path) -> Group:
    """What a run's journal says of its state, its rounds and its sites.

    Args:
        run: Run folder; the run may be under way, finished or failed.

    Raises:
        InputError: If it is not a run folder.
    """
    events = read_journal(run / "rounds.jsonl")
    started = next((event for event in events if event["event"] == "run_started"), None)
    if started is None:
        raise InputError(f"{run}: no run here; expected a folder with rounds.jsonl")
    return Group(_summary(run, events, started), "", _sites(events))


def _summary(run: Path, events: list[dict[str, Any]], started: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    scores = {
        event["round"]: event["metrics"]["pooled"]["balanced_accuracy"]
        for event in events
        if event["event"] == "validated"
    }
    told = {number: score for number, score in scores.items() if score is not None}
    best = max(told, key=lambda number: (told[number], -number), default=None)
    rounds = max((event["round"] for event in events if event["event"] == "aggregated"), default=0)
    study = started.get("settings", {}).get("study", {})
    for name, value in (
        ("run", started["run"]),
        ("study", f"{study.get('name', '-')}, seed {study.get('seed', '-')}, {started['mode']}"),
        ("state", _state(run, events)),
        ("rounds", f"{rounds} of at most {started['settings']['training']['rounds']}"),
        ("best", "-" if best is None else f"round {best}, validation balanced accuracy {told[best]:.3f}"),
        ("last event", f"{events[-1]['event']} at {events[-1]['time']}"),
    ):
        table.add_row(name, value)
    return table


def _state(run: Path, events: list[dict[str, Any]]) -> str:
    last = next(event for event in reversed(events) if event["event"].startswith("run_"))
    if last["event"] == "run_finished":
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        return f"finished after {result['rounds_run']} rounds, {result['seconds']['total']:.0f} s"
    if last["event"] == "run_failed":
        return f"failed: {last['reason']}"
    return "under way, or stopped without a word: the same command resumes it"


def _sites(events: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2))
    for heading in ("site", "in", "left out", "last update", "last norm", "why left out"):
        table.add_column(heading)
    calls = {event["site"]: event for event in events if event["event"] == "roll_call"}
    for site, call in sorted(calls.items()):
        updates = [
            event
            for event in events
            if event["event"] == "site_update" and event["site"] == site and event["train_loss"] is not None
        ]
        misses = [event for event in events if event["event"] == "site_left_out" and event["site"] == site]
        last = updates[-1] if updates else None
        reason = misses[-1]["reason"] if misses else (call["reason"] or "-")
        table.add_row(
            site,
            f"{len(updates)} rounds" if call["accepted"] else "refused",
            str(len(misses)),
            f"round {last['round']}" if last else "-",
            f"{last['norm']:.3g}" if last else "-",
            reason,
        )
    return table
