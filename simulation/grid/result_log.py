"""``results.jsonl`` and ``failures.jsonl``: one JSON object per line; a torn last line is dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import InputError
from mmare.host.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FAILURES", "RESULTS", "Lines", "append_line", "cut_torn_line", "keep_lines", "read_lines"]

RESULTS: Final = "results.jsonl"
FAILURES: Final = "failures.jsonl"
_BEGIN = b'{"cell": "'  # of every line that we write


@dataclass(frozen=True)
class Lines:
    """Content of a file."""

    entries: tuple[dict[str, Any], ...] = ()  # one per whole line
    whole_bytes: int = 0  # where the last whole line ends
    torn: bool = False  # whether a line cut off by a crash follows


def read_lines(path: Path, grid: str, keys: Sequence[str] = ("settings", "seconds", "result")) -> Lines:
    """Read a grid's file, if it exists, without a torn last line.

    Args:
        path: The file.
        grid: Name that every line must carry.
        keys: Further keys that every line must have.

    Raises:
        InputError: If a line before the last is torn, or a line is not of this grid.
    """
    if not path.exists():
        return Lines()
    content = path.read_bytes()
    whole, _, rest = content.rpartition(b"\n")
    entries = tuple(
        _entry(line, f"{path}, line {number}", grid, keys)
        for number, line in enumerate(whole.split(b"\n"), start=1)
        if whole
    )
    if rest and not _ours(rest):
        raise InputError(f"{path}, line {len(entries) + 1}: not a result of a grid; choose another folder")
    return Lines(entries, len(content) - len(rest), bool(rest))


def cut_torn_line(path: Path, lines: Lines) -> None:
    """Remove a torn last line, so that the next one starts on its own."""
    if lines.torn:
        os.truncate(path, lines.whole_bytes)


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Write one line at once and sync it; the first key must be ``cell``, numbers must be finite."""
    line = json.dumps(entry, allow_nan=False).encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        file.write(line)
        os.fsync(file.fileno())


def keep_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """Replace a file by these lines atomically; remove it if there are none."""
    if not entries:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def _entry(line: bytes, where: str, grid: str, keys: Sequence[str]) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        raise InputError(f"{where}: not a whole line of JSON; remove it, and its cell is run again") from None
    if not isinstance(entry, dict) or not {"cell", *keys} <= entry.keys():
        raise InputError(f"{where}: not a result of a grid; choose another folder")
    if entry.get("grid") != grid:
        raise InputError(
            f"{where}: of the grid {entry.get('grid')!r}, expected {grid!r}; choose another folder"
        )
    return entry


def _ours(torn: bytes) -> bool:
    """Whether bytes can be the start of one of our lines; a power cut may leave zero bytes, too."""
    text = torn.rstrip(b"\0")
    return text.startswith(_BEGIN) or _BEGIN.startswith(text)
