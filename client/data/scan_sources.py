"""Which scans a site names for each patient: columns of its manifest, a table of scans, or a folder."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from mmare.errors import DataError
from mmare.study.choices import Scans
from sites.manifest import ID, Manifest
from sites.table_file import read_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mmare.study.specs import ModalitySpec
    from sites.config import SiteConfig
    from sites.manifest import Patients

__all__ = ["scan_paths"]

MODALITY, FILE, DATE = "modality", "file", "date"  # columns of a table of scans, beside the patient's id
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}.*")


def scan_paths(modality: ModalitySpec, site: SiteConfig, patients: Patients) -> list[tuple[int, Path]]:
    """Row and path of each scan, in the order of rows; a file that is named twice is one scan.

    Of a study that takes one scan it is the first that the site names: by the order of columns, the latest
    date, or the order of names in a patient's folder.

    Raises:
        DataError: If a column or table is missing or cannot be used, or a table has a scan of an unknown
            patient.
    """
    source = site.modalities[modality.name]
    columns = source.columns if source.column is None else (source.column,)
    if source.table is not None:
        found = _of_table(modality.name, source.table, patients)
    elif source.scans is not None:
        found = _of_folder(source.scans, patients)
    elif columns:
        found = _of_columns(modality.name, columns, patients)
    else:
        raise DataError(
            f"{patients.source}: modality {modality.name} needs scans in site.toml: "
            "column, columns, table or folder"
        )
    by_row: dict[int, dict[Path, None]] = {}
    for row, path in found:
        by_row.setdefault(row, {}).setdefault(path)
    most = 1 if modality.scans is Scans.ONE else None
    return [(row, path) for row in sorted(by_row) for path in [*by_row[row]][:most]]


def _of_columns(name: str, columns: tuple[str, ...], patients: Patients) -> Iterable[tuple[int, Path]]:
    for column in columns:
        if column not in patients.table.columns:
            raise DataError(f"{patients.source}: modality {name} needs a column of scans, found {column!r}")
        for row, value in enumerate(patients.table[column]):
            if isinstance(value, str) and value:
                yield row, patients.source.parent / value  # absolute paths stay as they are


def _of_table(name: str, path: Path, patients: Patients) -> Iterable[tuple[int, Path]]:
    """The latest first, those without a date last; all else in the order of the table."""
    table = read_table(path)
    rows = {patient: row for row, patient in enumerate(patients.patient_ids)}
    dated = table.column(DATE) if DATE in table.frame.columns else [None] * len(table.frame)
    scans = []
    columns = (table.require(ID), table.require(MODALITY), table.require(FILE), dated)
    for at, (patient, of, file, date) in enumerate(zip(*columns, strict=True)):
        if patient not in rows and isinstance(patients, Manifest):
            raise DataError(f"{table.where(at)}: {ID} is {patient!r}, who is not in {patients.source.name}")
        if date is not None and not _DAY.fullmatch(date):
            raise DataError(f"{table.where(at)}: {DATE} is {date!r}, expected one such as 2026-11-30")
        if of == name and patient in rows:
            scans.append((date or "", rows[patient], path.parent / file))
    scans.sort(key=lambda scan: scan[0], reverse=True)  # stable
    return [(row, file) for _, row, file in scans]


def _of_folder(folder: Path, patients: Patients) -> Iterable[tuple[int, Path]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one with a folder of scans per patient")
    for row, patient in enumerate(patients.patient_ids):
        own = folder / patient
        if own.is_dir() and own.parent == folder:
            yield from ((row, path) for path in sorted(own.iterdir()) if not path.name.startswith("."))
