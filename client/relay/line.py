"""The line to the coordinator: measured once a day, told at the roll call, which a line too slow refuses.

::

    mmare-site start ─► client.doctor.line, a process ─► line.json ─► relay/app.py ─► coordinator
                                                                  └─► mmare-site status
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

from mmare.host.files import write_whole
from mmare.study.tables import TableError, from_table
from mmare.wire.line import carries, line_words

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILE", "Line", "LineMeter", "asked_to_carry", "line_status", "read_line", "write_line"]

FILE: Final = "line.json"
FRESH_S: Final = 86_400.0  # for which a measurement counts
AGAIN_S: Final = 600.0  # until a failed measurement is tried again
MODULE: Final = "client.doctor.line"


@dataclass(frozen=True)
class Line:
    """What is known of a site's line to its coordinator."""

    bytes_per_s: float
    measured: float  # Unix time
    study: str = ""  # the last one that it could not carry in time,
    round_bytes: int = 0  # with its model there and back,
    deadline_s: float = 0.0  # within its deadline


def read_line(folder: Path) -> Line | None:
    """What was measured, if it still counts."""
    try:
        line = from_table(Line, json.loads((folder / FILE).read_text(encoding="utf-8")), "the line")
    except (OSError, ValueError, TypeError, AttributeError, TableError):
        return None
    return line if line.bytes_per_s > 0 and time.time() - line.measured < FRESH_S + AGAIN_S else None


def write_line(folder: Path, line: Line) -> None:
    """Replace the file; raises `OSError`."""
    write_whole(folder / FILE, json.dumps(asdict(line)).encode(), mode=0o600)


def asked_to_carry(folder: Path, line: Line, study: str, round_bytes: int, deadline_s: float) -> bool:
    """Whether the line carries a round in time; if not, that is kept for ``mmare-site status``."""
    fits = carries(line.bytes_per_s, round_bytes, deadline_s)
    if not fits:
        write_line(folder, replace(line, study=study, round_bytes=round_bytes, deadline_s=deadline_s))
    elif line.study == study:
        write_line(folder, replace(line, study=""))
    return fits


def line_status(folder: Path) -> str:
    """What ``mmare-site status`` says of the line; empty before it was measured."""
    line = read_line(folder)
    if line is None:
        return ""
    if not line.study:
        return f"line: {line_words(line.bytes_per_s)} to the coordinator"
    words = line_words(line.bytes_per_s, line.round_bytes, line.deadline_s)
    return f"line: {words}; this site cannot take part in {line.study} until the coordinator changes that"


class LineMeter:
    """Has the line measured while a site runs, by a process that ends.

    Args:
        folder: Of the relay.
        site: Its ``site.toml``.
    """

    def __init__(self, folder: Path, site: Path) -> None:
        self._folder = folder
        self._command = (sys.executable, "-P", "-m", MODULE, str(site.absolute()))
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0.0  # monotonic

    def poll(self) -> None:
        """Begin a measurement that is due, or note that one has ended."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._due = now + (FRESH_S if self._process.returncode == 0 else AGAIN_S)
            self._process = None
        elif self._process is None and now >= self._due:
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(self._command, stdin=nothing, stdout=nothing, stderr=nothing)  # noqa: S603 - our own

    def close(self) -> None:
        """End a measurement that is under way."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
