"""What a worker has seen and done since it started, kept for whoever looks: its status and its metrics."""

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

__all__ = ["Observer", "RoundWatch", "Seen", "unobserved"]

MOST_STUDIES: Final = 100

Observer = Callable[["Study", "Request", "Answer"], None]  # of an approved study, and of what it was asked


def unobserved(_study: Study, _request: Request, _answer: Answer) -> None:
    """The observer of a service that nobody watches."""


@dataclass
class Seen:
    """Messages as they came. One thread at a time takes them up; any may look.

    Args:
        began: When the worker was started, of the monotonic clock.
        started: The same in seconds since the epoch.
        messages: How many came.
        last_contact: When the last one came, in seconds since the epoch.
    """

    began: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.time)
    messages: int = 0
    last_contact: float | None = None
    _done_s: float = 0.0  # at work on messages that are done
    _since: float | None = None  # when the one in hand was taken up
    _change: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self) -> None:
        """A message is taken up."""
        with self._change:
            self._since = time.monotonic()

    def end(self) -> None:
        """It is answered, or given up."""
        with self._change:  # a look in between would tell more than there was, and the next one less
            self._done_s, self._since = self._busy(), None

    @property
    def busy_for_s(self) -> float | None:
        """Seconds at work on the message in hand, if there is one."""
        since = self._since
        return None if since is None else time.monotonic() - since

    @property
    def busy_s(self) -> float:
        """Seconds at work since the start, on the message in hand too."""
        with self._change:
            return self._busy()

    def _busy(self) -> float:
        return self._done_s if self._since is None else self._done_s + time.monotonic() - self._since


class RoundWatch:
    """An observer that keeps what rounds cost, how training does, and whether a run is under way.

    Args:
        duration: Told of the seconds of a phase of a study.
    """

    def __init__(self, duration: Callable[[str, str, float], None]) -> None:
        self._duration = duration
        self._studies = Names(MOST_STUDIES)
        self._over = ""  # the run that ended last
        self.losses: dict[str, float] = {}
        self.run_open = False
        self.deadline_s: float | None = None

    def __call__(self, study: Study, request: Request, answer: Answer) -> None:
        """Take an answer into account."""
        if request.final:
            self._over = request.run
        self.run_open = request.run != self._over  # two models may still be compared when a run is over
        self.deadline_s = study.federation.deadline_s
        if not isinstance(answer, Update):
            return
        name = self._studies(one_word(study.name))
        if answer.evaluations:
            self._duration(name, "evaluate", answer.seconds["evaluate"])
        if answer.train_loss is not None:
            self._duration(name, "train", answer.seconds["train"])
            self.losses[name] = answer.train_loss
