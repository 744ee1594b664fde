"""A live table of rounds: what the journal says, as it is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["RoundTable", "live_rounds"]

SHOWN: Final = 12  # rounds that the table keeps in sight


@dataclass
class _Row:
    """What is known of one round so far."""

    number: int
    losses: list[tuple[int, float]] = field(default_factory=list)
    sites: int = 0
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0
    score: float | None = None

    @property
    def loss(self) -> float | None:
        """Train loss over the sites' samples."""
        samples = sum(count for count, _ in self.losses)
        return sum(count * loss for count, loss in self.losses) / samples if samples else None


class RoundTable:
    """Listens to journal events; `render` draws the last rounds.

    Args:
        rounds: Upper bound of a run's rounds.
        console: Where lines go while the output is no terminal.
    """

    def __init__(self, rounds: int, console: Console) -> None:
        self._console = console
        self._rows: deque[_Row] = deque(maxlen=SHOWN)
        self._best: tuple[float, int] | None = None
        self._title = "roll call"
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of at most {task.total:.0f} rounds"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("roll call", total=rounds)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event of the journal."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def render(self) -> Group:
        """The table and the bar under it."""
        table = Table(title=self._title, title_justify="left", box=None, padding=(0, 2))
        for heading in ("round", "train loss", "val. bal. acc.", "sites in", "left out", "seconds"):
            table.add_column(heading, justify="right" if heading != "left out" else "left")
        for row in self._rows:
            best = self._best is not None and self._best[1] == row.number
            table.add_row(
                str(row.number),
                _number(row.loss),
                f"[bold]{_number(row.score)}[/] *" if best else f"{_number(row.score)}  ",
                str(row.sites),
                ", ".join(row.left_out) or "-",
                f"{row.seconds:.2f}",
            )
        return Group(table, self._bar)

    def _row(self, number: int) -> _Row | None:
        return next((row for row in self._rows if row.number == number), None)

    def _on_run_started(self, event: Mapping[str, Any]) -> None:
        self._title = f"{event['run']}" + (f" ({event['site']} alone)" if "site" in event else "")
        self._rows.clear()
        self._best = None
        self._bar.reset(self._task, description=str(event["mode"]))

    def _on_roll_call(self, event: Mapping[str, Any]) -> None:
        if not event["accepted"]:
            self._console.print(f"[yellow]{event['site']} does not take part: {event['reason']}[/]")

    def _on_resumed(self, event: Mapping[str, Any]) -> None:
        self._bar.update(self._task, completed=event["round"])
        self._console.print(f"resumed after round {event['round']}")

    def _on_round_started(self, event: Mapping[str, Any]) -> None:
        self._rows.append(_Row(event["round"]))

    def _on_site_update(self, event: Mapping[str, Any]) -> None:
        row = self._row(event["round"])
        if row is not None and event["train_loss"] is not None:
            row.sites += 1
            row.losses.append((event["samples"], event["train_loss"]))

    def _on_site_left_out(self, event: Mapping[str, Any]) -> None:
        row = None if "phase" in event else self._row(event["round"])
        if row is not None:
            row.left_out.append(event["site"])
        when = event.get("phase") or f"round {event['round']}"
        self._console.print(f"[yellow]{when}: {event['site']} left out: {event['reason']}[/]")

    def _on_validated(self, event: Mapping[str, Any]) -> None:
        score = event["metrics"]["pooled"]["balanced_accuracy"]
        row = self._row(event["round"])
        if row is not None:
            row.score = score
            if not self._console.is_terminal:
                self._console.print(
                    f"round {row.number}: train loss {_number(row.loss)}, validation balanced accuracy "
                    f"{_number(score)}, {row.sites} sites, {row.seconds:.2f} s"
                )
        if score is not None and (self._best is None or score > self._best[0]):
            self._best = (score, event["round"])

    def _on_aggregated(self, event: Mapping[str, Any]) -> None:
        row = self._row(event["round"])
        if row is not None:
            row.seconds = sum(event["seconds"].values())
        self._bar.update(self._task, completed=event["round"])


@contextmanager
def live_rounds(rounds: int, console: Console) -> Iterator[RoundTable]:
    """A table that redraws itself on a terminal, and prints a line a round elsewhere."""
    table = RoundTable(rounds, console)
    if not console.is_terminal:
        yield table
        return
    with Live(get_renderable=table.render, console=console, refresh_per_second=4):
        yield table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
