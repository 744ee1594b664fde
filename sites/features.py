"""Feature tables: one vector per patient id, or several, as npz or a table file, validated when read."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmare.errors import DataError
from mmare.numerals import is_plain
from sites.table_file import read_cells
from sites.tabular import cell_text

__all__ = ["Bags", "Vectors", "load_bags", "load_features", "write_features"]

Vectors = Mapping[str, NDArray[np.float32]]
Bags = Mapping[str, NDArray[np.float32]]  # (n, W) by patient, n vectors each

_ID = "patient_id"
_NPY = ".npy"
_KINDS = "iuf"  # numpy kinds: integers and floats
_NPZ_FROM_WIDTH = 64  # narrower tables are written as readable CSV


def load_features(path: Path, width: int | None = None) -> dict[str, NDArray[np.float32]]:
    """The first vector of each patient, ``(W,)``; as `load_bags`, but no row of a table may repeat one."""
    return {patient: bag[0] for patient, bag in load_bags(path, width, repeated=False).items()}


def load_bags(
    path: Path, width: int | None = None, *, repeated: bool = True
) -> dict[str, NDArray[np.float32]]:
    """Read a features file.

    Args:
        path: ``.npz`` with one ``(width,)`` or ``(n, width)`` array per patient id, or a table file with a
            ``patient_id`` column and numeric columns in file order.
        width: Numbers per vector; by default that of the first.
        repeated: Whether several rows of a table may be of one patient.

    Returns:
        By patient id, in file order, ``(n, width)`` float32, NaN where blank. Others lack the modality.

    Raises:
        DataError: If the file is missing, unreadable or empty, a patient id is blank or repeated, or a vector
            has another width, is not numeric, infinite, or blank everywhere.
    """
    cells = dict.fromkeys((".tsv", ".xlsx", ".xls"), _read_rows)
    readers = {".npz": _read_npz, ".csv": _read_rows, ".parquet": _read_parquet, **cells}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: found a features file ending {path.suffix!r}, expected one of {', '.join(readers)}"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such features file")
    bags: dict[str, list[NDArray[np.float32]]] = {}
    for row, (patient, values) in enumerate(reader(path), start=1):
        where = f"{path}, row {row} (patient {patient!r})"
        if not patient:
            raise DataError(f"{path}, row {row}: {_ID} is blank, expected a patient id")
        if patient in bags and not (repeated and reader is not _read_npz):
            raise DataError(f"{where}: this patient id occurs twice, expected one vector per patient")
        for vector in values if values.ndim == 2 and len(values) else [values]:  # noqa: PLR2004 - several
            width = len(vector) if width is None and vector.ndim == 1 else width
            bags.setdefault(patient, []).append(_checked(vector, width, where))
    if not bags:
        raise DataError(f"{path}: no vector, expected at least one patient")
    return {patient: np.stack(bag) for patient, bag in bags.items()}


def write_features(folder: Path, name: str, vectors: Vectors) -> str:
    """Write a features file that is read back bit for bit; same vectors, ``(W,)`` or ``(n, W)``, same bytes.

    Returns:
        The file's name, with the stem ``name``: npz for wide vectors, CSV for narrow ones.
    """
    width = next(iter(vectors.values())).shape[-1]
    if width < _NPZ_FROM_WIDTH:
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow([_ID, *(f"f{position}" for position in range(width))])
            for patient, vector in vectors.items():
                # The text of a float32 is the shortest that reads back as the same one.
                writer.writerows([patient, *map(str, one)] for one in np.atleast_2d(vector))
        return f"{name}.csv"
    # Written here instead of by numpy.savez, whose keyword arguments cannot hold every patient id.
    with zipfile.ZipFile(folder / f"{name}.npz", "w") as archive:
        for patient, vector in vectors.items():
            with archive.open(zipfile.ZipInfo(patient + _NPY), "w") as stream:
                np.lib.format.write_array(stream, vector, allow_pickle=False)
    return f"{name}.npz"


def _checked(values: NDArray[np.generic], width: int | None, where: str) -> NDArray[np.float32]:
    """One vector as float32, if it is ``(width,)`` and numeric, some of it not blank (NaN)."""
    if values.ndim != 1 or (width is not None and len(values) != width):
        found = f"{len(values)} numbers" if values.ndim == 1 else f"an array of shape {values.shape}"
        raise DataError(f"{where}: found {found}, expected {width or 'some'} numbers in one row")
    if width == 0:
        raise DataError(f"{where}: found no number, expected at least one")
    if values.dtype.kind not in _KINDS:
        raise DataError(f"{where}: found values of type {values.dtype}, expected numbers")
    with np.errstate(over="ignore"):  # values too large for float32 become infinity, which is refused below
        vector = values.astype(np.float32)
    if np.isinf(vector).any():
        position = int(np.flatnonzero(np.isinf(vector))[0])
        raise DataError(f"{where}: feature {position + 1} is {values[position]}, expected a finite number")
    if np.isnan(vector).all():
        raise DataError(f"{where}: every cell is blank; leave out a patient who lacks the modality")
    return vector


def _read_npz(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as stream:
                    values = np.lib.format.read_array(stream, allow_pickle=False)
                yield entry.filename.removesuffix(_NPY), values
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as npz ({error})") from None


def _read_rows(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    header: list[str] = []
    id_at = 0
    for row, (_, record) in enumerate(read_cells(path)):
        if not header:
            header = [cell_text(name) or "" for name in record]
            id_at = _id_position(path, header)
            continue
        cells = ["" if cell is None else cell for cell in record]
        patient = cell_text(cells.pop(id_at)) or ""
        yield patient, _numbers(cells, f"{path}, row {row} (patient {patient!r})", header, id_at)
    if not header:
        _id_position(path, header)


def _numbers(cells: Sequence[object], where: str, header: Sequence[str], id_at: int) -> NDArray[np.generic]:
    if "" in cells:
        cells = [np.nan if cell == "" else cell for cell in cells]
    try:
        text = "".join(cell for cell in cells if isinstance(cell, str))
        if not is_plain(text):
            raise ValueError(text)  # noqa: TRY301 - found below, with what numpy refuses
        return np.array(cells, dtype=np.float64)
    except (TypeError, ValueError):
        names = [name for position, name in enumerate(header) if position != id_at]
        bad = next(position for position, cell in enumerate(cells) if not _is_number(cell))
        raise DataError(f"{where}: {names[bad]} is {cells[bad]!r}, expected a number") from None


def _is_number(cell: object) -> bool:
    text = str(cell)
    try:
        float(text)
    except ValueError:
        return False
    return is_plain(text)


def _read_parquet(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    try:
        table = pq.read_table(path)
        id_at = _id_position(path, table.column_names)
        patients = table.column(id_at).to_pylist()  # pandas makes floats of whole numbers beside blanks
        index = [name for name in table.column_names if name.startswith("__index_level_")]
        frame = table.drop_columns([_ID, *index]).to_pandas(ignore_metadata=True)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises many error types
        raise DataError(f"{path}: cannot be read as parquet ({type(error).__name__}: {error})") from None
    for name, dtype in frame.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype):
            raise DataError(f"{path}: column {name!r} is {dtype}, expected numbers")
    numbers = frame.to_numpy(dtype=np.float64, na_value=np.nan)  # (n_patients, width)
    for patient, row in zip(patients, numbers, strict=True):
        yield cell_text(patient) or "", row


def _id_position(path: Path, header: Sequence[str]) -> int:
    if header.count(_ID) != 1:
        raise DataError(
            f"{path}: found {header.count(_ID)} columns called {_ID!r}, expected one beside numeric columns"
        )
    return header.index(_ID)
