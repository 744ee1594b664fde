"""``mmare-site``: the hospital's side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmare.console import run_command
from mmare.study import load_study
from sites.config import load_site

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The hospital's side. Errors are one sentence and an exit code; --debug shows the traceback.",
)


@app.callback()
def _group() -> None:
    """Keeps ``check`` a command of its own while there is only one."""


@app.command(epilog="Example: mmare-site check runs/mmist/tcga/site.toml --study runs/mmist/study.toml")
def check(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    study: Annotated[
        Path | None,
        typer.Option(help="The study; by default study.toml of the federation folder around the site."),
    ] = None,
) -> None:
    """Read everything a study would use of this site and say what is there; nothing leaves."""
    from client.check import check_site  # noqa: PLC0415 - pandas and torch take seconds

    config = load_site(site)
    found = load_study(study or config.folder.parent / "study.toml")
    Console().print(check_site(config, found), highlight=False)


def main() -> None:
    """The console script."""
    sys.exit(run_command(lambda arguments: app(arguments, standalone_mode=True), sys.argv[1:]))
