"""What to do next about a run: wait, ask, end an attempt, try again or give up. No process is touched here.

A run is the folder; an attempt is one Flower run of it. A crash ends an attempt, and the next one goes on
from the last checkpoint. Attempts that bring a new checkpoint are free, the others are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Final

from server.monitoring.followed_run import FollowedRun
from server.monitoring.run_state import RunState
from server.monitoring.watch import HISTORY
from server.store.events import RunFailed
from server.store.journal import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.deployment.flower_runs import FlowerRun
    from server.store.events import Event

__all__ = [
    "BAD_INPUT",
    "COMPLETED",
    "Attempt",
    "Decision",
    "Limits",
    "RunProgress",
    "Seen",
    "Step",
    "Tries",
    "decide",
    "is_permanent",
]

BAD_INPUT: Final = "[E2] "  # in Flower's record of a run, before the sentence: the same next time

COMPLETED, FAILED, STOPPED = "finished:completed", "finished:failed", "finished:stopped"
LONGEST_PAUSE_S: Final = 60.0
ROUNDS_OF_CALM: Final = 3.0
_new_state: Final = partial(RunState, history=HISTORY)


class Step(StrEnum):
    """What to do."""

    WAIT = "wait"
    ASK = "ask"  # Flower, how the run is doing
    SUBMIT = "submit"
    END = "end"  # this attempt, whatever is left of it
    DONE = "done"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class Decision:
    """What to do, and why where a person should know."""

    step: Step
    reason: str = ""


@dataclass(frozen=True)
class Limits:
    """How long something may take before it counts as gone wrong.

    Args:
        silent_s: Without a word in the journal. Longer than the roll call may be silent: two deadlines.
        start_s: From submitting a run to its ServerApp.
        ask_s: Without a word in the journal, after which Flower is asked, and again.
        last_s: From the end of a run to that of its ServerApp, which writes the report.
        lingers_s: Of a ServerApp whose run Flower holds to be over.
        shaken_s: Without a word once SuperLink or the door was started again in the middle of a round, which
            may have lost a message; or three rounds, if that is longer.
        tries: Attempts in a row without a new checkpoint.
    """

    silent_s: float
    start_s: float = 120.0
    ask_s: float = 30.0
    last_s: float = 180.0
    lingers_s: float = 10.0
    shaken_s: float = 30.0
    tries: int = 5


@dataclass(frozen=True)
class Attempt:
    """One Flower run of the run.

    Args:
        run: Flower's number of it.
        since: Submitted at; of the same clock as every time here.
        app_seen: Whether its ServerApp has been seen to live.
        status: What Flower said last.
        asked: When it was asked last.
    """

    run: int
    since: float
    app_seen: bool = False
    status: FlowerRun | None = None
    asked: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What there is at a moment.

    Args:
        now: The moment.
        app: Whether a ServerApp lives.
        finished: Whether the journal says so, since the attempt was submitted.
        failed: What the journal says of a failure, since then.
        word: When the journal was last written to.
        result: Whether the run's result is there.
        shaken: When SuperLink or the door was last started again, in the round under way; 0 if it was not.
        round_s: How long a round of this run takes; 0 where none has been seen.
    """

    now: float
    app: bool
    finished: bool = False
    failed: str | None = None
    word: float = 0.0
    result: bool = False
    shaken: float = 0.0
    round_s: float = 0.0


def decide(attempt: Attempt, seen: Seen, limits: Limits) -> Decision:  # noqa: PLR0911 - one line per case
    """What to do about an attempt that is under way.

    Args:
        attempt: Which.
        seen: The journal, the processes.
        limits: Of patience.

    Returns:
        `Step.WAIT`, `Step.ASK`, `Step.END` with what ended it, or `Step.DONE`.
    """
    quiet = seen.now - max(attempt.since, seen.word)
    if seen.finished and seen.result:
        return Decision(Step.WAIT if seen.app and quiet < limits.last_s else Step.DONE)
    if attempt.app_seen and not seen.app:
        return Decision(Step.END, seen.failed or "its ServerApp is gone")
    if attempt.status is not None and attempt.status.status.startswith("finished"):
        lingers = seen.app and seen.now - attempt.asked < limits.lingers_s
        return Decision(Step.WAIT) if lingers else Decision(Step.END, ending(attempt.status))
    if not attempt.app_seen and seen.now - attempt.since > limits.start_s:
        return Decision(Step.END, f"no ServerApp started within {limits.start_s:.0f} s")
    calm = seen.now - max(seen.shaken, seen.word)
    if seen.shaken and seen.round_s and calm > max(limits.shaken_s, ROUNDS_OF_CALM * seen.round_s):
        return Decision(Step.END, "a message was lost when SuperLink or its door was started again")
    if quiet > limits.silent_s:
        return Decision(Step.END, f"nothing was written to the journal for {quiet:.0f} s")
    if quiet > limits.ask_s and seen.now - max(attempt.asked, attempt.since) > limits.ask_s:
        return Decision(Step.ASK)
    return Decision(Step.WAIT)


def ending(status: FlowerRun) -> str:
    """What Flower says of a run that is over, in one line."""
    if status.status == STOPPED:
        return "it was stopped with flwr stop"
    return status.details or status.status


def is_permanent(status: FlowerRun) -> bool:
    """Whether a run ended for a reason that will be the same next time."""
    return BAD_INPUT in status.details


class Tries:
    """Counts attempts that brought nothing.

    Args:
        most: In a row.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.in_vain = 0

    def after(self, reason: str, status: FlowerRun | None, *, progress: bool) -> Decision:
        """What follows an attempt that ended.

        Args:
            reason: Why it ended.
            status: What Flower says of it now; nothing where it was still running, or Flower was not asked.
            progress: Whether there is a checkpoint that was not there before.

        Returns:
            `Step.SUBMIT` with the reason, or `Step.GIVE_UP` with a sentence.
        """
        if status is not None and is_permanent(status):
            return Decision(Step.GIVE_UP, status.details.split(BAD_INPUT, 1)[1])
        if status is not None and status.status == STOPPED:
            return Decision(Step.GIVE_UP, f"{ending(status)}; the same command resumes the run")
        self.in_vain = 0 if progress else self.in_vain + 1
        if self.in_vain >= self._most:
            return Decision(
                Step.GIVE_UP,
                f"given up after {self.in_vain} attempts without a new checkpoint, the last one: {reason}; "
                "the same command resumes the run",
            )
        return Decision(Step.SUBMIT, reason)

    @property
    def pause_s(self) -> float:
        """Before the next attempt: none after progress, then 1 s, 2 s, 4 s, … up to a minute."""
        return min(2.0 ** (self.in_vain - 1), LONGEST_PAUSE_S) if self.in_vain else 0.0


class RunProgress:
    """What the journals of a run say of the attempt under way; mode local has one more per site.

    Args:
        out: Run folder.
        clock: The moment.
    """

    def __init__(self, out: Path, clock: Callable[[], float]) -> None:
        self._out = out
        self._clock = clock
        self._heard: list[Event] = []
        self._main = FollowedRun(out, _new_state, self._heard.append)
        self._runs = {out: self._main}
        self.word = 0.0  # when something was last read
        self.round_since = inf  # when the round under way was begun
        self.read()
        self.begin()

    def begin(self) -> None:
        """An attempt is about to be submitted: forget how earlier ones ended."""
        self._starts = self._main.epoch, self._main.state.starts
        self._saved = {folder: (run.epoch, run.state.saved) for folder, run in self._runs.items()}
        self.round_since = inf

    @property
    def state(self) -> RunState:
        """What the run's own journal says."""
        return self._main.state

    @property
    def begun(self) -> bool:
        """Whether the attempt's ServerApp has begun."""
        return (self._main.epoch, self.state.starts) != self._starts

    @property
    def finished(self) -> bool:
        """Whether the attempt has reached the end."""
        return self.begun and self.state.finished

    @property
    def failed(self) -> str | None:
        """What the attempt says of its failure."""
        end = self.state.end
        return end.reason if self.begun and isinstance(end, RunFailed) else None

    @property
    def new_checkpoint(self) -> bool:
        """Whether the attempt has brought a round to disk that was not there before."""
        for folder, run in self._runs.items():
            epoch, saved = self._saved.get(folder, (run.epoch, 0))
            if run.state.saved > (saved if epoch == run.epoch else 0):
                return True
        return False

    @property
    def round_s(self) -> float:
        """How long a round takes, by the last ones; 0 before the first."""
        durations = [seconds for run in self._runs.values() for seconds in run.state.durations]
        return median(durations) if durations else 0.0

    def read(self) -> list[Event]:
        """Take in what was written since the last look; gives the events of the run's own journal."""
        self._heard.clear()
        for path in self._out.glob(f"local/*/{JOURNAL}"):
            if path.parent not in self._runs:
                self._runs[path.parent] = FollowedRun(path.parent, _new_state)
        for run in self._runs.values():
            taken, row = run.taken, run.state.row
            state = run.read_all()
            if run.taken > taken:
                self.word = self._clock()
            if state.row is not row and state.row.started:
                self.round_since = self.word
        return list(self._heard)
