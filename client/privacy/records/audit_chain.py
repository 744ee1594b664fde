"""The chain of an audit log: each line holds its number ``n`` and ``prev``, the digest of the line before.

The first line of a chain holds the digest of all that the file held before, so lines older than the chain
cannot be changed either. A line cut short, by a power failure or a full disk, is none of the chain. A file
beside the log holds the head: number and digest of the last line. It is written after the line, so a log may
be longer than its head, never shorter.

Whoever may write these files can also compute a chain anew; a head that is kept elsewhere shows that.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["START", "Chain", "Head"]

_HEAD: Final = re.compile(r"([0-9]{12}) ([0-9a-f]{64})\n")
_EMPTY: Final = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class Head:
    """The end of a chain.

    Example:
        >>> Head.parse(Head(3, "a" * 64).text()) == Head(3, "a" * 64)
        True
    """

    lines: int = 0
    digest: str = _EMPTY  # SHA-256 of the last line, in hex

    def text(self) -> str:
        """The head as a file holds it; of one length, so that it can be overwritten in place."""
        return f"{self.lines:012d} {self.digest}\n"

    @classmethod
    def parse(cls, text: str) -> Head | None:
        """A head as written by `text`, None if it is not one."""
        found = _HEAD.fullmatch(text)
        return None if found is None else cls(int(found[1]), found[2])


START: Final = Head()


class Chain:
    r"""What a log holds, read line by line.

    Example:
        >>> chain = Chain()
        >>> first = json.dumps(chain.link()).encode()
        >>> chain.take(first + b"\n")
        >>> second = json.dumps(chain.link()).encode()
        >>> Chain([first + b"\n", second]).head.lines
        2
        >>> Chain([first + b"\n", second.replace(b" 2", b" 3")]).fault
        'line 2 is number 3 of the chain, expected 2: a line was removed or added'
    """

    def __init__(self, lines: Iterable[bytes] = ()) -> None:
        self.lines = 0  # of the file
        self.before = 0  # lines of the file before the chain
        self.cut: list[int] = []  # numbers of lines cut short, or otherwise not lines of a log
        self.fault = ""  # the first thing that is wrong with the chain
        self.earlier = ""  # what was wrong when the chain was begun anew
        self.ended = True  # the last line is complete
        self._digests: list[bytes] = []
        self._whole = hashlib.sha256()
        for line in lines:
            self.take(line)

    @property
    def head(self) -> Head:
        """Of the lines read so far."""
        return Head(len(self._digests), self._digests[-1].hex()) if self._digests else Head()

    @property
    def first(self) -> str:
        """Digest of its first line, in hex, which another chain has not; empty without lines."""
        return self._digests[0].hex() if self._digests else ""

    def holds(self, head: Head) -> bool:
        """Whether the chain once ended, or ends, with ``head``."""
        if head.lines == 0:
            return True
        known = head.lines <= len(self._digests)
        return known and self._digests[head.lines - 1].hex() == head.digest

    def link(self, *, anew: bool = False) -> dict[str, Any]:
        """What the next line must hold; ``anew`` begins another chain."""
        if anew or not self._digests:
            return {"n": 1, "prev": self._whole.hexdigest()}
        return {"n": len(self._digests) + 1, "prev": self._digests[-1].hex()}

    def end_line(self) -> None:
        """Complete a last line that was cut short."""
        self._whole.update(b"\n")
        self.ended = True

    def take(self, content: bytes) -> None:
        """Read the next line of the file."""
        self.lines += 1
        found, digest = _link_of(content), hashlib.sha256(content.rstrip(b"\n")).digest()
        if found is None:
            self.cut.append(self.lines)
        elif "n" not in found:
            self._outside()
        elif found == self.link(anew=True):
            self.before, self.earlier, self.fault = self.lines - 1, self.fault, ""
            self._digests = [digest]
        else:
            self._continue(found, digest)
        self._whole.update(content)
        self.ended = content.endswith(b"\n")

    def _outside(self) -> None:
        if self._digests:
            self._wrong("is not part of the chain: it was added or changed")
        else:
            self.before = self.lines

    def _continue(self, found: dict[str, Any], digest: bytes) -> None:
        wanted = self.link()
        if found["n"] != wanted["n"]:
            self._wrong(
                f"is number {found['n']} of the chain, expected {wanted['n']}: a line was removed or added"
            )
        elif found["prev"] != wanted["prev"]:
            self._wrong("does not hold the digest of what is before it: a line before it was changed")
        self._digests.append(digest)

    def _wrong(self, sentence: str) -> None:
        self.fault = self.fault or f"line {self.lines} {sentence}"


def _link_of(content: bytes) -> dict[str, Any] | None:
    """``n`` and ``prev`` of a line of a chain, ``event`` of another, None for what is not a line of a log."""
    try:
        line = json.loads(content)
        return {"n": line["n"], "prev": line["prev"]} if "n" in line else {"event": line["event"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
