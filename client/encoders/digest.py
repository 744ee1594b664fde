"""Digests of files that are too large to read twice."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from mmare.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["sha256_of"]

_CHUNK: Final = 1 << 22


def sha256_of(path: Path) -> str:
    """Hex digest of a file; read once per process unless its size or modification time changes.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        status = path.stat()
        return _sha256(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


@lru_cache(maxsize=256)  # an encoder folder may hold its weights in many files
def _sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001  part of the cache key
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
