"""Progress of a grid: cells done, time left, and state of the running cells."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from mmare.study.outcome import headline_of

if TYPE_CHECKING:
    from simulation.grid.plan import Cell

__all__ = ["Estimate", "GridProgress", "duration", "live_grid"]

_KINDS = (("data", "label", "ablation", "strategy", "mode"), ("model", "mode"), ("model",), ())


class Estimate:
    """Predict how long a cell takes from finished ones: alike if any, else of the same model, else all."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[Any, ...], list[float]] = defaultdict(list)

    def add(self, settings: Mapping[str, Any], seconds: float) -> None:
        """Add a finished cell."""
        for kind in _KINDS:
            self._seconds[kind, *(settings.get(key) for key in kind)].append(seconds)

    def of(self, settings: Mapping[str, Any]) -> float | None:
        """Seconds that such a cell takes; ``None`` if no cell has finished yet."""
        for kind in _KINDS:
            found = self._seconds.get((kind, *(settings[key] for key in kind)))
            if found:
                return sum(found) / len(found)
        return None

    def left(self, waiting: Iterable[Cell], running: Mapping[Cell, float], jobs: int) -> float | None:
        """Seconds until all cells have finished, ``jobs`` at a time; ``None`` if none has finished yet.

        ``running`` has the seconds that each cell took so far.
        """
        seconds = [self.of(cell.settings) for cell in waiting]
        for cell, so_far in running.items():
            whole = self.of(cell.settings)
            seconds.append(None if whole is None else max(whole - so_far, 0.0))
        known = [value for value in seconds if value is not None]
        return sum(known) / jobs if len(known) == len(seconds) else None


class GridProgress:
    """Tracks cells; `render` draws the state on a terminal, elsewhere each finished cell is a line.

    Args:
        cells: Number of cells, including those done before.
        done: Cells done before.
        estimate: Has those already.
        jobs: Cells that run at once.
        console: Where lines go.
    """

    def __init__(self, cells: int, done: int, estimate: Estimate, jobs: int, console: Console) -> None:
        self._console = console
        self._estimate = estimate
        self._jobs = jobs
        self._waiting: list[Cell] = []
        self._running: dict[Cell, tuple[float, str]] = {}
        self._bar = Progress(
            TextColumn("cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self._task = self._bar.add_task("", total=cells, completed=done)

    def queue(self, cells: Iterable[Cell]) -> None:
        """Set the cells that are still to be run."""
        self._waiting = list(cells)

    def begin(self, cell: Cell) -> None:
        """A worker has started on a cell."""
        self._waiting = [other for other in self._waiting if other is not cell]
        self._running[cell] = (time.monotonic(), "")

    def say(self, cell: Cell, text: str) -> None:
        """Set the progress text of a cell."""
        began, _ = self._running.get(cell, (time.monotonic(), ""))
        self._running[cell] = (began, text)

    def pause(self, cell: Cell) -> None:
        """A cell was checked; it is not done yet."""
        self._running.pop(cell, None)

    def end(self, cell: Cell, entry: Mapping[str, Any] | None) -> None:
        """A cell has ended, with a line of results or (``None``) without."""
        self._running.pop(cell, None)
        if entry is not None:
            self._estimate.add(cell.settings, entry["seconds"])
        self._bar.advance(self._task)
        if not self._console.is_terminal:
            outcome = "failed" if entry is None else f"{_score(entry['result'])}{entry['seconds']:.1f} s"
            left = self._left()
            task = self._bar.tasks[0]
            self._console.print(
                f"{task.completed:.0f} of {task.total:.0f}: {escape(cell.words)}: {outcome}"
                + (f"; {left}" if left else ""),
                highlight=False,
                soft_wrap=True,
            )

    def render(self) -> Group:
        """The bar, and a line per running cell."""
        self._bar.update(self._task, description=self._left())
        now = time.monotonic()
        lines = [
            Text(f"  {cell.words}  {text}  {duration(now - began)}", overflow="ellipsis", no_wrap=True)
            for cell, (began, text) in self._running.items()
        ]
        return Group(self._bar, *lines)

    def _left(self) -> str:
        now = time.monotonic()
        running = {cell: now - began for cell, (began, _) in self._running.items()}
        if not self._waiting and not running:
            return ""
        seconds = self._estimate.left(self._waiting, running, self._jobs)
        return "" if seconds is None else f"about {duration(seconds)} left"


@contextmanager
def live_grid(progress: GridProgress, console: Console) -> Iterator[None]:
    """Keep the progress redrawn on a terminal."""
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=progress.render, console=console, refresh_per_second=2):
        yield


def duration(seconds: float) -> str:
    """Format seconds for people.

    Example:
        >>> duration(42), duration(150), duration(9000)
        ('42 s', '2 min', '2 h 30 min')
    """
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.0f} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _score(result: Mapping[str, Any]) -> str:
    """The headline of a result; sites that trained alone have none."""
    pooled = result["metrics"]["test"]["pooled"] if "metrics" in result else {}
    name = headline_of(pooled)
    value = pooled.get(name)
    return "" if value is None else f"{name.replace('_', ' ')} {value:.3f}, "
