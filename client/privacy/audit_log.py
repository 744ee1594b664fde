"""The site's append-only audit log: a line per released or refused answer.

A line has kind, time, study, number of bytes and their hash, which identify the answer at the coordinator,
but no patient value. It is written before the bytes leave: an answer that cannot be logged is not released.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["AuditLog", "Entry", "Event", "Tally"]

LOG = logging.getLogger(__name__)

_FLAGS: Final = os.O_APPEND | os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
_MODE: Final = 0o600


class Event(StrEnum):
    """What happened to an answer."""

    RELEASED = "released"
    REFUSED = "refused"


@dataclass(frozen=True)
class Entry:
    """One line without its time."""

    event: Event
    task: str = ""  # empty if the message could not be read
    study: str = ""  # hash; empty if the message names none
    run: str = ""  # name; empty if not a valid one
    round: int = 0
    what: tuple[str, ...] = ()  # kinds of content released
    bytes: int = 0  # of header and tensors
    sha256: str = ""  # of header followed by tensors
    code: str = ""  # of a refusal


@dataclass
class Tally:
    """Totals of one study."""

    released: int = 0
    refused: int = 0
    bytes: int = 0


class AuditLog:
    """A file of JSON lines, readable by its owner only.

    Args:
        durable: Sync each line to disk before the answer leaves.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path = path
        self._durable = durable
        self._whole = False

    def append(self, entry: Entry) -> None:
        """Add a line; raises `OSError` if it cannot be written, and then nothing may leave."""
        line = {"time": _now()} | {
            key: value for key, value in asdict(entry).items() if value not in ("", ())
        }
        content = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, _FLAGS, _MODE)
        try:
            if not self._whole and _torn(file):
                content = b"\n" + content  # separates a line cut short by a power failure
            self._whole = False
            written = os.write(file, content)  # one call, so lines of several processes do not mix
            self._whole = written == len(content)
            if self._durable:
                os.fdatasync(file)
        finally:
            os.close(file)
        if not self._whole:
            raise OSError(f"{self.path}: {written} of {len(content)} bytes written")

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every line in order; damaged ones are reported in the site's log and skipped."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, content in enumerate(file, start=1):
                try:
                    line = json.loads(content)
                    Event(line["event"])
                    line["time"].encode()
                except (ValueError, TypeError, KeyError, AttributeError):
                    LOG.warning("%s: line %s is damaged", self.path, number)
                    continue
                yield line

    def released(self, study_hash: str, since: str = "") -> int:
        """Number of answers released for a study since an ISO time in UTC."""
        return sum(
            line["event"] == Event.RELEASED and line.get("study") == study_hash and line["time"] >= since
            for line in self.lines()
        )

    def tallies(self, since: Mapping[str, str] = MappingProxyType({})) -> dict[str, Tally]:
        """Totals by study hash, empty for messages without a study; ``since``: ISO times in UTC by hash."""
        found: dict[str, Tally] = {}
        for line in self.lines():
            study = line.get("study", "")
            if line["time"] < since.get(study, ""):
                continue
            tally = found.setdefault(study, Tally())
            if line["event"] == Event.RELEASED:
                tally.released += 1
                tally.bytes += line.get("bytes", 0)
            else:
                tally.refused += 1
        return found


def _now() -> str:
    """Current UTC time in fixed width, so that it sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _torn(file: int) -> bool:
    """Whether the last line is incomplete."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"
