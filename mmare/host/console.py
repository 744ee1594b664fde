"""Error handling of every command: one sentence on stderr and the exit code of the error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmare.errors import InputError, MmareError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["must_exist", "run_command"]

DEBUG = "--debug"


def must_exist(path: Path, expected: str) -> None:
    """Refuse a mistyped path before a command imports what takes seconds.

    Raises:
        InputError: If there is nothing of that name.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, expected {expected}")


def run_command(command: Callable[[list[str]], object], arguments: Sequence[str]) -> int:
    """Run a command that may raise `MmareError`; returns 0 or the error's exit code.

    ``--debug`` anywhere among the arguments lets errors through with their traceback.

    Example:
        >>> run_command(lambda arguments: None, [])
        0
    """
    debug = DEBUG in arguments
    try:
        command([argument for argument in arguments if argument != DEBUG])
    except MmareError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0
