"""Any table as a federation: groups of columns become modalities, one column names the site."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from mmare.errors import DataError, StudyError
from mmare.study.choices import Kind, Scaling
from mmare.study.encoding import Encoding
from mmare.study.specs import ModalitySpec
from mmare.study.study import Study
from sites.datasets.table_columns import ColumnsFile, Group, choose_columns, learn, level_notes, log_notes
from sites.datasets.table_lessons import train_notes
from sites.datasets.table_outcome import ClassColumn, TableOutcome
from sites.datasets.table_rows import labelled, matched, nonempty
from sites.encoding import encode
from sites.features import Vectors, load_features
from sites.federation import SIMULATED, Prepared, SiteTables, check_target, site_id, write_federation
from sites.manifest import ID, SPLIT, parse_splits
from sites.missing.amputate import take_away
from sites.missing.plan import Missingness
from sites.numbers import cells_of, not_available, parse
from sites.splits import three_way
from sites.table_file import read_table
from sites.tabular import TextTable, did_you_mean, unknown_column

__all__ = ["RECIPE", "TableColumns", "prepare_table"]

RECIPE: Final = "table"  # of `mmare.study.recipes`


@dataclass(frozen=True)
class TableColumns:
    """The meaning of a table's columns."""

    id: str  # unique patient id
    site: str  # name of the hospital
    label: str  # class name; unused with ``other``
    modalities: Mapping[str, Sequence[str]]  # columns or patterns of them by modality, in slot order
    categorical: Sequence[str] = ()  # columns of the modalities that hold words; the others hold numbers
    split: str | None = None  # train, val or test; without it the split is drawn
    other: TableOutcome | None = None  # what is learned instead of a class

    @property
    def reserved(self) -> dict[str, str]:
        """What each column means that no modality may hold."""
        outcome = self.other.columns if self.other else {self.label: "label"}
        named = {self.id: "id", self.site: "site", **outcome}
        return named if self.split is None else named | {self.split: "split"}


def prepare_table(  # noqa: PLR0913 - the flags of the command, one to one
    table: Path,
    out: Path,
    columns: TableColumns,
    classes: Sequence[str] = (),
    *,
    features: Mapping[str, Path] | None = None,
    spec: ColumnsFile = ColumnsFile(),  # noqa: B008 - frozen; says nothing
    encoding: Encoding | None = None,
    decimal: str = ".",
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
    keep_skewed: bool = False,
) -> Prepared:
    """Write a table as a federation folder.

    A modality is present for a patient when at least one of its columns is. Numbers are kept (the study
    scales them by pooled moments), those of columns with a long upper tail as logarithms; words are one-hot
    encoded over the levels of the whole table, in sorted order. A blank is no number, and columns with
    blanks where their modality is present get an indicator of them.

    Args:
        table: CSV, TSV, Parquet or Excel with one row per patient.
        features: Further modalities by name, as files for `load_features`.
        spec: Further groups of columns, and what is done with a column.
        encoding: Of an earlier table, instead of groups of columns: vectors come out alike.
        decimal: What separates decimals in text files, ``.`` or ``,``.
        missing_values: Cells that mean missing, besides blank ones; numbers match in any spelling. Plain ones
            are of every column but id, site, label and split, ``column=cell`` of one column.
        positive: Class of binary F1; of two classes the last one by default.
        seed: Of the study and of the split, drawn 70/10/20 and stratified by class or event, and site.
        missing: What to remove; mar may be driven by any column except id and label.
        delimiter: As of `read_table`, like ``encoding_of_text``.
        drop_unlabelled: Leave out rows without a label; they are an error otherwise.
        drop_empty: Leave out rows without any modality; they are an error otherwise.
        allow_unmatched: Take features files of which more than a tenth of the vectors match no patient.
        keep_skewed: Take no logarithms but those that ``spec`` asks for.

    Raises:
        StudyError: If there is no modality, one is named twice, or the outcome makes no study.
        DataError: If a column does not exist, a cell has the wrong type, a patient occurs twice or has no
            modality, nobody has a class, a features file is unusable, or ``out`` cannot be replaced.
    """
    further = dict(features or {})
    outcome: TableOutcome = columns.other or ClassColumn(columns.label, classes, positive)
    _check_names(columns, spec, encoding, further)
    check_target(out, overwrite=overwrite)
    content = read_table(table, delimiter, encoding_of_text)
    groups = _groups(content, columns, spec)
    _check_columns(content, replace(columns, modalities=groups))
    codes = _missing_by_column(content, columns, missing_values)
    content = _blank(content, columns.reserved, codes)
    everyone = content.require_unique(columns.id)
    content, notes = labelled(content, outcome.columns, drop=drop_unlabelled)
    ids = content.require(columns.id)
    homes = dict(zip(ids, content.require(columns.site), strict=True))
    notes += [
        f"{columns.site}: {name!r} is a site; --missing-values {columns.site}={name} makes blanks of it"
        for name in sorted(filter(not_available, set(homes.values())))
    ]
    if encoding is None:
        encoding = learn(
            content, groups, spec, columns.categorical, codes, decimal=None if keep_skewed else decimal
        )
    encoded = encode(encoding, content, decimal, codes, outcome.problems(content))
    notes += level_notes(content, encoding, codes) + log_notes(encoding, spec, groups)
    vectors: dict[str, Vectors] = {
        name: {ids[row]: part.matrix[row] for row in np.flatnonzero(part.present).tolist()}
        for name, part in encoded.items()
    }
    for name, path in further.items():
        vectors[name], unmatched = matched(
            path, load_features(path), content, homes, everyone, allow=allow_unmatched
        )
        notes += unmatched
    content, dropped = nonempty(content, ids, vectors, drop=drop_empty)
    ids, places = content.require(columns.id), content.require(columns.site)
    outcomes, strata, settings = outcome.read(content)
    study = Study(
        table.stem,
        modalities=_modalities(encoding, {name: vectors[name] for name in further}),
        seed=seed,
        **{"privacy": SIMULATED, **settings},
    )
    study = study.override([f"training.recipe={RECIPE}"])
    if columns.split is None:
        detailed = [f"{stratum}|{place}" for stratum, place in zip(strata, places, strict=True)]
        splits = three_way([detailed, strata], seed)
    else:
        splits = parse_splits(content, columns.split)
    rows = pd.DataFrame({ID: ids, **outcomes, SPLIT: splits, "site": places})
    sites = [
        SiteTables(str(name), group[[ID, *outcomes, SPLIT]], vectors)
        for name, group in rows.groupby("site", sort=True)
    ]
    covariates = _covariates(content, columns, codes, missing.drivers, decimal)
    taken = take_away(sites, study, missing, covariates)
    prepared = write_federation(
        out,
        study,
        taken.sites,
        overwrite,
        amputation=taken.amputation,
        encoding=encoding if encoding.modalities else None,
    )
    lessons = train_notes(encoding, vectors, dict(zip(ids, splits, strict=True)))
    return replace(prepared, notes=(*notes, *dropped, *lessons, *prepared.notes, *taken.notes))


def _modalities(encoding: Encoding, further: Mapping[str, Vectors]) -> tuple[ModalitySpec, ...]:
    """Of columns, then of vectors that came as files."""
    widths = {name: encoding.width(name) for name in encoding.modalities}
    widths |= {name: len(next(iter(vectors.values()))) for name, vectors in further.items()}
    return tuple(
        ModalitySpec(name, Kind.FEATURES, width, scaling=Scaling.ZSCORE) for name, width in widths.items()
    )


def _check_names(
    columns: TableColumns, spec: ColumnsFile, encoding: Encoding | None, features: Iterable[str]
) -> None:
    """Refuse contradictory options before any file is read."""
    if encoding is not None and (columns.modalities or columns.categorical or spec != ColumnsFile()):
        raise StudyError("--encoding names the columns, expected no --modality, --categorical or --columns")
    for name in columns.modalities:
        if name in spec.modality:
            raise StudyError(f"modality {name!r} is given by --modality and by --columns, expected one")
    tables = [*columns.modalities, *spec.modality, *(encoding.modalities if encoding else ())]
    names = [*tables, *features]
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
    _check_groups(columns, spec)


def _check_groups(columns: TableColumns, spec: ColumnsFile) -> None:
    groups = {**columns.modalities, **{name: group.columns for name, group in spec.modality.items()}}
    for name, group in groups.items():
        if not group and not (name in spec.modality and spec.modality[name].prefix):
            raise StudyError(f"modality {name!r} has no column, expected at least one")
        for column in group:
            if column in columns.reserved:
                meaning = columns.reserved[column]
                raise StudyError(
                    f"modality {name!r}: column {column!r} is the {meaning} column, expected another"
                )
        if len(set(group)) < len(group):
            twice = next(column for column in group if list(group).count(column) > 1)
            raise StudyError(f"modality {name!r} names column {twice!r} twice")


def _groups(table: TextTable, columns: TableColumns, spec: ColumnsFile) -> dict[str, list[str]]:
    """The columns of each modality; patterns leave out id, site, label and split."""
    groups = {name: Group(columns=tuple(group)) for name, group in columns.modalities.items()}
    return {
        name: choose_columns(table, group, columns.reserved)
        for name, group in (groups | dict(spec.modality)).items()
    }


def _check_columns(table: TextTable, columns: TableColumns) -> None:
    known = set(table.frame.columns)
    for column in columns.reserved:
        if column not in known:
            raise unknown_column(table.source, column, table.frame.columns)
    grouped = {column for group in columns.modalities.values() for column in group}
    for column in columns.categorical:
        if column not in grouped:
            raise DataError(
                f"{table.source}: categorical column {column!r} is in no modality"
                f"{did_you_mean(column, grouped)}"
            )
    if table.frame.empty:
        raise DataError(f"{table.source}: no patient, so no site is left; expected at least one row")


def _blank(table: TextTable, names: Collection[str], missing: Mapping[str, Sequence[str]]) -> TextTable:
    """The table with cells of some columns blanked that mean missing; no other word is."""
    frame = table.frame.copy(deep=False)
    for name in names:
        if name in missing:
            frame[name] = frame[name].where(cells_of(table, name, missing[name], keep=None).present)
    return replace(table, frame=frame)


def _covariates(
    table: TextTable,
    columns: TableColumns,
    missing: Mapping[str, Sequence[str]],
    drivers: Collection[str],
    decimal: str,
) -> pd.DataFrame:
    """The columns that may drive mar, indexed by id; those that do are read like columns of modalities."""
    frame = table.frame.drop(
        columns=[name for name, meaning in columns.reserved.items() if meaning not in {"site", "split"}]
    )
    for name in drivers:
        if name in frame.columns and name not in columns.reserved:
            cells = cells_of(table, name, missing.get(name, ()))
            numbers, problems = parse(table, name, cells, decimal)
            frame[name] = frame[name].where(cells.present) if problems else numbers
    return frame.set_index(pd.Index(table.require(columns.id)))


def _missing_by_column(
    table: TextTable, columns: TableColumns, missing_values: Sequence[str]
) -> dict[str, list[str]]:
    """Cells that mean missing, by column; those of every column are not of ids, sites, labels and splits."""
    every: list[str] = []
    single: dict[str, list[str]] = {}
    for text in missing_values:
        parts = text.split("=")
        names = ["=".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]  # a name may hold = too
        name = next((name for name in names if name in table.frame.columns), None)
        if not names:
            every.append(text)
        elif name is not None:
            single.setdefault(name, []).append(text.removeprefix(f"{name}="))
        else:
            raise unknown_column(table.source, parts[0], table.frame.columns)
    codes = {str(name): every for name in table.frame.columns if every and name not in columns.reserved}
    return codes | {name: [*codes.get(name, ()), *own] for name, own in single.items()}
