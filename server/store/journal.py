"""The run journal: append-only, one JSON object per line, readable after any crash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mmare.errors import InputError
from mmare.host.files import own, own_folder
from server.store.events import to_entry

if TYPE_CHECKING:
    from pathlib import Path

    from server.store.events import Event

__all__ = ["JOURNAL", "LOCK", "RESULT", "Journal", "Listener", "make_run_folder"]

JOURNAL, RESULT = "rounds.jsonl", "result.json"  # in a run folder
LOCK = ".lock"  # there before the journal, held by the process that runs the run

Listener = Callable[[Mapping[str, Any]], None]


class Journal:
    """Appends events; a last line truncated by a crash is skipped by readers and removed on a resume.

    Args:
        run: Name of the run, added to every event.
        listeners: Called with each line's object once it is written.
    """

    def __init__(self, path: Path, run: str, listeners: tuple[Listener, ...] = ()) -> None:
        self._path = path
        self._run = run
        self.listeners = listeners
        self.existed = path.exists()  # left by an earlier attempt
        if path.exists() and not (found := path.read_bytes()).endswith(b"\n"):
            with path.open("ab") as file:
                file.truncate(found.rfind(b"\n") + 1)

    def write(self, event: Event) -> None:
        """Append one event, adding the time and the name of the run.

        Raises:
            OSError: If it cannot be written, such as on a full disk; the file is then unchanged.
        """
        entry = to_entry(replace(event, time=datetime.now(UTC).isoformat(), run=self._run))
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        with open(self._path, "ab", buffering=0, opener=own) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while line:  # a full disk accepts a part, and raises at the next call
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(size)
                raise
        for listener in self.listeners:
            listener(entry)


def make_run_folder(out: Path) -> None:
    """Make a run's folder before the run begins, so that its status can be asked for.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        own_folder(out)
        os.close(own(out / LOCK, os.O_WRONLY | os.O_CREAT))
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({type(error).__name__})") from None
