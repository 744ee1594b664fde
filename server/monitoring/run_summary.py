"""Overview of a run from its journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from server.monitoring.followed_run import read_run
from server.monitoring.watch import NOT_BEGUN, best_round, check_begun
from server.store.events import RunFailed, RunFinished, RunStarted, name_of

if TYPE_CHECKING:
    from pathlib import Path

    from server.monitoring.run_state import RunState

__all__ = ["run_status"]


def run_status(run: Path) -> Group:
    """State, rounds and sites of the run in a folder.

    Raises:
        InputError: If it is not a run folder.
    """
    state = read_run(run)
    if state.first is None:
        check_begun(run)
        return Group(NOT_BEGUN)
    return Group(_summary(state, state.first), "", _sites(state))


def _summary(state: RunState, started: RunStarted) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    rounds = max((row.number for row in state.rounds.values() if row.phases), default=0)
    study = started.settings.get("study", {})
    last = "-" if state.last is None else f"{name_of(type(state.last))} at {state.last.time}"
    for name, value in (
        ("run", started.run),
        ("study", f"{study.get('name', '-')}, seed {study.get('seed', '-')}, {started.mode}"),
        ("state", _state(state)),
        ("rounds", f"{rounds} of at most {state.planned_rounds}"),
        ("best", best_round(state, "validation balanced accuracy")),
        ("last event", last),
    ):
        table.add_row(name, value)
    return table


def _state(state: RunState) -> str:
    match state.end:
        case RunFinished(rounds_run=rounds, seconds=seconds):
            return f"finished after {rounds} rounds, {seconds.get('total', 0.0):.0f} s"
        case RunFailed(reason=reason):
            return f"failed: {reason}"
    return "under way, or killed: the same command resumes it"


def _sites(state: RunState) -> Table:
    table = Table(box=None, padding=(0, 2))
    for heading in ("site", "in", "left out", "last update", "last norm", "why left out"):
        table.add_column(heading)
    for site, call in sorted(state.calls.items()):
        updates = [row.updates[site] for row in state.rounds.values() if site in row.updates]
        misses = [each for each in state.misses if each.site == site]
        last = updates[-1] if updates else None
        table.add_row(
            site,
            f"{len(updates)} rounds" if call.accepted else "refused",
            str(len(misses)),
            f"round {last.round}" if last else "-",
            "-" if last is None or last.norm is None else f"{last.norm:.3g}",
            (misses[-1].reason if misses else call.reason) or "-",
        )
    return table
