"""A live table of rounds, from the events of the journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mmare.study.outcome import headline_of
from server.monitoring.run_state import RunState
from server.store.events import Aggregated, Resumed, RollCall, RunStarted, SiteLeftOut, Validated, name_of
from server.store.selection import NO_ROWS, has_no_rows

if TYPE_CHECKING:
    from server.monitoring.parts import RoundState

__all__ = ["RoundTable", "live_rounds"]

SHOWN: Final = 12  # last rounds that the table shows


class RoundTable:
    """Listens to the journal; `render` draws the last rounds.

    Args:
        rounds: Upper bound of a run's rounds.
        console: Without a terminal, each round prints a line on it.
        brief: Whether to print no such lines.
    """

    def __init__(self, rounds: int, console: Console, *, brief: bool = False) -> None:
        self._console = console
        self._brief = brief
        self._state = RunState(whole=True)
        self._title = "roll call"
        self._warned = False  # that no round can be selected
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of at most {task.total:.0f} rounds"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("roll call", total=rounds)

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """Take an event of the journal."""
        if entry["event"] == name_of(RunStarted):  # once per site that trains alone
            self._state, self._warned = RunState(whole=True), False
        match self._state.take(entry):
            case RunStarted(run=run, site=site, mode=mode):
                self._title = run + (f" ({site} alone)" if site else "")
                self._bar.reset(self._task, description=mode)
            case RollCall(accepted=False, site=site, reason=reason):
                self._console.print(f"[yellow]{site} does not take part: {reason}[/]")
            case Resumed(round=number):
                self._bar.update(self._task, completed=number)
                self._console.print(f"resumed after round {number}")
            case SiteLeftOut(phase=phase, round=number, site=site, reason=reason):
                self._console.print(f"[yellow]{phase or f'round {number}'}: {site} left out: {reason}[/]")
            case Validated(round=number, metrics=metrics):
                if has_no_rows(metrics) and not self._warned:
                    self._warned = True
                    self._console.print(f"[yellow]{NO_ROWS}[/]")
                self._say(self._state.rounds[number])
            case Aggregated(round=number):
                self._bar.update(self._task, completed=number)

    def _say(self, row: RoundState) -> None:
        if row.started and not (self._brief or self._console.is_terminal):
            self._console.print(
                f"round {row.number}: train loss {_number(row.loss)}, validation {_headline(row)} "
                f"{_number(row.score)}, {len(row.updates)} sites, {row.seconds:.2f} s"
            )

    def render(self) -> Group:
        """The table above the progress bar."""
        table = Table(title=self._title, title_justify="left", box=None, padding=(0, 2))
        begun = [row for row in self._state.rounds.values() if row.started]
        score = f"val. {_headline(begun[-1]) if begun else 'score'}"
        for heading in ("round", "train loss", score, "sites in", "left out", "seconds"):
            table.add_column(heading, justify="right" if heading != "left out" else "left")
        for row in begun[-SHOWN:]:
            table.add_row(
                str(row.number),
                _number(row.loss),
                f"[bold]{_number(row.score)}[/] *"
                if row.number == self._state.best_round
                else f"{_number(row.score)}  ",
                str(len(row.updates)),
                ", ".join(each.site for each in row.left_out) or "-",
                f"{row.seconds:.2f}",
            )
        return Group(table, self._bar)


@contextmanager
def live_rounds(rounds: int, console: Console, *, brief: bool = False) -> Iterator[RoundTable]:
    """A table that redraws itself on a terminal, and prints a line per round elsewhere.

    With ``brief`` the table disappears at the end, and rounds print no lines.
    """
    table = RoundTable(rounds, console, brief=brief)
    if not console.is_terminal:
        yield table
        return
    with Live(get_renderable=table.render, console=console, refresh_per_second=4, transient=brief):
        yield table


def _headline(row: RoundState) -> str:
    return headline_of(row.metrics.get("pooled", {})).replace("_", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
