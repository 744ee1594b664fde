"""The site's audit log: a line for every answer that left and every one refused, only ever added to.

A line says what, when, for which study, how many bytes, and their hash: enough to find an answer again at the
other end, never a value of a patient. It is written before the bytes leave: what cannot be logged stays.
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
_MODE: Final = 0o600  # the log is the hospital's own


class Event(StrEnum):
    """What happened to an answer."""

    RELEASED = "released"
    REFUSED = "refused"


@dataclass(frozen=True)
class Entry:
    """One line, less its time.

    Args:
        event: Whether it left.
        task: That was asked for; empty where the message could not be read.
        study: Hash of the study; empty where there was none.
        run: Name of the run; empty where it is not a name.
        round: Of the run.
        what: Kinds of content that left.
        bytes: Length of header and tensors together.
        sha256: Of header and tensors, one after the other.
        code: Why it was refused.
    """

    event: Event
    task: str = ""
    study: str = ""
    run: str = ""
    round: int = 0
    what: tuple[str, ...] = ()
    bytes: int = 0
    sha256: str = ""
    code: str = ""


@dataclass
class Tally:
    """What the log says of one study."""

    released: int = 0
    refused: int = 0
    bytes: int = 0


class AuditLog:
    """A file of JSON lines, readable by its owner alone.

    Args:
        path: Of the file; its folder is made when the first line is written.
        durable: Whether every line is on the disk, not in the machine's memory, before the bytes leave.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path = path
        self._durable = durable
        self._whole = False

    def append(self, entry: Entry) -> None:
        """Add a line.

        Raises:
            OSError: If it cannot be written; then nothing may leave.
        """
        line = {
            "time": _now(),
            **{key: value for key, value in asdict(entry).items() if value not in ("", ())},
        }
        content = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, _FLAGS, _MODE)
        try:
            if not self._whole and _torn(file):
                content = b"\n" + content  # a line that a power cut left half written stays alone
            self._whole = False  # until this line is
            written = os.write(file, content)  # one call: lines of several processes do not mix
            self._whole = written == len(content)
            if self._durable:
                os.fdatasync(file)
        finally:
            os.close(file)
        if not self._whole:
            raise OSError(f"{self.path}: {written} of {len(content)} bytes written")

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every line in order; one that is damaged is named in the site's log and passed over."""
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
        """How many answers have left for a study.

        Args:
            study_hash: Of the study.
            since: ISO time in UTC from which to count.
        """
        return sum(
            line["event"] == Event.RELEASED and line.get("study") == study_hash and line["time"] >= since
            for line in self.lines()
        )

    def tallies(self, since: Mapping[str, str] = MappingProxyType({})) -> dict[str, Tally]:
        """Releases and refusals per study hash; what named no study is under the empty one.

        Args:
            since: ISO times in UTC from which to count, by study hash.
        """
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
    """This moment in UTC; lines of one width, so that they sort as times do."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _torn(file: int) -> bool:
    """Whether the last line lacks its end."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"
