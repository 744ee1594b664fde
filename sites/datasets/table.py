"""Any table as a federation: groups of columns become modalities, one column names the site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmare.errors import DataError, StudyError
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec, PrivacySpec
from mmare.study.study import Study
from sites.datasets.table_rows import check_classes, labelled, matched, nonempty
from sites.features import Vectors, load_features
from sites.federation import Prepared, SiteTables, check_target, site_id, write_federation
from sites.manifest import ID, LABEL, SPLIT, parse_labels, parse_splits
from sites.missing.amputate import take_away
from sites.missing.plan import Missingness
from sites.splits import three_way
from sites.table_file import read_table
from sites.tabular import TextTable, finite_number, unknown_column

__all__ = ["TableColumns", "prepare_table"]


@dataclass(frozen=True)
class TableColumns:
    """The meaning of a table's columns."""

    id: str  # unique patient id
    site: str  # name of the hospital
    label: str  # class name
    modalities: Mapping[str, Sequence[str]]  # columns by modality, in slot order
    categorical: Sequence[str] = ()  # columns of the modalities that hold words; the others hold numbers
    split: str | None = None  # train, val or test; without it the split is drawn


def prepare_table(  # noqa: PLR0913 - the flags of the command, one to one
    table: Path,
    out: Path,
    columns: TableColumns,
    classes: Sequence[str],
    *,
    features: Mapping[str, Path] | None = None,
    missing_values: Sequence[str] = (),
    positive: str | None = None,
    seed: int = 0,
    missing: Missingness = Missingness(),  # noqa: B008 - frozen; removes nothing
    overwrite: bool = False,
    delimiter: str | None = None,
    encoding_of_text: str = "utf-8",
    drop_unlabelled: bool = False,
    drop_empty: bool = False,
    allow_unmatched: bool = False,
) -> Prepared:
    """Write a table as a federation folder.

    A modality is present for a patient when at least one of its columns is. Numbers are kept (the study
    scales them by pooled moments); words are one-hot encoded over the levels of the whole table, in sorted
    order. A blank in a present modality is zero, and columns with such blanks get an indicator of them.

    Args:
        table: CSV, TSV, Parquet or Excel with one row per patient.
        features: Further modalities by name, as files for `load_features`.
        missing_values: Cells that mean missing, besides blank ones; numbers match in any spelling.
        positive: Class of binary F1; of two classes the last one by default.
        seed: Of the study and of the split, drawn 70/10/20 and stratified by label and site.
        missing: What to remove; mar may be driven by any column except id and label.
        delimiter: As of `read_table`, like ``encoding_of_text``.
        drop_unlabelled: Leave out rows without a label; they are an error otherwise.
        drop_empty: Leave out rows without any modality; they are an error otherwise.
        allow_unmatched: Take features files of which more than a tenth of the vectors match no patient.

    Raises:
        StudyError: If there is no modality, one is named twice, or classes and positive are inconsistent.
        DataError: If a column does not exist, a cell has the wrong type, a patient occurs twice or has no
            modality, nobody has a class, a features file is unusable, or ``out`` cannot be replaced.
    """
    further = dict(features or {})
    if len(set(classes)) < max(2, len(classes)):
        raise StudyError(f"--classes is {','.join(classes)!r}, expected at least two different names")
    _check_names(columns, further)
    check_target(out, overwrite=overwrite)
    content = _blank(read_table(table, delimiter, encoding_of_text), missing_values)
    _check_columns(content, columns)
    everyone = content.require_unique(columns.id)
    content, notes = labelled(content, columns.label, drop=drop_unlabelled)
    ids = content.require(columns.id)
    homes = dict(zip(ids, content.require(columns.site), strict=True))
    vectors: dict[str, Vectors] = {
        name: _encode(content, ids, group, set(columns.categorical))
        for name, group in columns.modalities.items()
    }
    for name, path in further.items():
        vectors[name], unmatched = matched(
            path, load_features(path), content, homes, everyone, allow=allow_unmatched
        )
        notes += unmatched
    content, dropped = nonempty(content, ids, vectors, drop=drop_empty)
    ids, places = content.require(columns.id), content.require(columns.site)
    labels = parse_labels(content, columns.label, classes)
    check_classes(table, labels, classes)
    study = _study(table.stem, classes, positive, vectors, seed)
    if columns.split is None:
        detailed = [f"{label}|{place}" for label, place in zip(labels, places, strict=True)]
        splits = three_way([detailed, labels], seed)
    else:
        splits = parse_splits(content, columns.split)
    rows = pd.DataFrame({ID: ids, LABEL: labels, SPLIT: splits, "site": places})
    sites = [
        SiteTables(str(name), group[[ID, LABEL, SPLIT]], vectors)
        for name, group in rows.groupby("site", sort=True)
    ]
    covariates = content.frame.drop(columns=[columns.id, columns.label]).set_index(pd.Index(ids))
    taken = take_away(sites, study, missing, covariates)
    prepared = write_federation(out, study, taken.sites, overwrite, amputation=taken.amputation)
    return replace(prepared, notes=(*notes, *dropped, *prepared.notes, *taken.notes))


def _check_names(columns: TableColumns, features: Iterable[str]) -> None:
    """Refuse contradictory options before any file is read."""
    names = [*columns.modalities, *features]
    if not names:
        raise StudyError(
            "no modality: expected at least one --modality NAME=column,… or --features NAME=FILE"
        )
    for name in names:
        if site_id(name) != name.lower().replace("_", "-"):
            raise StudyError(f"modality {name!r}: expected a name of letters, digits, dash and underscore")
        if names.count(name) > 1:
            raise StudyError(
                f"modality {name!r} is given by --modality and by --features, expected one of them"
            )
    reserved = {columns.id: "id", columns.site: "site", columns.label: "label", columns.split: "split"}
    for name, group in columns.modalities.items():
        if not group:
            raise StudyError(f"modality {name!r} has no column, expected at least one")
        for column in group:
            if column in reserved:
                raise StudyError(
                    f"modality {name!r}: column {column!r} is the {reserved[column]} column, expected another"
                )
            if list(group).count(column) > 1:
                raise StudyError(f"modality {name!r} names column {column!r} twice")


def _check_columns(table: TextTable, columns: TableColumns) -> None:
    grouped = [column for group in columns.modalities.values() for column in group]
    split = [] if columns.split is None else [columns.split]
    for column in [columns.id, columns.site, columns.label, *split, *grouped]:
        if column not in table.frame.columns:
            raise unknown_column(table.source, column, table.frame.columns)
    for column in columns.categorical:
        if column not in grouped:
            raise DataError(
                f"{table.source}: categorical column {column!r} is in no modality, expected one of "
                f"{', '.join(grouped)}"
            )
    if table.frame.empty:
        raise DataError(f"{table.source}: no patient, so no site is left; expected at least one row")


def _blank(table: TextTable, missing_values: Sequence[str]) -> TextTable:
    """The table with cells that mean missing blanked."""
    words = set(missing_values)
    numbers = {number for word in words if (number := finite_number(word)) is not None}

    def is_missing(cell: object) -> bool:
        return isinstance(cell, str) and (cell in words or finite_number(cell) in numbers)

    marked = table.frame.map(is_missing).astype(bool) if words else table.frame.isna()
    return TextTable(table.source, table.frame.mask(marked), table.lines)


def _encode(
    table: TextTable, ids: Sequence[str], group: Sequence[str], categorical: set[str]
) -> dict[str, NDArray[np.float32]]:
    """One group of columns as vectors by patient, without patients whose cells are all blank."""
    cells = {column: table.column(column) for column in group}
    present = [row for row in range(len(ids)) if any(cells[column][row] is not None for column in group)]
    if not present:
        raise DataError(f"{table.source}: the columns {', '.join(group)} are blank in every row")
    parts: list[NDArray[np.float32]] = []
    for column in group:
        kept = {row: cells[column][row] for row in present}
        parts.extend(_one_hot(kept) if column in categorical else [_numeric(table, column, kept)])
        blank = np.array([cell is None for cell in kept.values()], dtype=np.float32)
        if blank.any():
            parts.append(blank)
    matrix = np.stack(parts, axis=1)  # (n_present, width)
    return {ids[row]: vector for row, vector in zip(present, matrix, strict=True)}


def _one_hot(cells: Mapping[int, str | None]) -> list[NDArray[np.float32]]:
    """One 0/1 column per level, in sorted order; a blank has no level."""
    levels = sorted({cell for cell in cells.values() if cell is not None})
    return [np.array([cell == level for cell in cells.values()], dtype=np.float32) for level in levels]


def _numeric(table: TextTable, column: str, cells: Mapping[int, str | None]) -> NDArray[np.float32]:
    """The cells as numbers; a blank is zero."""
    numbers = np.zeros(len(cells), dtype=np.float32)
    for position, (row, cell) in enumerate(cells.items()):
        number = 0.0 if cell is None else finite_number(cell)
        if number is None or abs(number) > float(np.finfo(np.float32).max):
            raise DataError(
                f"{table.where(row)}: {column} is {cell!r}, expected a finite number; name the column in "
                "--categorical if it holds words, or the cell in --missing-values if it means missing"
            )
        numbers[position] = number
    return numbers


def _study(
    name: str, classes: Sequence[str], positive: str | None, vectors: Mapping[str, Vectors], seed: int
) -> Study:
    if positive is None and len(classes) == 2:  # noqa: PLR2004 - binary metrics need two classes
        positive = classes[-1]
    modalities = tuple(
        ModalitySpec(modality, Kind.FEATURES, len(next(iter(held.values()))), scaling=Scaling.ZSCORE)
        for modality, held in vectors.items()
    )
    return Study(name, tuple(classes), modalities, positive, seed, privacy=PrivacySpec(min_count=0))
