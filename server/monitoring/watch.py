"""``mmare-server status --watch``: a dashboard of a running run in the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mmare.errors import InputError
from mmare.study.outcome import headline_of
from server.monitoring.followed_run import FollowedRun
from server.monitoring.parts import SiteState
from server.monitoring.run_alerts import run_alerts
from server.monitoring.run_state import RunState
from server.store.journal import JOURNAL, LOCK

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HISTORY", "NOT_BEGUN", "best_round", "check_begun", "dashboard", "sparkline", "watch_run"]

INTERVAL_S: Final = 1.0
WIDTH: Final = 50  # of a sparkline in characters
HISTORY: Final = 600  # rounds that a sparkline covers
LEFT_OUT_WIDTH: Final = 12  # that fits the longest code
BARS: Final = "▁▂▃▄▅▆▇█"
NOT_BEGUN: Final = "not begun: no hospital has been asked yet"


def watch_run(
    run: Path,
    console: Console,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> None:
    """Show a run until it finishes or fails, or until Ctrl-C; prints only the last view if not on a terminal.

    Raises:
        InputError: If it is not a run folder.
    """
    followed = FollowedRun(run, partial(RunState, history=HISTORY))
    if followed.read_all().first is None:
        check_begun(run)

    def view() -> Group | Text:
        return Text(NOT_BEGUN) if followed.state.first is None else dashboard(followed.state, clock())

    with Live(view(), console=console, auto_refresh=False) as live:
        try:
            while followed.state.active or followed.state.first is None:
                pause(INTERVAL_S)
                followed.read_all()
                live.update(view(), refresh=True)
        except KeyboardInterrupt:
            return


def check_begun(run: Path) -> None:
    """Raise `InputError` for a folder in which no run has begun or is about to."""
    if not (run / LOCK).exists():
        raise InputError(f"{run}: no run here; expected a folder with {JOURNAL}")


def dashboard(state: RunState, now: float) -> Group:
    """State, curves, sites and alerts of a run."""
    return Group(_summary(state, now), "", _sites(state, now), "", _alerts(state, now))


def sparkline(values: Iterable[float], width: int = WIDTH) -> str:
    """A curve in one line: means of equal segments, scaled from the lowest to the highest.

    Example:
        >>> sparkline([0.0, 0.5, 1.0])
        '▁▅█'
        >>> sparkline([2.0, 2.0]), sparkline([])
        ('▁▁', '')
    """
    series = list(values)
    columns = min(width, len(series))
    edges = [column * len(series) // columns for column in range(columns + 1)] if columns else []
    means = [sum(series[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[int((mean - low) * scale + 0.5)] for mean in means)


def _summary(state: RunState, now: float) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    for name, value in (
        ("run", f"{state.study} {state.run}, {state.mode}, {state.info.get('model', '-')}"),
        ("state", _state(state, now)),
        ("rounds", f"{state.round} of at most {state.planned_rounds}"),
        ("sites", _counts(state)),
        ("best", best_round(state, "balanced accuracy")),
        ("bal. accuracy", _curve(state, "score")),
        ("train loss", _curve(state, "loss")),
    ):
        table.add_row(name, Text(value))
    return table


def best_round(state: RunState, measure: str) -> str:
    """The best round so far and its pooled balanced accuracy."""
    if not state.best_round:
        return "-"
    score = "not defined" if state.best_score is None else f"{state.best_score:.3f}"
    return f"round {state.best_round}, {measure} {score}"


def _state(state: RunState, now: float) -> str:
    if state.failed is not None:
        return f"failed: {state.failed}"
    if state.finished:
        return "finished"
    return f"under way, last event {_ago(now - state.last_event)} ago"


def _counts(state: RunState) -> str:
    return (
        f"{len(state.row.updates)} of {len(state.members)} in, {len(state.late)} late, "
        f"{sum(state.refused.values())} refused, {sum(state.not_admitted.values())} not admitted, "
        f"{state.min_sites} needed"
    )


def _curve(state: RunState, name: str) -> str:
    values = [value for _, value in state.curves[name]]
    return f"{sparkline(values)}  {values[-1]:.3f}" if values else "-"


def _sites(state: RunState, now: float) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in ("site", "seen", "samples", "norm", "loss", "bal. acc."):
        table.add_column(heading, justify="left" if heading == "site" else "right", no_wrap=True)
    table.add_column("left out", min_width=LEFT_OUT_WIDTH)
    for name, site in sorted(state.sites.items()):
        table.add_row(
            escape(name),
            _ago(now - site.last_seen) if site.last_seen else "-",
            "-" if site.samples is None else str(site.samples),
            "-" if site.norm is None else f"{site.norm:.3g}",
            "-" if site.train_loss is None else f"{site.train_loss:.3f}",
            _score(site),
            _left_out(site),
        )
    return table


def _score(site: SiteState) -> str:
    validation = site.scores.get("validation", {})
    score = validation.get(headline_of(validation))
    return "-" if score is None else f"{score:.3f}"


def _left_out(site: SiteState) -> str:
    if not site.left_out:
        return "-"
    last = max(site.left_out, key=lambda reason: site.left_out[reason])
    return f"{last}, {site.missed} rounds in a row" if site.missed else f"{last}, but back"


def _alerts(state: RunState, now: float) -> Group | Text:
    alerts = run_alerts(state, now)
    if not alerts:
        return Text(" no alerts", style="green")
    return Group(*(Text(f" {name}: {sentence}", style="bold red") for name, sentence in alerts))


def _ago(seconds: float) -> str:
    """A duration in its largest unit.

    Example:
        >>> _ago(75.0), _ago(7300.0)
        ('1 min', '2 h')
    """
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
