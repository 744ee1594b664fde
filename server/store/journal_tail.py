"""Follow a journal that grows: each whole line once, in constant memory, whatever happens to the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["JournalTail"]

CHUNK: Final = 2**20  # bytes that are read at once
LONGEST: Final = 2**24  # bytes of a line: one of a round with the metrics of thousands of sites is shorter
HEAD: Final = 256  # bytes that tell one journal from another: time and name of the run


class JournalTail:
    """Reads what has been written since the last look.

    A line is taken once its end is there: one that is being written waits, one that a crash has cut is
    ended by the next writer (`server.store.journal.Journal`) and then skipped, as is one that is too long.
    Where the file was replaced or became shorter, reading starts over and ``epoch`` goes up.

    Args:
        path: The journal; it may not be there yet, or no more.

    Example:
        >>> from pathlib import Path
        >>> list(JournalTail(Path("/nonexistent/rounds.jsonl")).read())
        []
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._head = b""  # the number of a file can come back with another file
        self._rest = b""
        self._discards = False  # the rest of a line that is too long
        self.epoch = 0
        self.backlog = 0
        self.skipped = 0

    def read(self, most: int = CHUNK) -> Iterator[dict[str, Any]]:
        """Events of at most ``most`` further bytes; ``backlog`` then says how many are left."""
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
    """What a line says, or nothing where it is no event; NaN and infinities are read as nothing."""
    try:
        event = json.loads(line.decode(errors="replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
