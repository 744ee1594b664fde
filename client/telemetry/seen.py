"""What a worker has done since it started, for its status and its metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mmare.host.metric_labels import Names, one_word
from mmare.wire.messages import Update

if TYPE_CHECKING:
    from client.privacy.release_rules import Answer
    from mmare.study.study import Study
    from mmare.wire.messages import Request

__all__ = ["Observer", "RoundWatch", "WorkerActivity", "unobserved"]

MOST_STUDIES: Final = 100

Observer = Callable[["Study", "Request", "Answer"], None]


def unobserved(_study: Study, _request: Request, _answer: Answer) -> None:
    """The default observer: does nothing."""


@dataclass
class WorkerActivity:
    """Message counters. One thread at a time handles messages; any thread may read."""

    began: float = field(default_factory=time.monotonic)  # start of the worker, monotonic clock
    started: float = field(default_factory=time.time)  # the same in seconds since the epoch
    messages: int = 0
    last_contact: float | None = None  # of the last message, seconds since the epoch
    _done_s: float = 0.0  # spent on finished messages
    _since: float | None = None  # start of the current one
    _change: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self) -> None:
        """Start of work on a message."""
        with self._change:
            self._since = time.monotonic()

    def end(self) -> None:
        """The message was answered or abandoned."""
        with self._change:  # a read in between would count the message twice
            self._done_s, self._since = self._busy(), None

    @property
    def busy_for_s(self) -> float | None:
        """Seconds spent on the current message, if there is one."""
        since = self._since
        return None if since is None else time.monotonic() - since

    @property
    def busy_s(self) -> float:
        """Seconds of work since the start, the current message included."""
        with self._change:
            return self._busy()

    def _busy(self) -> float:
        return self._done_s if self._since is None else self._done_s + time.monotonic() - self._since


class RoundWatch:
    """An observer of phase durations, train losses and whether a run is open."""

    def __init__(self, duration: Callable[[str, str, float], None]) -> None:
        self._duration = duration  # called with study, phase, seconds
        self._studies = Names(MOST_STUDIES)
        self._over = ""  # the last run that ended
        self.losses: dict[str, float] = {}
        self.run_open = False
        self.deadline_s: float | None = None

    def __call__(self, study: Study, request: Request, answer: Answer) -> None:
        """Update from an answer."""
        if request.final:
            self._over = request.run
        self.run_open = request.run != self._over  # comparisons may still follow the end of a run
        self.deadline_s = study.federation.deadline_s
        if not isinstance(answer, Update):
            return
        name = self._studies(one_word(study.name))
        if answer.evaluations:
            self._duration(name, "evaluate", answer.seconds["evaluate"])
        if answer.train_loss is not None:
            self._duration(name, "train", answer.seconds["train"])
            self.losses[name] = answer.train_loss
