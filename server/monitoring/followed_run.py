"""Follows a run folder: folds its growing journal into the state of the run."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mmare.study.study import STUDY_FILE
from server.monitoring.run_state import RunState
from server.store.journal import JOURNAL
from server.store.journal_tail import JournalTail

if TYPE_CHECKING:
    from pathlib import Path

    from server.store.events import Event

__all__ = ["FollowedRun", "read_run"]


class FollowedRun:
    """The state of the run in a folder, even after another run replaced it.

    Args:
        new_state: Makes the initial state of a run.
        listener: Called with every event after the state took it.
    """

    def __init__(
        self,
        folder: Path,
        new_state: Callable[[], RunState],
        listener: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._new_state = new_state
        self._listener = listener
        self._tail = JournalTail(folder / JOURNAL)
        self.epoch = self._tail.epoch  # increases when another run replaces this one
        self.state = new_state()
        self.taken = 0  # lines
        self._invalid = 0

    @property
    def backlog(self) -> int:
        """Bytes of the journal left to read."""
        return self._tail.backlog

    @property
    def skipped(self) -> int:
        """Number of damaged or invalid lines."""
        return self._tail.skipped + self._invalid

    def read_on(self) -> bool:
        """Read the next chunk of the journal; returns whether there is more."""
        for entry in self._tail.read():
            if self._tail.epoch != self.epoch:
                self.epoch, self.state = self._tail.epoch, self._new_state()
            self.taken += 1
            event = self.state.take(self._completed(entry))
            if event is None:
                self._invalid += 1
            else:
                self._listener(event)
        return self._tail.backlog > 0

    def read_all(self) -> RunState:
        """Read the rest of the journal and return the state."""
        while self.read_on():
            pass
        return self.state

    def _completed(self, entry: dict[str, Any]) -> Mapping[str, Any]:
        """Add the settings of ``study.toml`` to a ``run_started`` of an earlier version."""
        if entry["event"] != "run_started" or "federation" in entry:
            return entry
        try:
            study = tomllib.loads((self._folder / STUDY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return entry
        settings = entry.get("settings")
        own = settings if isinstance(settings, dict) else {}
        return {**entry, "settings": {**study, **own}, "federation": study.get("federation", {})}


def read_run(folder: Path) -> RunState:
    """The complete state of a run folder; initial if it has no journal.

    Example:
        >>> from pathlib import Path
        >>> read_run(Path("/nonexistent")).first is None
        True
    """
    return FollowedRun(folder, partial(RunState, whole=True)).read_all()
