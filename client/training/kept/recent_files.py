"""Tensors that this process wrote to files last: whoever reads them back need not wait for the disk."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
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

    def put(self, path: Path, tensors: Mapping[str, Tensor], written: Future[Stamp]) -> None:
        """Hold what is being written; it must not change any more."""
        self.forget(path)
        with self._lock:
            self._held[path] = tensors, written
            self._bytes += _bytes(tensors)
            while self._bytes > self._most:
                self._bytes -= _bytes(self._held.popitem(last=False)[1][0])

    def get(self, path: Path) -> dict[str, Tensor] | None:
        """What is in a file, if it is held and the file is still as written, or not yet."""
        with self._lock:
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


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in tensors.values())
