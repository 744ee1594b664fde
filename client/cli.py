"""``mmare-site``: the hospital's side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from client.ingest.summary import converted_table
from mmare.console import run_command
from mmare.errors import RunError
from mmare.study import load_study
from sites.config import load_site

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The hospital's side. Errors are one sentence and an exit code; --debug shows the traceback.",
)


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


@app.command(epilog="Example: mmare-site convert /export/pacs --out scans")
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder that a scanner or an archive exported; only read.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for one NIfTI per usable series and report.json.")],
) -> None:
    """Turn a folder of DICOM files into volumes; what cannot be used is named with its reason.

    Exit code 1 when no series could be used at all.
    """
    from client.ingest.convert import convert_folder  # noqa: PLC0415 - pydicom and SimpleITK take a moment

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console
    ) as bar:
        task = bar.add_task("scan", total=None)

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        report = convert_folder(source, out, progress=tell)
    Console().print(converted_table(report), highlight=False)
    typer.echo(f"report: {out / 'report.json'}")
    if not report.converted:
        raise RunError(
            f"{source}: no usable series among {report.n_files} files; {out / 'report.json'} says why"
        )


def main() -> None:
    """The console script."""
    sys.exit(run_command(lambda arguments: app(arguments, standalone_mode=True), sys.argv[1:]))
