"""Find the files of an exported folder and recognise DICOM by content, not by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.ingest.reasons import ScanReason, ScanRefused

__all__ = ["IgnoredFile", "list_files", "looks_like_dicom", "os_error_reason"]

PREAMBLE_BYTES = 128  # of a part-10 file, before the letters DICM
MAGIC = b"DICM"
# Files without a preamble begin directly with group 0002 or 0008.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # 0002 and 0008 little endian, 0008 big endian
_SHORTEST_HEADER = 8
_HIGHEST_FIRST_ELEMENT = 0x0080  # the first element of group 0008 is well below it in any real file


@dataclass(frozen=True)
class IgnoredFile:
    """A skipped file or folder; ``path`` is relative to the converted folder."""

    path: str
    reason: ScanReason


def os_error_reason(error: OSError) -> ScanReason:
    """The code for a file that the operating system refused to open or read."""
    return ScanReason.PERMISSION_DENIED if isinstance(error, PermissionError) else ScanReason.UNREADABLE_FILE


def list_files(source: Path, refuse: Callable[[Path, ScanReason], None]) -> list[Path]:
    """Every regular file below a folder, sorted; links to folders are not followed.

    ``refuse`` is called with each folder that could not be listed.
    """

    def on_error(error: OSError) -> None:
        refuse(Path(error.filename or source), os_error_reason(error))

    return sorted(
        path
        for folder, _, names in os.walk(source, onerror=on_error)
        for path in (Path(folder) / name for name in names)
        if _is_regular(path)
    )


def _is_regular(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return True  # opening it will name the error; pipes and sockets, which would block, never get here


def looks_like_dicom(path: Path) -> bool:
    """True if a file has the part-10 preamble; False if it looks like DICOM without one.

    Without the preamble the header must be read tolerantly.

    Raises:
        ScanRefused: If it is empty or is not DICOM.
        OSError: If it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(PREAMBLE_BYTES + len(MAGIC))
    if not head:
        raise ScanRefused(ScanReason.EMPTY_FILE)
    if head[PREAMBLE_BYTES:] == MAGIC:
        return True
    if len(head) < _SHORTEST_HEADER or head[:2] not in _FIRST_GROUPS:
        raise ScanRefused(ScanReason.NOT_DICOM)
    element = int.from_bytes(head[2:4], "big" if head[:2] == _FIRST_GROUPS[2] else "little")
    if element > _HIGHEST_FIRST_ELEMENT:
        raise ScanRefused(ScanReason.NOT_DICOM)
    return False
