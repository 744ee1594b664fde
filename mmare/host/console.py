"""Error handling of every command: one sentence on stderr and the exit code of the error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from mmare.errors import MmareError

__all__ = ["run_command"]

DEBUG = "--debug"


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
