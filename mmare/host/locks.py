"""File locks that the kernel releases when their holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from mmare.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mmare.errors import MmareError

__all__ = ["is_held", "locked"]

GLANCE_S: Final = 0.4  # `is_held` takes a lock for a moment, which must not stop a program from starting
POLL_S: Final = 0.05


@contextmanager
def locked(
    path: Path, busy: MmareError | None = None, wait_s: float = GLANCE_S, mode: int = 0o666
) -> Iterator[None]:
    """Hold an exclusive lock, which also excludes other holders in this process.

    Args:
        path: A folder, or a file, which is created if missing.
        busy: Raised if another holder keeps it longer than ``wait_s``; ``None`` waits forever.
        mode: Of a new file, less the umask; users who can read the file can block the lock.

    Raises:
        InputError: If the path cannot be locked.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, locked(Path(folder) / "lock"):
        ...     is_held(Path(folder) / "lock")
        True
    """
    end = time.monotonic() + wait_s
    with ExitStack() as stack:
        try:
            flags = os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            number = os.open(path, flags | os.O_CLOEXEC, mode)
            stack.callback(os.close, number)
            while not _taken(number, fcntl.LOCK_EX):
                if busy is not None and time.monotonic() >= end:
                    raise busy
                time.sleep(POLL_S)
        except OSError as error:
            raise InputError(f"{path}: cannot be locked ({type(error).__name__})") from None
        yield


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock of a file; needs permission to read the file."""
    try:
        number = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _taken(number, fcntl.LOCK_SH)
    finally:
        os.close(number)


def _taken(number: int, kind: int) -> bool:
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
