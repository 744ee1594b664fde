"""Follow a growing journal: each complete line once, in constant memory, whatever happens to the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["JournalTail"]

CHUNK: Final = 2**20  # bytes read at once
LONGEST: Final = 2**24  # bytes of a line; a round's metrics of thousands of sites are shorter
HEAD: Final = 256  # bytes that distinguish journals: time and name of the run


class JournalTail:
    """Reads what was written since the last call.

    Incomplete lines wait for their end; damaged or too long ones are skipped. If the file was replaced or
    became shorter, reading starts over and ``epoch`` increases. The file need not exist.

    Example:
        >>> from pathlib import Path
        >>> list(JournalTail(Path("/nonexistent/rounds.jsonl")).read())
        []
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._head = b""  # not the inode, which another file may reuse
        self._rest = b""
        self._discards = False  # the rest of a line that is too long
        self.epoch = 0
        self.backlog = 0  # bytes left to read
        self.skipped = 0  # lines

    def read(self, most: int = CHUNK) -> Iterator[dict[str, Any]]:
        """Events of the next ``most`` bytes at most; updates ``backlog``."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                head = file.read(HEAD)
                if size < self._offset or not head.startswith(self._head):
                    self._start_over()
                self._head = head
                file.seek(self._offset)
                data = file.read(most)
        except OSError:
            return
        self._offset += len(data)
        self.backlog = max(size - self._offset, 0)
        if not data:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._discards:
                self._discards = False
                continue
            event = _event(line)
            if event is None:
                self.skipped += bool(line.strip())
            else:
                yield event
        if len(self._rest) > LONGEST:
            self._rest, self._discards = b"", True
            self.skipped += 1

    def _start_over(self) -> None:
        self.epoch += 1
        self._offset, self._rest, self._discards = 0, b"", False


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a line, if it is one; NaN and infinities become ``None``."""
    try:
        event = json.loads(line.decode(errors="replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
