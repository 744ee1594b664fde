"""What every command does with errors and with text of others: one sentence on stderr, nothing hidden."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmare.errors import InputError, MmareError
from mmare.host.memory import collect_seldom

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["must_exist", "run_command", "visible"]

DEBUG = "--debug"
NEW_LINE = "\n"


def must_exist(path: Path, expected: str) -> None:
    """Refuse a mistyped path before a command imports what takes seconds.

    Raises:
        InputError: If there is nothing of that name.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, expected {expected}")


def visible(text: str, keep: str = "") -> str:
    r"""Text that shows all it holds: what a terminal obeys or does not show is escaped.

    These are control characters, those that reverse the direction of writing or have no width, and spaces and
    line ends other than " " and those in ``keep``.

    Example:
        >>> print(visible("up to 3\x1b[8m rounds\u202e, é 日本\n"))
        up to 3\x1b[8m rounds\u202e, é 日本\n
    """
    return "".join(
        each
        if each in {" ", *keep} or unicodedata.category(each)[0] not in "CZ"
        else each.encode("unicode_escape").decode()
        for each in text
    )


def run_command(command: Callable[[list[str]], object], arguments: Sequence[str]) -> int:
    """Run a command that may raise `MmareError`; returns 0 or the error's exit code.

    ``--debug`` anywhere among the arguments lets errors through with their traceback.

    Example:
        >>> run_command(lambda arguments: None, [])
        0
    """
    debug = DEBUG in arguments
    collect_seldom()
    try:
        command([argument for argument in arguments if argument != DEBUG])
    except MmareError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {visible(str(error), keep=NEW_LINE)}\n")
        return error.exit_code
    return 0
