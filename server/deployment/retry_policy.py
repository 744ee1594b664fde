"""Decides what to do next about a run: wait, ask Flower, end an attempt, retry or give up. Pure functions.

A run is a folder, an attempt one Flower run of it. A crash ends an attempt, and the next one resumes from the
last checkpoint. Only attempts without a new checkpoint count towards the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Final

from mmare.errors import Ending, Reason, SiteCode
from server.monitoring.followed_run import FollowedRun
from server.monitoring.run_state import RunState
from server.monitoring.watch import HISTORY
from server.store.events import RollCall, RunFailed
from server.store.journal import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from server.deployment.flower_runs import FlowerRun
    from server.store.events import Event

__all__ = [
    "BAD_INPUT",
    "COMPLETED",
    "Attempt",
    "Decision",
    "Limits",
    "Observation",
    "RetryCounter",
    "RunProgress",
    "Step",
    "decide",
    "is_hopeless",
    "is_permanent",
    "who_is_missing",
]

BAD_INPUT: Final = "[E2] "  # precedes the sentence of a permanent failure in Flower's record of a run
COMPLETED, FAILED, STOPPED = "finished:completed", "finished:failed", "finished:stopped"
LONGEST_PAUSE_S: Final = 60.0
QUIET_ROUNDS: Final = 3.0  # after a restart of SuperLink
_new_state: Final = partial(RunState, history=HISTORY)
_PASSING: Final = (Reason.LATE, Reason.NODE_FAILED, Reason.DUPLICATE, SiteCode.WORKER, SiteCode.LATE)


class Step(StrEnum):
    """What to do next."""

    WAIT = "wait"
    ASK = "ask"  # Flower for the status of the run
    SUBMIT = "submit"
    END = "end"  # this attempt
    DONE = "done"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class Decision:
    """What to do, with the reason if a person should know it."""

    step: Step
    reason: str = ""


@dataclass(frozen=True)
class Limits:
    """Time limits, and how many attempts in a row may bring no new checkpoint.

    Args:
        silent_s: Without a journal entry; must exceed the roll call's silence of up to two deadlines.
        ask_s: Without a journal entry, after which Flower is asked, repeatedly.
        last_s: From the end of the run to that of its ServerApp, which writes the report.
        linger_s: For which a ServerApp may outlive its run at Flower.
        restart_s: Without a journal entry after SuperLink or nginx restarted during a round, which may lose a
            message; or three rounds, if that is longer.
    """

    silent_s: float
    start_s: float = 120.0  # from submission to the ServerApp
    ask_s: float = 30.0
    last_s: float = 180.0
    linger_s: float = 10.0
    restart_s: float = 30.0
    tries: int = 5
    yields: bool = False  # for want of sites, without a new checkpoint, at once: it is taken up again later


@dataclass(frozen=True)
class Attempt:
    """One Flower run of the run; all times here are of one monotonic clock."""

    run: int  # Flower's number
    since: float  # submission
    app_seen: bool = False  # whether its ServerApp was ever running
    status: FlowerRun | None = None  # Flower's last answer
    asked: float = 0.0  # time of it


@dataclass(frozen=True)
class Observation:
    """State of the journal and the processes at a moment."""

    now: float
    app: bool  # whether a ServerApp is running
    finished: bool = False  # by the journal, since submission
    failed: str | None = None  # likewise
    last_write: float = 0.0  # to the journal
    result: bool = False  # whether result.json exists
    restarted_at: float = 0.0  # of SuperLink or nginx during this round; 0 if neither was
    round_s: float = 0.0  # typical duration of a round; 0 if unknown


def decide(attempt: Attempt, seen: Observation, limits: Limits) -> Decision:  # noqa: PLR0911 - one line per case
    """Wait, ask, end with a reason, or done: what to do about a running attempt."""
    quiet = seen.now - max(attempt.since, seen.last_write)
    if seen.finished and seen.result:
        return Decision(Step.WAIT if seen.app and quiet < limits.last_s else Step.DONE)
    if attempt.app_seen and not seen.app:
        return Decision(Step.END, seen.failed or "its ServerApp is gone")
    if attempt.status is not None and attempt.status.status.startswith("finished"):
        lingers = seen.app and seen.now - attempt.asked < limits.linger_s
        return Decision(Step.WAIT) if lingers else Decision(Step.END, ending(attempt.status))
    if not attempt.app_seen and seen.now - attempt.since > limits.start_s:
        return Decision(Step.END, f"no ServerApp started within {limits.start_s:.0f} s")
    since_restart = seen.now - max(seen.restarted_at, seen.last_write)
    patience = max(limits.restart_s, QUIET_ROUNDS * seen.round_s)
    if seen.restarted_at and seen.round_s and since_restart > patience:
        return Decision(Step.END, "a message was lost when SuperLink or nginx restarted")
    if quiet > limits.silent_s:
        return Decision(Step.END, f"nothing was written to the journal for {quiet:.0f} s")
    if quiet > limits.ask_s and seen.now - max(attempt.asked, attempt.since) > limits.ask_s:
        return Decision(Step.ASK)
    return Decision(Step.WAIT)


def ending(status: FlowerRun) -> str:
    """Why a run ended according to Flower, in one line."""
    if status.status == STOPPED:
        return "it was stopped with flwr stop"
    return status.details or status.status


def is_permanent(status: FlowerRun) -> bool:
    """Whether a run ended for a reason that a retry cannot change."""
    return BAD_INPUT in status.details


class RetryCounter:
    """Counts consecutive attempts without a new checkpoint, at most ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.failed_attempts = 0

    def after(self, reason: str, status: FlowerRun | None, *, progress: bool) -> Decision:
        """Submit again or give up after an attempt that ended.

        Args:
            reason: Why it ended.
            status: Flower's; ``None`` if the attempt was still running or Flower was not asked.
            progress: Whether it made a new checkpoint.
        """
        if status is not None and is_permanent(status):
            return Decision(Step.GIVE_UP, status.details.split(BAD_INPUT, 1)[1])
        if status is not None and status.status == STOPPED:
            return Decision(Step.GIVE_UP, f"{ending(status)}; the same command resumes the run")
        self.failed_attempts = 0 if progress else self.failed_attempts + 1
        if self.failed_attempts >= self._most:
            return Decision(
                Step.GIVE_UP,
                f"gave up after {self.failed_attempts} attempts without a new checkpoint, the last one: "
                f"{reason}; the same command resumes the run",
            )
        return Decision(Step.SUBMIT, reason)

    @property
    def pause_s(self) -> float:
        """Before the next attempt: none after progress, then 1 s, 2 s, 4 s, … up to a minute."""
        return min(2.0 ** (self.failed_attempts - 1), LONGEST_PAUSE_S) if self.failed_attempts else 0.0


class RunProgress:
    """The running attempt according to the run's journals; mode local has one more journal per site.

    Args:
        out: Run folder.
        clock: Monotonic seconds.
    """

    def __init__(self, out: Path, clock: Callable[[], float]) -> None:
        self._out = out
        self._clock = clock
        self._events: list[Event] = []  # of the current `read`
        self._main = FollowedRun(out, _new_state, self._events.append)
        self._runs = {out: self._main}
        self.last_write = 0.0  # as far as noticed by `read`
        self.round_since = inf  # start of the current round
        self.calls: dict[str, RollCall] = {}  # of the attempt, by site
        self.read()
        self.begin()

    def begin(self) -> None:
        """Forget how earlier attempts ended; called before a submission."""
        self._starts = self._main.epoch, self._main.state.starts
        self._saved = {folder: (run.epoch, run.state.saved) for folder, run in self._runs.items()}
        self.round_since = inf
        self.calls = {}

    @property
    def state(self) -> RunState:
        """State of the run's main journal."""
        return self._main.state

    @property
    def begun(self) -> bool:
        """Whether the attempt has started its journal."""
        return (self._main.epoch, self.state.starts) != self._starts

    @property
    def finished(self) -> bool:
        """Whether the attempt finished the run."""
        return self.begun and self.state.finished

    @property
    def failed(self) -> str | None:
        """Why the attempt failed, if it did."""
        end = self.state.end
        return end.reason if self.begun and isinstance(end, RunFailed) else None

    @property
    def lacks_sites(self) -> bool:
        """Whether the attempt failed because too few sites took part or answered."""
        return self.begun and self.state.failed is Ending.QUORUM

    @property
    def new_checkpoint(self) -> bool:
        """Whether the attempt saved a round for the first time."""
        for folder, run in self._runs.items():
            epoch, saved = self._saved.get(folder, (run.epoch, 0))
            if run.state.saved > (saved if epoch == run.epoch else 0):
                return True
        return False

    @property
    def round_s(self) -> float:
        """Median duration of the last rounds; 0 before the first."""
        durations = [seconds for run in self._runs.values() for seconds in run.state.durations]
        return median(durations) if durations else 0.0

    def read(self) -> list[Event]:
        """Read what was written since the last call; returns the events of the main journal."""
        self._events.clear()
        for path in self._out.glob(f"local/*/{JOURNAL}"):
            if path.parent not in self._runs:
                self._runs[path.parent] = FollowedRun(path.parent, _new_state)
        for run in self._runs.values():
            taken, row = run.taken, run.state.row
            state = run.read_all()
            if run.taken > taken:
                self.last_write = self._clock()
            if state.row is not row and state.row.started:
                self.round_since = self.last_write
        self.calls |= {event.site: event for event in self._events if isinstance(event, RollCall)}
        return list(self._events)


def who_is_missing(admitted: Iterable[str], calls: Mapping[str, RollCall]) -> str:
    """Which admitted sites do not take part and why, in words; empty if all do.

    Example:
        >>> call = RollCall(site="ash", accepted=False, reason="refused: S102")
        >>> who_is_missing(["ash", "birch"], {"ash": call})
        'ash: refused: S102; birch: not connected'
    """
    missing = {site: calls.get(site) for site in admitted}
    return "; ".join(
        f"{site}: {'not connected' if call is None else call.reason}"
        for site, call in missing.items()
        if call is None or not call.accepted
    )


def is_hopeless(admitted: Collection[str], calls: Mapping[str, RollCall], min_sites: int) -> bool:
    """Whether so many sites refuse that a run cannot have enough, whoever else comes."""
    for_good = [call for call in calls.values() if not call.accepted and call.code not in _PASSING]
    return bool(for_good) and len(admitted) - len(for_good) < min_sites
