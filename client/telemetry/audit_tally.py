"""Running totals over the site's audit log: answers released, messages refused, predictions made."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from client.privacy.records.audit_log import Event
from client.telemetry.prediction_tally import ModelTally, prediction_in, scores_in
from mmare.errors import SiteCode
from mmare.wire.messages import Task

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["AuditTally"]

_TASKS: Final = frozenset(Task)
_CODES: Final = frozenset(SiteCode)


class AuditTally:
    """Totals of a log, read incrementally; the file may not exist yet.

    A line counts once it is complete; a damaged one is skipped. Counting restarts when the log was replaced
    or truncated, or when the approvals change.

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
        """Read what was appended since the last call.

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
        except OSError:  # the gate reports it: nothing is released without a log line
            return

    def _start_over(self) -> None:
        self._offset = self.size = self.bytes = 0
        self.released: Counter[str] = Counter()  # answers, by task
        self.refused: Counter[str] = Counter()  # by code
        self.used: Counter[str] = Counter()  # answers released since the approval, by study hash
        self.models: dict[str, ModelTally] = {}  # predictions, by digest of the package

    def _take(self, line: bytes) -> None:
        try:
            entry: dict[str, Any] = json.loads(line)
            event, time = entry["event"], entry["time"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if event == Event.RELEASED:
            self.released[_known(entry.get("task"), _TASKS)] += 1
            length = entry.get("bytes")
            self.bytes += length if type(length) is int and length > 0 else 0
            study = entry.get("study")
            if isinstance(study, str) and study in self._since and str(time) >= self._since[study]:
                self.used[study] += 1
        elif event == Event.PREDICTED and (found := prediction_in(entry.get("prediction"))):
            self.models.setdefault(found.model, ModelTally()).take(found)
        elif event == Event.SCORED and (scores := scores_in(entry.get("scores"))):
            self.models.setdefault(scores.model, ModelTally()).scores = scores
        elif event == Event.REFUSED:
            self.refused[_known(entry.get("code"), _CODES)] += 1


def _known(value: object, words: frozenset[str]) -> str:
    return value if isinstance(value, str) and value in words else "other"
