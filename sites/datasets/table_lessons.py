"""Sentences about what the train rows of a table cannot teach: the run goes on without it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmare.study.encoding import Encoding
from mmare.wire.messages import Split
from sites.features import Vectors

__all__ = ["train_notes"]

_NAMED = 3  # columns in a sentence


def train_notes(encoding: Encoding, vectors: Mapping[str, Vectors], splits: Mapping[str, str]) -> list[str]:
    """What no train row has, and columns that are blank or the same in all of them.

    Args:
        encoding: Of the modalities that are columns.
        vectors: Of all modalities.
        splits: Of each patient, by id.
    """
    train = [patient for patient, split in splits.items() if split == Split.TRAIN]
    notes = []
    for name, held in vectors.items():
        rows = [held[patient] for patient in train if patient in held]
        if not rows:
            notes.append(
                f"{name}: no train row has it, so nothing is learned of it and no prediction looks at it; "
                "leave it out, or split otherwise"
            )
        elif name in encoding.modalities:
            notes += _columns(encoding, name, np.stack(rows))
    return notes


def _columns(encoding: Encoding, name: str, rows: NDArray[np.float32]) -> list[str]:
    """Of the ``(N, W)`` train vectors of one modality."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns that are blank everywhere
        low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)  # (W,)
    found: dict[str, list[str]] = {"blank": [], "the same": []}
    start = 0
    for column in encoding.modalities[name]:
        values = slice(start, start + column.width - column.blanks)
        start += column.width
        if np.isnan(low[values]).all() or (column.levels is not None and not high[values].any()):
            found["blank"].append(column.name)
        elif not column.blanks and (low[values] == high[values]).all():
            found["the same"].append(column.name)
    return [
        f"{name}: {_listed(columns)} {'is' if len(columns) == 1 else 'are'} {what} in every train row, so "
        "nothing is learned of " + ("it" if len(columns) == 1 else "them")
        for what, columns in found.items()
        if columns
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more columns" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
