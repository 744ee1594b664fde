"""Options that several commands of ``mmare-sim prepare`` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mmare.study.choices import PromptMode
from sites.missing.plan import Missingness
from sites.options import Mechanism, Pattern

__all__ = [
    "Drivers",
    "Mechanisms",
    "Out",
    "Overwrite",
    "Patterns",
    "Prompts",
    "Rate",
    "Seed",
    "SiteMissing",
    "Slope",
    "Without",
    "missingness",
]

Out = Annotated[Path, typer.Option(help="Federation folder to write, completely or not at all.")]
Seed = Annotated[int, typer.Option(help="Seed of the split, and of the study.")]
Without = Annotated[
    list[str] | None,
    typer.Option(help="Modality to leave out, such as clinical; comma-separated or repeated."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing federation folder.")]
Prompts = Annotated[
    PromptMode, typer.Option(help="Leave missing fields out of the prompt, or say that they are missing.")
]
Mechanisms = Annotated[
    Mechanism | None,
    typer.Option(
        help="Remove modalities: at random (mcar), by a column of the table (mar), or by the label or what "
        "the modality shows (mnar)."
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(help="Mean probability that a modality is removed; one always remains."),
]
Drivers = Annotated[
    list[str] | None,
    typer.Option(help="For mar a column; for mnar pc1, the first principal component, or label."),
]
Slope = Annotated[
    float | None,
    typer.Option(help="For mar and mnar: logit per standard deviation of the driver; 2 by default."),
]
SiteMissing = Annotated[
    list[str] | None,
    typer.Option(metavar="SITE=MECHANISM:RATE", help="Other mechanism, or only RATE, at a site; repeatable."),
]
Patterns = Annotated[
    Pattern, typer.Option(help="Exclusive: every site lacks a modality that another site keeps.")
]


def missingness(
    mechanism: Mechanism | None,
    rate: float | None,
    drivers: Sequence[str] | None,
    slope: float | None,
    sites: Sequence[str] | None,
    pattern: Pattern = Pattern.NATURAL,
) -> Missingness:
    """What these options remove."""
    return Missingness(mechanism, rate, tuple(drivers or ()), slope, tuple(sites or ()), pattern)
