"""A run folder that is followed: its journal as it grows, folded into the state of the run."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from server.store.journal_tail import JournalTail

if TYPE_CHECKING:
    from pathlib import Path

    from server.monitoring.run_state import RunState

__all__ = ["FollowedRun"]


class FollowedRun:
    """The state of the run in a folder, also after another run has taken the place of the first.

    Args:
        folder: Run folder.
        new_state: Makes the state of a run that begins.
    """

    def __init__(self, folder: Path, new_state: Callable[[], RunState]) -> None:
        self._folder = folder
        self._new_state = new_state
        self._tail = JournalTail(folder / "rounds.jsonl")
        self._epoch = self._tail.epoch
        self.state = new_state()
        self.taken = 0
        self._odd = 0

    @property
    def backlog(self) -> int:
        """Bytes of the journal that are still to be read."""
        return self._tail.backlog

    @property
    def skipped(self) -> int:
        """Lines that were cut or odd."""
        return self._tail.skipped + self._odd

    def read_on(self) -> bool:
        """Take the next piece of the journal; whether more is waiting."""
        for event in self._tail.read():
            if self._tail.epoch != self._epoch:
                self._epoch, self.state = self._tail.epoch, self._new_state()
            self.taken += 1
            self._odd += not self.state.take(self._completed(event))
        return self._tail.backlog > 0

    def _completed(self, event: dict[str, Any]) -> Mapping[str, Any]:
        """A ``run_started`` with the federation settings, which stand in ``study.toml`` alone."""
        settings = event.get("settings")
        if event["event"] != "run_started" or not isinstance(settings, dict):
            return event
        try:
            study = tomllib.loads((self._folder / "study.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return event
        return {**event, "settings": {**settings, "federation": study.get("federation", {})}}
