"""``mmare-sim extend``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmare.host.console import must_exist

__all__ = ["extend"]


def extend(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    modality: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PATH",
            help="A new modality: a table of vectors by patient_id, or a federation that has it; repeat.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Federation folder to make, for mmare-sim run.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that train the new blocks alone.")] = 10,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value over the study; repeat.")
    ] = None,
) -> None:
    """Let a modality join: slots grow, and patients without it are predicted as before, bit for bit."""
    must_exist(run, "the folder of a finished run")
    from simulation.prepare.extend import extend_run
    from simulation.prepare.option_values import named

    paths = {name: Path(text) for name, text in named(modality, "--modality").items()}
    found = extend_run(run, paths, out, rounds, settings or ())
    for line in found.graft.words():
        typer.echo(line)
    for name in paths:
        has = ", ".join(
            f"{site} {counts[name]}" for site, counts in sorted(found.counts.items()) if counts[name]
        )
        typer.echo(f"{name}: {has}; {found.strangers[name]} vectors of nobody")
    typer.echo(f"federation: {out}\nnext: mmare-sim run {out} --out RUN")
