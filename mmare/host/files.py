"""Files that others rely on: whole or not there, even after a power cut; private files; names of files."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["OWN_MODE", "own", "own_folder", "replacing", "slug", "write_whole"]

OWN_MODE: Final = 0o600


@contextmanager
def replacing(
    path: Path, beside: str | None = None, *, flush_folder: bool = True, private: bool = False
) -> Iterator[Path]:
    """Write a file beside its place; when the block ends well, it is flushed to disk and takes the place.

    A reader finds the old file or the new one, whole. If the block fails, the old one stays, and no other.

    Args:
        path: To make or replace; its folder exists.
        beside: Name to write to, where the writer needs a certain suffix; by default a random one.
        flush_folder: Whether the new name survives a power cut, too: milliseconds more a file.
        private: Whether only the user can read it, whatever the umask; the path is then an empty file.

    Yields:
        The path to write to.

    Raises:
        OSError: If it cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "notes") as partial:
        ...         _ = partial.write_text("whole")
        ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
        [('notes', 'whole')]
    """
    partial = path.with_name(beside or f".{uuid.uuid4().hex}")
    try:
        if private:
            os.close(own(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        yield partial
        _flush(partial)
        partial.replace(path)
        if flush_folder:
            _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, mode: int = 0o644, group: int | None = None) -> None:
    """Write or replace a file as `replacing` does; it has its mode before it has its name or content.

    Args:
        path: The file.
        content: Of it.
        mode: Of it, whatever the umask is.
        group: That it belongs to; none for the writer's own.

    Raises:
        OSError: If it cannot be written; what was there before stays.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "secret", b"abc", mode=0o600)
        ...     found = Path(folder) / "secret"
        ...     found.read_bytes(), oct(found.stat().st_mode)
        (b'abc', '0o100600')
    """
    with replacing(path) as partial:
        number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(number, "wb") as file:
            if group is not None:
                os.fchown(number, -1, group)
            os.fchmod(number, mode)
            file.write(content)


def own(path: Path | str, flags: int) -> int:
    """Open a file; a new one is its owner's alone, whatever the umask: ``open(path, "ab", opener=own)``."""
    return os.open(path, flags | os.O_CLOEXEC, OWN_MODE)


def own_folder(path: Path) -> None:
    """Make a folder, and those above it, that only the user can enter; those that exist stay as they are.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     own_folder(Path(folder) / "run" / "spool")
        ...     oct((Path(folder) / "run").stat().st_mode)
        '0o40700'
    """
    for folder in [*reversed(path.parents), path]:
        folder.mkdir(mode=0o700, exist_ok=True)


def slug(text: str) -> str:
    """Text as part of a file name: lower case letters and digits of ASCII, joined by ``-``; may be empty.

    Example:
        >>> slug("Hôpital St. Anne / Nord"), slug("T2* (fs)"), slug("日本")
        ('hopital-st-anne-nord', 't2-fs', '')
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems flush no folders
            raise
    finally:
        os.close(number)
