"""``release``: of both `mmare-server` and `mmare-sim`, whose runs are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmare.host.console import must_exist

__all__ = ["extend", "release"]


def release(  # noqa: PLR0913 - a command line's options
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="Package to make: a folder, or a zip if it ends in .zip.")],
    encoding: Annotated[
        Path | None,
        typer.Option(help="How tables became vectors; by default encoding.json beside the run's study."),
    ] = None,
    sensitivity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Call positive so that at least this share of positives is found."),
    ] = None,
    specificity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Call positive so that at least this share of negatives is not."),
    ] = None,
    *,
    youden: Annotated[
        bool, typer.Option("--youden", help="Call positive where sensitivity plus specificity is largest.")
    ] = False,
    card: Annotated[
        Path | None, typer.Option(help="A TOML file with what only people know: intended_use, licence, …")
    ] = None,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Add the model as an ONNX graph, compared on every presence pattern."),
    ] = False,
    monai_bundle: Annotated[
        Path | None, typer.Option(help="Also make this folder: a MONAI bundle around the package.")
    ] = None,
) -> None:
    """Make a model package: weights, study, how inputs are encoded, test results, card; under one digest.

    Probabilities are calibrated, and the operating point chosen, on the validation rows of all sites, and
    tested on their test rows, from sums. Hospitals check the package with mmare-site install. What the run
    does not tell is marked as not stated.
    """
    must_exist(run, "the folder of a finished run")
    from server.release.decide import point_rule
    from server.release.release import release_model

    rule = point_rule(sensitivity, specificity, youden=youden)
    made = release_model(run, out, encoding=encoding, card=card, rule=rule, onnx=onnx, bundle=monai_bundle)
    typer.echo(f"package: {out}\ndigest: {made.digest}")
    if monai_bundle is not None:
        typer.echo(f"MONAI bundle: {monai_bundle}")
    for part, why in made.facts.not_stated.items():
        typer.echo(f"not stated: {part.replace('_', ' ')} ({why})")


def extend(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    modality: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=KIND:WIDTH[:ENCODER]", help="A new modality, such as rna=features:60; repeat."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make, for mmare-server start or submit.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that train the new blocks alone.")] = 10,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value over the study; repeat.")
    ] = None,
) -> None:
    """Make a study in which a modality joins a finished run: patients without it are predicted as before.

    Hospitals install start.zip and approve the study; who has the modality adds it to site.toml, the others
    change nothing.
    """
    must_exist(run, "the folder of a finished run")
    from mmare.study.study import STUDY_FILE
    from server.release.extend import extend_study

    pairs = dict(text.partition("=")[::2] for text in modality)
    study, graft = extend_study(run, pairs, out, rounds, settings or ())
    for line in graft.words():
        typer.echo(line)
    typer.echo(f"study: {out / STUDY_FILE}, hash {study.hash}\nfor hospitals to install: {out / 'start.zip'}")
