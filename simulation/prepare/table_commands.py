"""``mmare-sim prepare table``: any table as a federation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mmare.errors import StudyError
from mmare.host.console import must_exist
from simulation.prepare.flags import (
    Drivers,
    Mechanisms,
    Out,
    Overwrite,
    Patterns,
    Rate,
    Seed,
    SiteMissing,
    Slope,
    missingness,
)
from simulation.prepare.option_values import commas, named
from simulation.prepare.summary import show
from sites.options import Pattern

if TYPE_CHECKING:
    from sites.datasets.table_outcome import TableOutcome

__all__ = ["EXAMPLE", "table"]

EXAMPLE: Final = (
    "Example: mmare-sim prepare table --table heart.csv --id-column id --site-column hospital "
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
    horizons: Annotated[
        list[str] | None, typer.Option(help="Times until which risks are judged; comma-separated.")
    ] = None,
    target_column: Annotated[
        str | None, typer.Option(help="Column with a number to predict, instead of a class.")
    ] = None,
    target_range: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="What it can be; by default from the lowest to the highest."),
    ] = None,
    target_unit: Annotated[str, typer.Option(help="Of the number.")] = "",
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
    keep_skewed: Annotated[
        bool,
        typer.Option(
            "--keep-skewed", help="Take no logarithms of columns with long upper tails; log in --columns may."
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
    """Turn a table into a federation: groups of columns are modalities, one column names the site.

    The study trains by the recipe 'table', for sites of any number and size.
    """
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
        other=_other(
            (label_column, classes, positive),
            (time_column, event_column, time_unit, follow_up, commas(horizons or [])),
            (target_column, target_range, target_unit),
        ),
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
        missing=missingness(mechanism, missing_rate, driver, slope, site_missing, pattern),
        overwrite=overwrite,
        delimiter=delimiter,
        encoding_of_text=encoding_of_text,
        drop_unlabelled=drop_unlabelled,
        drop_empty=drop_empty,
        allow_unmatched=allow_unmatched,
        keep_skewed=keep_skewed,
    )
    show(prepared)


def _other(
    of_class: tuple[str | None, ...],
    of_time: tuple[str | None, str | None, str, float | None, Sequence[str]],
    of_target: tuple[str | None, str | None, str],
) -> TableOutcome | None:
    """What is learned, where it is no class."""
    from sites.datasets.table_outcome import TargetColumn, TimeColumns

    (time, event, unit, follow_up, horizons), (target, ends, target_unit) = of_time, of_target
    found = {
        "class": all(of_class[:2]),
        "time": time is not None and event is not None,
        "target": target is not None,
    }
    wanted = [name for name, is_named in found.items() if is_named]
    stray = any(of_class) > found["class"] or (time is not None or event is not None) > found["time"]
    if len(wanted) != 1 or stray:
        raise StudyError(
            "what is learned is not clear: expected --label-column and --classes, --time-column and "
            "--event-column, or --target-column"
        )
    if time is not None and event is not None:
        return TimeColumns(time, event, unit, follow_up, _times(horizons))
    if target is not None:
        low, high = _ends(ends)
        return TargetColumn(target, low, high, target_unit)
    return None


def _times(texts: Sequence[str]) -> tuple[float, ...]:
    try:
        return tuple(map(float, texts))
    except ValueError:
        raise StudyError(f"--horizons is {','.join(texts)!r}, expected numbers such as 12,36") from None


def _ends(text: str | None) -> tuple[float | None, float | None]:
    if text is None:
        return None, None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise StudyError(f"--target-range is {text!r}, expected two numbers such as 0,100") from None
    return low, high
