"""Tensors that this process wrote to files last, or will not write: whoever reads them back need not wait."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from torch import Tensor

__all__ = ["RecentFiles", "Stamp", "stamp_of"]

Stamp = tuple[int, int, int]  # of a file: what it is, its size and when it was written


def stamp_of(path: Path) -> Stamp:
    """Of a file; an OSError if there is none."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class RecentFiles:
    """The files written last, over all sites of a process, up to ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._lock = Lock()
        self._held: OrderedDict[Path, tuple[Mapping[str, Tensor], Future[Stamp]]] = OrderedDict()
        self._pinned: dict[Path, Mapping[str, Tensor]] = {}  # in place of files that nobody writes

    def put(self, path: Path, tensors: Mapping[str, Tensor], written: Future[Stamp]) -> None:
        """Hold what is being written; it must not change any more."""
        self.forget(path)
        with self._lock:
            self._held[path] = tensors, written
            self._bytes += _bytes(tensors)
            self._evict()

    def pin(self, path: Path, tensors: Mapping[str, Tensor]) -> bool:
        """Hold what is not written, until it is forgotten or written after all; False if there is no room."""
        size = _bytes(tensors)
        self.forget(path)
        with self._lock:
            if size + sum(map(_bytes, self._pinned.values())) > self._most:
                return False
            self._pinned[path] = tensors
            self._bytes += size
            self._evict()
            return True

    def _evict(self) -> None:
        while self._bytes > self._most and self._held:
            self._bytes -= _bytes(self._held.popitem(last=False)[1][0])

    def unpin(self, folder: Path, but: Collection[Path] = ()) -> None:
        """Forget what is held in place of files of a folder."""
        with self._lock:
            gone = [path for path in self._pinned if path.parent == folder and path not in but]
        self.forget(*gone)

    def get(self, path: Path) -> dict[str, Tensor] | None:
        """What is in a file, if it is held and the file is still as written, or not yet."""
        with self._lock:
            if (pinned := self._pinned.get(path)) is not None:
                return dict(pinned)
            found = self._held.get(path)
        if found is None:
            return None
        tensors, written = found
        try:
            if not written.done() or written.result() == stamp_of(path):
                return dict(tensors)
        except OSError:  # not written, or deleted since
            pass
        self.forget(path)
        return None

    def forget(self, *paths: Path) -> None:
        """Hold these no longer."""
        with self._lock:
            for path in paths:
                if (found := self._held.pop(path, None)) is not None:
                    self._bytes -= _bytes(found[0])
                if (pinned := self._pinned.pop(path, None)) is not None:
                    self._bytes -= _bytes(pinned)


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in tensors.values())
