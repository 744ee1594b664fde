"""``mmare-sim prepare``: turn data sets into federation folders.

pandas and scikit-learn are imported inside the commands, so that ``--help`` is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mmare.errors import StudyError
from mmare.host.console import must_exist
from mmare.study.choices import Kind, PromptMode
from simulation.prepare.embed_first import embedding_first
from simulation.prepare.option_values import commas, named, number
from simulation.prepare.summary import show
from sites.missing.plan import Missingness
from sites.options import (
    Cohort,
    Grouping,
    IxiTask,
    Mechanism,
    Pattern,
    SplitScheme,
    SyntheticKind,
    SyntheticPattern,
)

if TYPE_CHECKING:
    from sites.datasets.table_outcome import TimeColumns

__all__ = ["app"]

_MED3D = "med3d-resnet18"

app = typer.Typer(no_args_is_help=True, help="Make a federation folder: study.toml and one folder per site.")

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
    without: Without = None,
    min_patients: Annotated[
        int, typer.Option(help="Fewest patients of a hospital with its own site; the others form tcga-other.")
    ] = 30,
    prompt_mode: Prompts = PromptMode.OMIT,
    mechanism: Mechanisms = None,
    missing_rate: Rate = None,
    driver: Drivers = None,
    slope: Slope = None,
    site_missing: SiteMissing = None,
    pattern: Patterns = Pattern.NATURAL,
    overwrite: Overwrite = False,
) -> None:
    """Turn the official MMIST-ccRCC release into a federation: CT, MRI, WSI and a clinical prompt."""
    must_exist(source, "the MMIST-ccRCC release")
    from sites.datasets.mmist import prepare_mmist

    missing = _missing(mechanism, missing_rate, driver, slope, site_missing, pattern)
    with embedding_first(out, Console(stderr=True)) as embed:
        prepared = prepare_mmist(
            source,
            out,
            by,
            split,
            cohort,
            seed,
            commas(without or []),
            min_patients,
            prompt_mode=prompt_mode,
            missing=missing,
            overwrite=overwrite,
            embed=embed,
        )
    show(prepared)


@app.command(
    epilog="Example: mmare-sim prepare ixi --source data/IXI --task sex --with-clinical --seed 42 "
    "--mechanism mcar --missing-rate 0.4 --out runs/ixi-sex"
)
def ixi(  # noqa: PLR0913, PLR0917 - one parameter per flag
    source: Annotated[
        Path, typer.Option(help="Folder with IXI.xls and, in any subfolders, IXI012-HH-1211-T1.nii.gz, ….")
    ],
    task: Annotated[IxiTask, typer.Option(help="What is predicted: sex, or epoch of the life span.")],
    out: Out,
    with_clinical: Annotated[
        bool, typer.Option("--with-clinical", help="Add the clinical prompt as a fifth modality.")
    ] = False,
    mechanism: Mechanisms = None,
    missing_rate: Rate = None,
    driver: Drivers = None,
    slope: Slope = None,
    site_missing: SiteMissing = None,
    pattern: Patterns = Pattern.NATURAL,
    seed: Annotated[
        int, typer.Option(help="Seed of split, amputation and study; 42 splits as the thesis did.")
    ] = 0,
    prompt_mode: Prompts = PromptMode.OMIT,
    keep_incomplete: Annotated[
        bool,
        typer.Option(
            "--keep-incomplete", help="Take subjects with any contrast, not only those with all four."
        ),
    ] = False,
    encoder: Annotated[str, typer.Option(help="Encoder of the four contrasts.")] = _MED3D,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the encoder's weights, for mnar on pc1; by default ./weights, if it exists."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn the IXI brain scans into a federation of their three hospitals.

    Images are opened for mnar on pc1 only, which embeds all scans first.
    """
    must_exist(source, "a folder with IXI.xls and the IXI volumes")
    from sites.datasets.ixi import prepare_ixi

    missing = _missing(mechanism, missing_rate, driver, slope, site_missing, pattern)
    _check_encoder(encoder)
    if weights is None and Path("weights").is_dir():
        weights = Path("weights")
    with embedding_first(out, Console(stderr=True), weights) as embed:
        prepared = prepare_ixi(
            source,
            out,
            task,
            with_clinical,
            seed,
            missing,
            prompt_mode=prompt_mode,
            complete=not keep_incomplete,
            encoder=encoder,
            overwrite=overwrite,
            embed=embed,
        )
    show(prepared)


@app.command(epilog="Example: mmare-sim prepare synthetic --patients 200 --seed 0 --out runs/synthetic")
def synthetic(  # noqa: PLR0913, PLR0917 - one parameter per flag
    out: Out,
    kind: Annotated[
        SyntheticKind, typer.Option(help="Data of the hospitals: features, or NIfTI head phantoms.")
    ] = SyntheticKind.FEATURES,
    patients: Annotated[
        int | None, typer.Option(help="Patients per hospital; by default 200, of scans 130.")
    ] = None,
    sites: Annotated[int | None, typer.Option(help="Hospitals; by default three.")] = None,
    pattern: Annotated[
        SyntheticPattern,
        typer.Option(
            help="The hospitals' own gaps, no gaps, every hospital without a modality that another keeps, or "
            "flair at the first hospital only."
        ),
    ] = SyntheticPattern.NATURAL,
    signal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT", help="Weight of a modality's cause in the disease; by default 1."
        ),
    ] = None,
    without: Without = None,
    mechanism: Mechanisms = None,
    missing_rate: Rate = None,
    driver: Drivers = None,
    slope: Slope = None,
    site_missing: SiteMissing = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make hospitals with different scanners and gaps, and features or scans with a known answer."""
    from sites.datasets.synthetic import prepare_synthetic

    missing = _missing(mechanism, missing_rate, driver, slope, site_missing)
    weights = {name: number(text, "--signal") for name, text in named(signal or [], "--signal").items()}
    with embedding_first(out, Console(stderr=True)) as embed:
        prepared = prepare_synthetic(
            kind,
            out=out,
            patients=patients,
            seed=seed,
            n_sites=sites,
            pattern=pattern,
            signal=weights,
            without=commas(without or []),
            missing=missing,
            overwrite=overwrite,
            embed=embed,
        )
    show(prepared)


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
    label_column: Annotated[str | None, typer.Option(help="Column with the class name.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class names in label order, comma-separated.")] = None,
    time_column: Annotated[
        str | None, typer.Option(help="Column with the time to an event, instead of a class.")
    ] = None,
    event_column: Annotated[
        str | None,
        typer.Option(help="Column with 1 where the event was seen, 0 where not."),
    ] = None,
    time_unit: Annotated[str, typer.Option(help="Of the times.")] = "months",
    follow_up: Annotated[
        float | None, typer.Option(help="End of the time that is modelled; by default the longest time.")
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COL,COL…",
            help="A modality: columns or patterns such as ENSG*; double quotes around a name with a comma; "
            "repeatable.",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A modality: vectors by id (npz, csv, parquet); repeatable."),
    ] = None,
    categorical: Annotated[
        list[str] | None, typer.Option(help="Categorical columns; comma-separated or repeated.")
    ] = None,
    columns: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with further modalities by name, pattern or prefix, and type, missing values, "
            "limits and log of their columns."
        ),
    ] = None,
    encoding: Annotated[
        Path | None,
        typer.Option(
            help="encoding.json of an earlier table, instead of --modality: vectors come out alike."
        ),
    ] = None,
    decimal: Annotated[str, typer.Option(help="What separates decimals: a point or a comma.")] = ".",
    missing_values: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CELL|COL=CELL,…",
            help="Cells that mean missing, besides blanks, in all columns of modalities or in one; "
            "comma-separated or repeated.",
        ),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Of a text table: a character or tab; by default it is found.")
    ] = None,
    encoding_of_text: Annotated[
        str, typer.Option(help="Of a text table, such as cp1252 or latin-1.")
    ] = "utf-8",
    drop_unlabelled: Annotated[
        bool, typer.Option("--drop-unlabelled", help="Leave out rows without a label, and count them.")
    ] = False,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave out rows without any modality, and count them.")
    ] = False,
    allow_unmatched: Annotated[
        bool,
        typer.Option(
            "--allow-unmatched", help="Take vectors of which more than a tenth match no row of the table."
        ),
    ] = False,
    split_column: Annotated[
        str | None, typer.Option(help="Column with train, val or test; by default drawn by label and site.")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="Class of F1, precision and recall; by default the last of two.")
    ] = None,
    mechanism: Mechanisms = None,
    missing_rate: Rate = None,
    driver: Drivers = None,
    slope: Slope = None,
    site_missing: SiteMissing = None,
    pattern: Patterns = Pattern.NATURAL,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Turn a table into a federation: groups of columns are modalities, one column names the site."""
    must_exist(table, "a table")
    from mmare.study.encoding import load_encoding
    from sites.datasets.table import TableColumns, prepare_table
    from sites.datasets.table_columns import ColumnsFile, load_columns

    if decimal not in {".", ","}:
        raise StudyError(f"--decimal is {decimal!r}, expected . or ,")
    meaning = TableColumns(
        id=id_column,
        site=site_column,
        label=label_column or "",
        times=_times((label_column, classes, positive), time_column, event_column, time_unit, follow_up),
        split=split_column,
        modalities={name: commas([group]) for name, group in named(modality or [], "--modality").items()},
        categorical=commas(categorical or []),
    )
    prepared = prepare_table(
        table,
        out,
        meaning,
        commas([classes or ""]),
        features={name: Path(file) for name, file in named(features or [], "--features").items()},
        spec=ColumnsFile() if columns is None else load_columns(columns),
        encoding=None if encoding is None else load_encoding(encoding),
        decimal=decimal,
        missing_values=commas(missing_values or []),
        positive=positive,
        seed=seed,
        missing=_missing(mechanism, missing_rate, driver, slope, site_missing, pattern),
        overwrite=overwrite,
        delimiter=delimiter,
        encoding_of_text=encoding_of_text,
        drop_unlabelled=drop_unlabelled,
        drop_empty=drop_empty,
        allow_unmatched=allow_unmatched,
    )
    show(prepared)


def _times(
    of_class: tuple[str | None, ...], time: str | None, event: str | None, unit: str, follow_up: float | None
) -> TimeColumns | None:
    """The columns of a time and an event, where no class is learned."""
    from sites.datasets.table_outcome import TimeColumns

    if time is not None and event is not None and not any(of_class):
        return TimeColumns(time, event, unit, follow_up)
    if all(of_class[:2]) and time is event is None:
        return None
    raise StudyError(
        "what is learned is not clear: expected --label-column and --classes, or --time-column and "
        "--event-column"
    )


def _missing(
    mechanism: Mechanism | None,
    rate: float | None,
    drivers: Sequence[str] | None,
    slope: float | None,
    sites: Sequence[str] | None,
    pattern: Pattern = Pattern.NATURAL,
) -> Missingness:
    return Missingness(mechanism, rate, tuple(drivers or ()), slope, tuple(sites or ()), pattern)


def _check_encoder(name: str) -> None:
    """Raise `StudyError` for an encoder that cannot encode brain scans."""
    if name == _MED3D:  # the registry takes seconds to import
        return
    from client.encoders.registry import ENCODERS
    from sites.datasets.ixi import WIDTH

    fits = {key for key, entry in ENCODERS.items() if entry.kind is Kind.VOLUME and entry.width == WIDTH}
    known = sorted(key for key in fits if not ENCODERS[key].slides)
    if name not in known:
        raise StudyError(f"--encoder is {name!r}, expected one of {', '.join(known)}")
