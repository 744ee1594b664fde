"""``mmare-sim prepare``: data sets become federation folders.

What reads tables (pandas, scikit-learn) is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmare.errors import StudyError
from mmare.exchange import Split
from mmare.study import PromptMode
from sites.options import Cohort, Grouping, IxiTask, Mechanism, SplitScheme, SyntheticKind

if TYPE_CHECKING:
    from sites.federation import Prepared, SiteCounts

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Make a federation folder: study.toml and one folder per site.")

Out = Annotated[Path, typer.Option(help="Federation folder to write, whole or not at all.")]
Seed = Annotated[int, typer.Option(help="Of the split; also written as the study's seed.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a federation folder that is there already.")
]


@app.command(
    epilog="Example: mmare-sim prepare mmist --source ../shared/data/mmist --by hospital --out runs/mmist"
)
def mmist(  # noqa: PLR0913, PLR0917 - one parameter per flag
    source: Annotated[Path, typer.Option(help="Root of the release, or its folder datasets/ccRCC/Code.")],
    out: Out,
    by: Annotated[
        Grouping, typer.Option(help="Sites: TCGA and CPTAC, or TCGA's hospitals and CPTAC.")
    ] = Grouping.SOURCE,
    split: Annotated[
        SplitScheme, typer.Option(help="The release's test set, or 70/10/20 by label and presence.")
    ] = SplitScheme.STRATIFIED,
    cohort: Annotated[
        Cohort, typer.Option(help="All 618 patients, or the 617 of the thesis.")
    ] = Cohort.RELEASE,
    seed: Seed = 0,
    without: Annotated[
        list[str] | None, typer.Option(help="Modality to leave out, such as clinical; commas or repeat.")
    ] = None,
    min_patients: Annotated[
        int, typer.Option(help="Fewest patients of a hospital that is its own site; the rest is tcga-other.")
    ] = 30,
    prompt_mode: Annotated[
        PromptMode, typer.Option(help="Leave missing fields out of the prompt, or say that they are missing.")
    ] = PromptMode.OMIT,
    overwrite: Overwrite = False,
) -> None:
    """Turn the official MMIST-ccRCC release into a federation: CT, MRI, WSI and a clinical prompt."""
    from sites.mmist import prepare_mmist  # noqa: PLC0415 - slow, not for --help

    prepared = prepare_mmist(
        source,
        out,
        by,
        split,
        cohort,
        seed,
        _commas(without or []),
        min_patients,
        prompt_mode=prompt_mode,
        overwrite=overwrite,
    )
    _show(prepared)


@app.command(
    epilog="Example: mmare-sim prepare ixi --source data/IXI --task sex --with-clinical --seed 42 "
    "--mechanism mcar --missing-rate 0.4 --out runs/ixi-sex"
)
def ixi(  # noqa: PLR0913, PLR0917 - one parameter per flag
    source: Annotated[
        Path, typer.Option(help="Folder with IXI.xls and, in any sub-folders, IXI012-HH-1211-T1.nii.gz, ….")
    ],
    task: Annotated[IxiTask, typer.Option(help="What is predicted: sex, or epoch of the life span.")],
    out: Out,
    with_clinical: Annotated[
        bool, typer.Option("--with-clinical", help="Add the clinical prompt as a fifth modality.")
    ] = False,
    mechanism: Annotated[
        Mechanism | None, typer.Option(help="Take modalities away: completely at random (mcar).")
    ] = None,
    missing_rate: Annotated[
        float, typer.Option(help="Probability that a modality is taken away; one is always left.")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Of split and amputation; also the study's. 42 splits as the thesis did.")
    ] = 0,
    prompt_mode: Annotated[
        PromptMode, typer.Option(help="Leave missing fields out of the prompt, or say that they are missing.")
    ] = PromptMode.OMIT,
    keep_incomplete: Annotated[
        bool,
        typer.Option("--keep-incomplete", help="Subjects with any contrast, not only those with all four."),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn the IXI brain scans into a federation of their three hospitals; opens no image."""
    from sites.ixi import prepare_ixi  # noqa: PLC0415 - slow, not for --help

    prepared = prepare_ixi(
        source,
        out,
        task,
        with_clinical,
        seed,
        mechanism,
        missing_rate,
        prompt_mode=prompt_mode,
        complete=not keep_incomplete,
        overwrite=overwrite,
    )
    _show(prepared)


@app.command(epilog="Example: mmare-sim prepare synthetic --patients 200 --seed 0 --out runs/synthetic")
def synthetic(
    out: Out,
    kind: Annotated[
        SyntheticKind, typer.Option(help="What the hospitals hold: features, or NIfTI head phantoms.")
    ] = SyntheticKind.FEATURES,
    patients: Annotated[
        int | None, typer.Option(help="Per hospital; there are three. By default 200, of scans 40.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make three hospitals with different scanners and gaps, and features or scans with a known answer."""
    from sites.synthetic import prepare_synthetic  # noqa: PLC0415 - slow, not for --help

    _show(prepare_synthetic(kind, out=out, patients=patients, seed=seed, overwrite=overwrite))


@app.command(
    epilog="Example: mmare-sim prepare table --table heart.csv --id-column id --site-column hospital "
    "--label-column outcome --classes healthy,ill --modality exam=age,sex --modality lab=crp,ldl "
    "--categorical sex --missing-values '?,-9' --out runs/heart"
)
def table(  # noqa: PLR0913, PLR0917 - one parameter per flag
    table: Annotated[Path, typer.Option(help="CSV, TSV, Parquet or Excel file, one row per patient.")],
    out: Out,
    id_column: Annotated[str, typer.Option(help="Column with the patient id.")],
    site_column: Annotated[str, typer.Option(help="Column with the hospital.")],
    label_column: Annotated[str, typer.Option(help="Column with the class name.")],
    classes: Annotated[str, typer.Option(help="Class names in label order, with commas.")],
    modality: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COL,COL…", help="A modality: a group of columns; repeat."),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A modality: vectors by id (npz, csv, parquet); repeat."),
    ] = None,
    categorical: Annotated[
        list[str] | None, typer.Option(help="Columns that hold words; commas or repeat.")
    ] = None,
    missing_values: Annotated[
        str, typer.Option(help="Cells that mean missing, beside blank ones, with commas.")
    ] = "",
    split_column: Annotated[
        str | None, typer.Option(help="Column with train, val or test; else drawn by label and site.")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="Class of F1, precision and recall; of two classes the last.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Turn a table into a federation: groups of columns are modalities, one column names the site."""
    from sites.table import TableColumns, prepare_table  # noqa: PLC0415 - slow, not for --help

    columns = TableColumns(
        id=id_column,
        site=site_column,
        label=label_column,
        split=split_column,
        modalities={name: _commas([group]) for name, group in _named(modality or [], "--modality").items()},
        categorical=_commas(categorical or []),
    )
    prepared = prepare_table(
        table,
        out,
        columns,
        _commas([classes]),
        features={name: Path(file) for name, file in _named(features or [], "--features").items()},
        missing_values=_commas([missing_values]),
        positive=positive,
        seed=seed,
        overwrite=overwrite,
    )
    _show(prepared)


def _commas(words: Sequence[str]) -> list[str]:
    """Words given with commas, by repeating the flag, or both."""
    return [part.strip() for word in words for part in word.split(",") if part.strip()]


def _named(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """``NAME=VALUE`` pairs.

    Raises:
        StudyError: If one has no name or value, or a name occurs twice.
    """
    named: dict[str, str] = {}
    for pair in pairs:
        name, _, value = (part.strip() for part in pair.partition("="))
        if not name or not value:
            raise StudyError(f"{flag} is {pair!r}, expected NAME=VALUE")
        if name in named:
            raise StudyError(f"{flag} names {name!r} twice, expected each modality once")
        named[name] = value
    return named


def _show(prepared: Prepared) -> None:
    """Print what was written and what to type next."""
    console = Console(highlight=False)
    study = prepared.study
    modalities = [modality.name for modality in study.modalities]
    classes = escape(" / ".join(study.classes))
    view = Table(
        title=f"{escape(study.name)}: {classes} by split, share that has a modality",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in ("site", "patients", *Split, *modalities):
        view.add_column(escape(heading), justify="left" if heading == "site" else "right", overflow="fold")
    for site in prepared.sites:
        counts = ["/".join(str(site.patients[split, name]) for name in study.classes) for split in Split]
        view.add_row(site.id, str(site.n_patients), *counts, *(_share(site, name) for name in modalities))
    console.print(view)
    for note in prepared.notes:
        console.print(escape(f"- {note}"), soft_wrap=True)
    folder = shlex.quote(str(prepared.folder))
    run = shlex.quote(f"{prepared.folder}-run")
    console.print(f"Written to {escape(folder)}. Next:", soft_wrap=True)
    console.print(f"  mmare-sim run {escape(folder)} --out {escape(run)}", soft_wrap=True)


def _share(site: SiteCounts, modality: str) -> str:
    n_present = site.present[modality]
    return f"{100 * n_present / site.n_patients:.0f}%" if n_present else "-"
