"""Counts over the site's audit log, read on as it grows: what left and what was refused since it began."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from client.privacy.audit_log import Event
from mmare.errors import SiteCode
from mmare.wire.messages import Task

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["AuditTally"]

_TASKS: Final = frozenset(Task)
_CODES: Final = frozenset(SiteCode)


class AuditTally:
    """What the lines of a log come to; the first look reads all of it, later ones what is new.

    A line is counted once its end is there; one that is damaged is passed over. Where the log was replaced
    or became shorter, or other approvals are asked about, counting starts over.

    Args:
        path: Of the log; it may not be there yet.

    Example:
        >>> from pathlib import Path
        >>> tally = AuditTally(Path("/nonexistent/audit.jsonl"))
        >>> tally.read_on()
        >>> tally.size, tally.released
        (0, Counter())
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._since: Mapping[str, str] = MappingProxyType({})
        self._inode = 0
        self._start_over()

    def read_on(self, since: Mapping[str, str] = MappingProxyType({})) -> None:
        """Take what has been written since the last look.

        Args:
            since: ISO time in UTC of the approval, by study hash; ``used`` counts answers from then on.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset or since != self._since:
                    self._inode, self._since = status.st_ino, dict(since)
                    self._start_over()
                self.size = status.st_size
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._take(line)
        except FileNotFoundError:
            self._start_over()
        except OSError:  # the gate says so: nothing leaves without a line
            return

    def _start_over(self) -> None:
        self._offset = self.size = self.bytes = 0
        self.released: Counter[str] = Counter()  # answers that left, by task
        self.refused: Counter[str] = Counter()  # by code
        self.used: Counter[str] = Counter()  # answers that left since the approval, by study hash

    def _take(self, line: bytes) -> None:
        try:
            entry: dict[str, Any] = json.loads(line)
            event, time = entry["event"], entry["time"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if event == Event.RELEASED:
            self.released[_of(_TASKS, entry.get("task"))] += 1
            length = entry.get("bytes")
            self.bytes += length if type(length) is int and length > 0 else 0
            study = entry.get("study")
            if isinstance(study, str) and study in self._since and str(time) >= self._since[study]:
                self.used[study] += 1
        elif event == Event.REFUSED:
            self.refused[_of(_CODES, entry.get("code"))] += 1


def _of(words: frozenset[str], value: object) -> str:
    """A word of a closed set."""
    return value if isinstance(value, str) and value in words else "other"
