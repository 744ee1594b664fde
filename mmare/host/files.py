"""Small files that a person or another program relies on: whole or not there, never open for a moment."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes, mode: int = 0o644, group: int | None = None) -> None:
    """Write a file, or replace it, in one step: a reader finds the old or the new one, whole.

    It has its mode before it has its name, so a secret is never readable for a moment.

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
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(number, "wb") as file:
            if group is not None:
                os.fchown(number, -1, group)
            os.fchmod(number, mode)
            file.write(content)
            file.flush()
            os.fsync(number)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
