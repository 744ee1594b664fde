"""``release``: of both `mmare-server` and `mmare-sim`, whose runs are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmare.host.console import must_exist

__all__ = ["release"]


def release(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Package to make: a folder, or a zip if it ends in .zip.")],
    encoding: Annotated[
        Path | None,
        typer.Option(help="How tables became vectors; by default encoding.json beside the run's study."),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="A TOML file with what only people know: intended_use, licence, …")
    ] = None,
) -> None:
    """Make a model package: weights, study, how inputs are encoded, test results, card; under one digest.

    Hospitals check it with mmare-site install. What the run does not tell is marked as not stated.
    """
    must_exist(run, "the folder of a finished run")
    from server.release.release import release_model

    made = release_model(run, out, encoding=encoding, card=card)
    typer.echo(f"package: {out}\ndigest: {made.digest}")
    for part, why in made.facts.not_stated.items():
        typer.echo(f"not stated: {part.replace('_', ' ')} ({why})")
