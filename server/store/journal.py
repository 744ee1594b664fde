"""The run journal: append-only, one JSON object a line, readable after any crash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["Journal", "Listener", "read_journal"]

Listener = Callable[[Mapping[str, Any]], None]


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The events of a journal that still count, in order.

    A line that was cut is skipped. Where a run was resumed from a round, what was written of later rounds
    before that does not count.

    Example:
        >>> from pathlib import Path
        >>> read_journal(Path("/nonexistent/rounds.jsonl"))
        []
    """
    if not path.exists():
        return []
    events: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or "event" not in event:
            continue
        resumed = event.get("resumed_from")
        if resumed is not None:
            events = [other for other in events if other.get("round", 0) <= resumed]
        events.append(event)
    return events


class Journal:
    """Writes events, a line each; one that a crash has cut is skipped by readers and taken away on a resume.

    Args:
        path: The file.
        run: Name of the run, in every event.
        listeners: Called with every event after it is written.
    """

    def __init__(self, path: Path, run: str, listeners: tuple[Listener, ...] = ()) -> None:
        self._path = path
        self._run = run
        self.listeners = listeners
        self.taken_up = path.exists()  # by an earlier attempt at the run
        if path.exists() and not (found := path.read_bytes()).endswith(b"\n"):
            with path.open("ab") as file:
                file.truncate(found.rfind(b"\n") + 1)

    def write(self, event: str, **content: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Append one event.

        Raises:
            OSError: If it cannot be written, as where the disk is full; nothing of it is left then.
        """
        entry = {"event": event, "time": datetime.now(UTC).isoformat(), "run": self._run, **content}
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while line:  # a full disk takes a part, and says why when it is asked again
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(size)
                raise
        for listener in self.listeners:
            listener(entry)


JOURNAL, RESULT, STUDY = "rounds.jsonl", "result.json", "study.toml"
