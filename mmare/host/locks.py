"""One process at a time: locks that the kernel takes back when their holder ends, however it ends."""

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

GLANCE_S: Final = 0.4  # `is_held` holds a lock for a moment; no program fails to start because of it
LOOK_S: Final = 0.05


@contextmanager
def locked(
    path: Path, busy: MmareError | None = None, wait_s: float = GLANCE_S, mode: int = 0o666
) -> Iterator[None]:
    """Hold a lock; in one process, too, nobody else can.

    Args:
        path: A folder, or a file, which is made where it is missing.
        busy: Raised where another process holds it for longer than ``wait_s``; none to wait without end.
        wait_s: See above.
        mode: Of a new file, less the umask; whoever can open it for reading can keep others from the lock.

    Raises:
        InputError: If there can be no lock.
        MmareError: ``busy``.

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
                time.sleep(LOOK_S)
        except OSError as error:
            raise InputError(f"{path}: cannot be locked ({type(error).__name__})") from None
        yield


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock of a file.

    Raises:
        PermissionError: If this user may not see it.
    """
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
