"""An append-only file of JSON lines in a chain, readable by its owner only.

The chain is `client.privacy.records.audit_chain`'s. A log that lost lines, or in which one was changed, is
not continued.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from client.privacy.records.audit_chain import Chain, Head
from mmare.errors import RunError
from mmare.host.files import own, own_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from enum import StrEnum
    from pathlib import Path

__all__ = ["ChainError", "ChainedLog"]

LOG = logging.getLogger(__name__)

_FLAGS: Final = os.O_APPEND | os.O_CREAT | os.O_RDWR
_LONGEST_HEAD: Final = 256  # bytes read of what should be a head


class ChainError(RunError):
    """A log that is not what its head, or another file that names a line of it, says."""


class ChainedLog:
    """The file at ``path`` and its head beside it.

    Args:
        durable: Sync each line to disk before going on.
    """

    Events: ClassVar[type[StrEnum]]  # of the lines
    REMEDY: ClassVar[str]  # what a broken chain means and what to do, a clause

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path = path
        self.head_path = path.with_suffix(".head")
        self._durable = durable
        self._read: tuple[tuple[int, ...], Chain] | None = None  # state of the file, and what it held

    def add(
        self,
        *contents: Mapping[str, Any],
        anew: bool = False,
        allowed: Callable[[], None] = lambda: None,
    ) -> Head:
        """Add a line each, with its time, and return the new head; the cost does not grow with the log.

        Args:
            contents: What to add, at least one.
            anew: Begin a new chain in a log that does not verify; its first line says what was ``broken``.
            allowed: Raises if nothing may be added, while no other process can add lines either.

        Raises:
            OSError: If it cannot be written; then nothing may leave.
            ChainError: If the log does not verify; then nothing may leave either.
        """
        own_folder(self.path.parent)
        with self._locked(_FLAGS) as file:
            chain = self._chain(file)
            wrong = self._fault(chain)
            if wrong and not anew:
                raise ChainError(f"{self.path}: {wrong}; {self.REMEDY}")
            allowed()
            if chain.head.lines == 0 and not wrong:
                self._write_head(Head())  # before the first line: a chain without a head is a wrong one
            first = {**contents[0], "broken": wrong} if wrong else contents[0]
            return self._write(file, chain, (first, *contents[1:]), anew=bool(wrong))

    def check(self, *approved: Head) -> None:
        """Raise `ChainError` if the log is shorter than its head or one of ``approved``, or differs."""
        wrong = self.examine(*approved)[1]
        if wrong:
            raise ChainError(f"{self.path}: {wrong}; {self.REMEDY}")

    def examine(self, *approved: Head) -> tuple[Chain, str]:
        """What the log holds, and the first thing that is wrong with it; empty if nothing is.

        Raises:
            OSError: If it cannot be read.
        """
        try:
            with self._locked(os.O_RDONLY) as file:
                chain = self._chain(file)
                return chain, self._fault(chain, *approved)
        except FileNotFoundError:
            return Chain(), self._fault(Chain(), *approved)

    @contextmanager
    def _locked(self, flags: int) -> Iterator[int]:
        file = own(self.path, flags)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # line and head belong together, also between processes
            yield file
        finally:
            os.close(file)

    def _chain(self, file: int) -> Chain:
        """What the log holds: as known, or read from the beginning if the file was touched since."""
        state = _state(file)
        if self._read is None or self._read[0] != state:
            with open(os.dup(file), "rb") as lines:  # noqa: PTH123 - of an open file
                lines.seek(0)
                self._read = (state, Chain(lines))
        return self._read[1]

    def _fault(self, chain: Chain, *approved: Head) -> str:
        if chain.fault:
            return chain.fault
        try:
            with self.head_path.open(encoding="latin-1") as file:
                text = file.read(_LONGEST_HEAD)
        except FileNotFoundError:
            text = ""
        own = Head.parse(text)
        if own is None and (text or chain.head.lines):
            return f"{self.head_path.name} {'is damaged' if text else 'is missing or empty'}"
        for head, holder in (
            (own or Head(), self.head_path.name),
            *((each, "an approval") for each in approved),
        ):
            if head.lines > chain.head.lines:
                return (
                    f"its chain ends after line {chain.head.lines}, {holder} names line {head.lines}: lines "
                    "were removed"
                )
            if not chain.holds(head):
                return f"line {head.lines} of its chain is not the one that {holder} names: it was changed"
        return ""

    def _write(self, file: int, chain: Chain, contents: Sequence[Mapping[str, Any]], *, anew: bool) -> Head:
        self._read = None  # until the lines are written
        lines = []
        if not chain.ended:
            lines.append(b"\n")  # after a line cut short by a power failure
            chain.end_line()
        for each in contents:
            line = {**chain.link(anew=anew), "time": _now(), **each}
            lines.append(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            chain.take(lines[-1])
            anew = False
        encoded = b"".join(lines)
        written = os.write(file, encoded)  # one call: readers find no half of a line
        if written != len(encoded):
            raise OSError(f"{self.path}: {written} of {len(encoded)} bytes written")
        if self._durable:
            os.fdatasync(file)
        self._write_head(chain.head)
        self._read = (_state(file), chain)
        return chain.head

    def _write_head(self, head: Head) -> None:
        """Overwrite the head in place: it fits one sector, and an old one does no harm."""
        file = own(self.head_path, os.O_CREAT | os.O_WRONLY)
        try:
            os.pwrite(file, head.text().encode(), 0)
        finally:
            os.close(file)

    def lines(self, of_run: str = "") -> Iterator[dict[str, Any]]:
        """Every line in order, or of one run; damaged ones are reported in the site's log and skipped."""
        if not self.path.exists():
            return
        wanted = f'"run":"{of_run}"'.encode() if of_run else b""
        with self.path.open("rb") as file:
            for number, content in enumerate(file, start=1):
                if wanted not in content:
                    continue
                try:
                    line = json.loads(content)
                    self.Events(line["event"])
                    line["time"].encode()
                except (ValueError, TypeError, KeyError, AttributeError):
                    LOG.warning("%s: line %s is damaged", self.path, number)
                    continue
                yield line


def _now() -> str:
    """Current UTC time in fixed width, so that it sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _state(file: int) -> tuple[int, ...]:
    """Changes whenever the file does."""
    status = os.fstat(file)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
