"""``mmare-server``: the coordinator's side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmare.console import run_command
from server.status import run_status

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The coordinator's side. Errors are one sentence and an exit code; --debug shows the traceback.",
)


@app.callback()
def _group() -> None:
    """Keeps ``status`` a command of its own while there is only one."""


@app.command(epilog="Example: mmare-server status runs/mmist-fed")
def status(run: Annotated[Path, typer.Argument(help="Run folder, of a run under way or over.")]) -> None:
    """State, rounds and sites of a run, from its journal."""
    Console().print(run_status(run), highlight=False)


def main() -> None:
    """The console script."""
    sys.exit(run_command(lambda arguments: app(arguments, standalone_mode=True), sys.argv[1:]))
