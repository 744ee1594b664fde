"""The formats of a table of predictions; imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Format", "format_of"]


class Format(StrEnum):
    """Of the table that is written."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


def format_of(path: Path, wanted: Format | None = None) -> Format:
    """The format that is asked for, or that the file's name ends in; CSV where it says nothing."""
    if wanted is not None:
        return wanted
    ending = path.suffix.lower().removeprefix(".")
    return Format(ending) if ending in list(Format) else Format.CSV
