"""Bytes in the parts of a folder, measured periodically by a background thread."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FolderSize"]

INTERVAL_S: Final = 60.0
SHARE: Final = 100  # pause a hundred times as long as a measurement took: one percent of a core
OTHER: Final = "other"


class FolderSize:
    """Sizes of parts of a folder as last measured, so that no scrape waits for a disk.

    Args:
        folder: May not exist yet.
        parts: Names of subfolders; everything else counts as ``other``.

    Example:
        >>> from pathlib import Path
        >>> size = FolderSize(Path("/nonexistent"), ("embeddings",))
        >>> size.measure()
        >>> size.bytes
        {'embeddings': 0, 'other': 0}
    """

    def __init__(self, folder: Path, parts: tuple[str, ...]) -> None:
        self._folder = folder
        self._parts = parts
        self.bytes: Mapping[str, int] = {}

    def measure(self) -> None:
        """Update ``bytes`` now."""
        found = Counter(dict.fromkeys((*self._parts, OTHER), 0))
        for entry in _entries(self._folder):
            name = entry.name if entry.name in self._parts else OTHER
            found[name] += sum(_sizes(entry))
        self.bytes = dict(found)

    @contextmanager
    def measured(self, interval_s: float = INTERVAL_S) -> Iterator[None]:
        """Measure repeatedly in the background for the block."""
        stop = threading.Event()
        thread = threading.Thread(target=self._follow, args=(stop, interval_s), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()  # not joined: the thread may be in the middle of a large folder

    def _follow(self, stop: threading.Event, interval_s: float) -> None:
        while not stop.is_set():
            began = time.monotonic()
            self.measure()
            stop.wait(max(interval_s, SHARE * (time.monotonic() - began)))


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Entries of a folder; none if it cannot be read or vanishes meanwhile."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _sizes(entry: os.DirEntry[str]) -> Iterator[int]:
    try:
        if entry.is_dir(follow_symlinks=False):
            for inner in _entries(entry.path):
                yield from _sizes(inner)
        else:
            yield entry.stat(follow_symlinks=False).st_size
    except OSError:
        return
