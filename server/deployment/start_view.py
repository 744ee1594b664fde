"""Console output of ``mmare-server start``: a dashboard a run on a terminal, otherwise one line per event."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.live import Live
from rich.text import Text

from mmare.study.outcome import headline_of
from server.monitoring.watch import dashboard
from server.store import events
from server.store.selection import NO_ROWS, has_no_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from rich.console import Console

    from server.monitoring.run_state import RunState
    from server.store.events import Event

__all__ = ["RunView", "StartView", "event_line"]

REDRAW_S: Final = 1.0
QUIET: Final = (events.Aggregated, events.Validated)  # shown by the dashboard instead


class StartView:
    """Shows lines of a coordinator and of its runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, RunState] = {}  # by name of the run
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
        """Print a line with the time, in UTC as in journals and logs."""
        self._console.print(Text(f"{datetime.now(UTC):%H:%M:%S}Z {line}"), soft_wrap=True)

    def run(self, name: str = "") -> RunView:
        """The view of a run; its lines begin with its name, if there is one."""
        return RunView(self, name)

    def take(self, new: Iterable[Event], state: RunState, run: RunView) -> None:
        """Show new events of a journal and the current state of its run."""
        self._states[run.name] = state
        for event in new:
            line = event_line(event)
            if line is not None and (self._live is None or not isinstance(event, QUIET)):
                run.say(line)
        if self._live is not None and time.monotonic() - self._drawn > REDRAW_S:
            self._draw()

    def forget(self, name: str) -> None:
        """Show a run no more; the last one stays until another begins."""
        if len(self._states) > 1:
            self._states.pop(name, None)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        shown = [dashboard(state, time.time()) for state in self._states.values() if state.first is not None]
        if self._live is not None and shown:
            self._live.update(Group(*shown), refresh=True)


@dataclass(frozen=True)
class RunView:
    """Shows lines and events of one run."""

    view: StartView
    name: str

    def say(self, line: str) -> None:
        """Print a line with the time and the run's name."""
        self.view.say(f"{self.name}: {line}" if self.name else line)

    def take(self, new: Iterable[Event], state: RunState) -> None:
        """Show new events of the journal and the current state of the run."""
        self.view.take(new, state, self)


def event_line(event: Event) -> str | None:  # noqa: PLR0911 - one line per event
    """An event in one line, if it is worth one.

    Example:
        >>> event_line(events.SiteLeftOut(round=3, site="ash", reason="late"))
        'round 3: ash left out, late'
        >>> event_line(events.Validated(round=3, metrics={"pooled": {"balanced_accuracy": None, "n": 0}}))
        'round 3: no validation rows: the best round cannot be selected, the last one is kept'
    """
    match event:
        case events.RollCall(site=site, accepted=True, samples=samples, line=line):
            its_line = f", its line has {line}" if line else ""
            return f"roll call: {site} takes part, {samples} training rows{its_line}"
        case events.RollCall(site=site, reason=reason):
            return f"roll call: {site} is refused, {reason}"
        case events.Resumed(round=number):
            return f"resumes after round {number}" if number else "starts over: no round was finished"
        case events.SiteLeftOut(round=number, site=site, reason=reason):
            return f"round {number}: {site} left out, {reason}"
        case events.Aggregated(round=number, seconds=seconds):
            return f"round {number}: {sum(seconds.values()):.1f} s"
        case events.Validated(round=number, metrics=metrics):
            return f"round {number}: {_validation(metrics)}"
        case events.CheckpointDamaged(files=files):
            return f"damaged checkpoints are ignored: {', '.join(files)}"
        case events.RunFailed(reason=reason):
            return f"the attempt failed: {reason}"
        case events.RunFinished(rounds_run=rounds, best_round=best):
            return f"finished after {rounds} rounds, best {best}"
    return None


def _validation(metrics: Mapping[str, Any]) -> str:
    if has_no_rows(metrics):
        return NO_ROWS
    name = headline_of(metrics["pooled"])
    score = metrics["pooled"][name]
    return f"validation {name.replace('_', ' ')} {'not defined' if score is None else f'{score:.3f}'}"
