"""What ``mmare-server start`` shows: the run as a dashboard on a terminal, a line per event elsewhere."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.live import Live
from rich.text import Text

from server.monitoring.followed_run import FollowedRun
from server.monitoring.run_state import RunState
from server.monitoring.watch import dashboard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

    from rich.console import Console

__all__ = ["StartView", "event_line"]

REDRAW_S: Final = 1.0
HISTORY: Final = 600  # rounds that the dashboard's curves show


class StartView:
    """Takes lines and events of a run.

    Args:
        console: Where to.
        out: Run folder.
    """

    def __init__(self, console: Console, out: Path) -> None:
        self._console = console
        self._followed = FollowedRun(out, lambda: RunState(min_count=0, history=HISTORY))
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._drawn = 0.0

    def __enter__(self) -> StartView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._draw()
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line with the time."""
        now = datetime.now().astimezone().strftime("%H:%M:%S")
        self._console.print(Text(f"{now} {line}"), soft_wrap=True)

    def take(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Show what has just been written to the journal."""
        for event in events:
            line = event_line(event)
            if line is not None and (self._live is None or event["event"] not in ("aggregated", "validated")):
                self.say(line)
        if self._live is not None and time.monotonic() - self._drawn > REDRAW_S:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        while self._followed.read_on():
            pass
        if self._live is not None and self._followed.state.started:
            self._live.update(dashboard(self._followed.state, time.time()), refresh=True)


def event_line(event: Mapping[str, Any]) -> str | None:  # noqa: PLR0911 - one line per event
    """An event of a journal in one line, or nothing where it is told by others.

    Example:
        >>> event_line({"event": "site_left_out", "round": 3, "site": "ash", "reason": "late"})
        'round 3: ash left out, late'
    """
    number = event.get("round")
    match event["event"]:
        case "roll_call":
            said = f"{event.get('samples')} training rows" if event["accepted"] else event.get("reason")
            return f"roll call: {event['site']} {'takes part' if event['accepted'] else 'is refused'}, {said}"
        case "resumed":
            return f"goes on after round {number}" if number else "begins again: no round was finished"
        case "site_left_out":
            return f"round {number}: {event['site']} left out, {event['reason']}"
        case "aggregated":
            return f"round {number}: {sum(event['seconds'].values()):.1f} s"
        case "validated":
            score = event["metrics"]["pooled"]["balanced_accuracy"]
            told = "not defined" if score is None else f"{score:.3f}"
            return f"round {number}: validation balanced accuracy {told}"
        case "checkpoint_damaged":
            return f"damaged checkpoints are passed over: {', '.join(event['files'])}"
        case "run_failed":
            return f"the attempt failed: {event['reason']}"
        case "run_finished":
            return f"finished after {event['rounds_run']} rounds, best {event['best_round']}"
    return None
