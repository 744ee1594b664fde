"""Which rows of a table are taken, and which vectors find their patient; the others are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmare.errors import DataError
from sites.features import Vectors
from sites.numbers import LARGEST
from sites.tabular import TextTable

__all__ = ["check_classes", "labelled", "matched", "nonempty", "rows_of"]

_NAMED = 3  # ids in a sentence
_EXPECTED = {"label": "a class", "time": "a time", "event": "0 or 1", "target": "a number"}
_LACKS = {"label": "a label", "time": "a time or event", "target": "a target"}
_LARGEST_SHARE = 0.1  # of vectors that match nobody; more is a mistake in the ids


def rows_of(table: TextTable, rows: Sequence[int]) -> TextTable:
    """Some rows of a table, which keep their numbers."""
    numbers = tuple(table.rows[row] if table.rows else row for row in rows)
    lines = tuple(table.lines[row] for row in rows) if table.lines else ()
    return TextTable(table.source, table.frame.iloc[list(rows)].reset_index(drop=True), lines, numbers)


def labelled(table: TextTable, columns: Mapping[str, str], *, drop: bool) -> tuple[TextTable, list[str]]:
    """The rows with an outcome, and a sentence about the others.

    Args:
        table: Of any rows.
        columns: Of the outcome, and what each means.
        drop: Leave out the others.

    Raises:
        DataError: If a cell of the outcome is blank and ``drop`` is not set.
    """
    empty = {name: [row for row, cell in enumerate(table.column(name)) if cell is None] for name in columns}
    blank = sorted({row for rows in empty.values() for row in rows})
    if not blank:
        return table, []
    if not drop:
        column = next(name for name, rows in empty.items() if blank[0] in rows)
        raise DataError(
            f"{table.where(blank[0])}: {column} is blank, expected {_EXPECTED[columns[column]]} "
            f"({len(blank)} such rows; --drop-unlabelled leaves them out)"
        )
    return _without(table, blank), [
        f"{_count(len(blank), 'row')} without {_LACKS[next(iter(columns.values()))]} left out"
    ]


def nonempty(
    table: TextTable, ids: Sequence[str], vectors: Mapping[str, Vectors], *, drop: bool
) -> tuple[TextTable, list[str]]:
    """The rows of patients who have a modality, and a sentence about the others.

    Raises:
        DataError: If a patient has no modality and ``drop`` is not set.
    """
    empty = [row for row, patient in enumerate(ids) if not any(patient in held for held in vectors.values())]
    if not empty:
        return table, []
    if not drop:
        raise DataError(
            f"{table.where(empty[0])}: patient {ids[empty[0]]!r} has no modality, expected a value in one of "
            f"{', '.join(vectors)} ({len(empty)} such rows; --drop-empty leaves them out)"
        )
    return _without(table, empty), [f"{_count(len(empty), 'row')} without any modality left out"]


def check_classes(source: Path, labels: Collection[str], classes: Sequence[str]) -> None:
    """Refuse a class that nobody has: its output would never be trained."""
    counts = Counter(labels)
    for name in classes:
        if not counts[name]:
            raise DataError(
                f"{source}: no patient has the class {name!r}, expected at least one of each in --classes"
            )


def matched(
    path: Path,
    vectors: Vectors,
    table: TextTable,
    places: Mapping[str, str],
    known: Collection[str],
    *,
    allow: bool,
) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """The vectors of the table's patients, and sentences about vectors and patients without a counterpart.

    Args:
        places: The site of each patient whom the federation takes, in the order of the table.
        known: All ids of the table, also of rows that were left out.
        allow: Take a file of which more than a tenth of the vectors match nobody.

    Raises:
        DataError: If no vector, or too few of them, have a patient, or a number is absurdly large.
    """
    for row, (patient, vector) in enumerate(vectors.items(), start=1):
        if (large := np.abs(vector) > np.float32(LARGEST)).any():
            feature = int(large.argmax())
            raise DataError(
                f"{path}, row {row} (patient {patient!r}): feature {feature + 1} is {vector[feature]:g}, "
                f"expected a number of at most {LARGEST:g} in size"
            )
    found = {patient: vectors[patient] for patient in places if patient in vectors}
    if not found:
        raise DataError(
            f"{path}: none of its {len(vectors)} patient ids is in {table.source}, expected the same ids"
        )
    strangers = sorted(set(vectors) - set(known))
    notes = []
    if strangers:
        what = f"{len(strangers)} of {len(vectors)} vectors match no patient: {_some(strangers)}"
        if len(strangers) > _LARGEST_SHARE * len(vectors) and not allow:
            raise DataError(
                f"{path}: {what}; expected at most a tenth, or --allow-unmatched if the file holds others too"
            )
        notes.append(f"{path}: {what}")
    sizes = Counter(places.values())
    lacking: dict[str, list[str]] = {}
    for patient, place in places.items():
        if patient not in found:
            lacking.setdefault(place, []).append(patient)
    notes += [
        f"{path}: no vector of {len(ids)} of {sizes[place]} patients of {place}: {_some(ids)}"
        for place, ids in sorted(lacking.items())
    ]
    return found, notes


def _without(table: TextTable, rows: Sequence[int]) -> TextTable:
    gone = set(rows)
    return rows_of(table, [row for row in range(len(table.frame)) if row not in gone])


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more
