"""Which version of its table a site has: a digest of the manifest, of features files and tables of scans."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sites.config import SiteConfig

__all__ = ["TableVersion"]


class TableVersion:
    """The version of a site's table; files are read again only when they were touched.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "patients.csv")
        ...     _ = file.write_text("a")
        ...     version = TableVersion([file])
        ...     first = version()
        ...     _ = file.write_text("b")
        ...     first == version()
        False
    """

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._known: tuple[list[tuple[int, ...]], str] | None = None

    @classmethod
    def of(cls, *sites: SiteConfig) -> TableVersion:
        """Of the tables of one or more sites."""
        return cls([file for site in sites for file in _files(site)])

    def __call__(self) -> str:
        """A hex digest of the content; a file that is missing or cannot be read has none."""
        states = [_state(file) for file in self._files]
        if self._known is None or self._known[0] != states:
            digest = hashlib.sha256()
            for file, state in zip(self._files, states, strict=True):
                digest.update(hashlib.sha256(_content(file) if state else b"").digest())
            self._known = states, digest.hexdigest()[:32]
        return self._known[1]


def _files(site: SiteConfig) -> list[Path]:
    sources = (source for _, source in sorted(site.modalities.items()))
    named = [file for source in sources for file in (source.file, source.table) if file is not None]
    return [site.manifest, *dict.fromkeys(named)]


def _state(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
