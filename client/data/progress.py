"""How long work on scans shows itself: how many of how many, how fast, how long still."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task

__all__ = ["scan_progress"]


class _Rate(ProgressColumn):
    """Scans per second."""

    def render(self, task: Task) -> Text:
        return Text("-" if task.speed is None else f"{task.speed:.2f}/s")


def scan_progress(console: Console) -> Progress:
    """A progress bar over scans; nothing where the output is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
