"""Embeddings on disk, keyed by content: only what changed is encoded again."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Final

import numpy as np

from client.ingest.reasons import ScanReason, ScanRefused, explain
from mmare.host.files import own_folder, replacing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["EmbeddingCache", "content_hash"]

CHUNK: Final = 1 << 20  # bytes read at a time
INDEX: Final = "files.json"
REFUSED: Final = ".refused"  # suffix of stored refusals
FAILED: Final = ".failed"  # suffix in older caches, for scans to be retried


def content_hash(paths: Iterable[Path]) -> str:
    """Hex digest of the content of files, in the order of their names.

    Raises:
        OSError: If one cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        digest.update(b"\0")
    return digest.hexdigest()


class EmbeddingCache:
    """One small file per embedding in the site's cache, and an index of file contents seen before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "embeddings"
        self._index: dict[str, tuple[str, str]] = {}
        try:
            content = json.loads((self._folder / INDEX).read_text(encoding="utf-8"))
            self._index = {name: (stamp, digest) for name, (stamp, digest) in content.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._index = {}  # rebuilt: it only saves reading files again

    def key(self, scan: Path, fingerprint: str) -> str:
        """Hash of a scan's content (file or folder) and of everything else that its embedding depends on.

        A file whose size and modification time are unchanged is not read again.

        Raises:
            OSError: If it cannot be read.
        """
        files = sorted(path for path in scan.rglob("*") if path.is_file()) if scan.is_dir() else [scan]
        stats = [path.stat() for path in files]
        stamp = hashlib.sha256(
            "/".join(f"{entry.st_size}.{entry.st_mtime_ns}" for entry in stats).encode()
        ).hexdigest()
        name = str(scan.absolute())
        known = self._index.get(name)
        if known is None or known[0] != stamp:
            self._index[name] = known = (stamp, content_hash(files))
        return hashlib.sha256(f"{known[1]}/{fingerprint}".encode()).hexdigest()

    def get(self, key: str) -> NDArray[np.float32] | None:
        """An embedding ``(W,)``; None if it is missing or its file is damaged."""
        try:
            with self._path(key).open("rb") as file:
                vector: NDArray[np.float32] = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return vector

    def put(self, key: str, vector: NDArray[np.float32]) -> None:
        """Store an embedding ``(W,)`` atomically; an OSError means that the disk refused it."""
        buffer = io.BytesIO()
        np.save(buffer, vector)
        self._write(self._path(key), buffer.getvalue())

    def put_refusal(self, key: str, refused: ScanRefused) -> None:
        """Store why a scan cannot be used: the code and its detail."""
        content = json.dumps([refused.reason, refused.detail])
        self._write(self._path(key).with_suffix(REFUSED), content.encode())

    def refusal(self, key: str) -> ScanRefused | None:
        """Why a scan cannot be used; None if no refusal is stored."""
        for ending, unknown in ((REFUSED, ScanReason.OTHER), (FAILED, ScanReason.UNREADABLE_FILE)):
            try:
                content = self._path(key).with_suffix(ending).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if content:
                return _refusal_in(content, unknown)
        return None

    def save_index(self) -> None:
        """Store which files were seen with which content."""
        self._write(self._folder / INDEX, json.dumps(self._index).encode())

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        """Replace a file; a power cut may take it, and the scan is encoded again, but never a part of it."""
        own_folder(path.parent)
        with replacing(path, flush_folder=False, private=True) as partial:  # 5 ms a scan less
            partial.write_bytes(content)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.npy"


def _refusal_in(content: str, unknown: ScanReason) -> ScanRefused:
    """Parse a stored refusal; older caches hold its sentence alone, perhaps in an earlier wording."""
    try:
        reason, detail = json.loads(content)
        return ScanRefused(ScanReason(reason), str(detail))
    except (ValueError, TypeError):
        starts = {reason: explain(reason).rstrip(".") for reason in ScanReason if explain(reason)}
        reason = next((each for each, start in starts.items() if content.startswith(start)), unknown)
        return ScanRefused(reason, content.removeprefix(starts.get(reason, "")).lstrip(".: "))
