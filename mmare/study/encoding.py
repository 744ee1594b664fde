"""How the columns of a table become vectors: what a file says that sites, packages and programs share.

`sites.encoding.encode` applies it to a table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmare.errors import DataError
from mmare.study.tables import TableError, from_table

__all__ = ["ENCODING_FILE", "Column", "Encoding", "load_encoding", "parse_encoding"]

ENCODING_FILE = "encoding.json"
_VERSION = 2  # of 1, blanks were zeros before scaling


@dataclass(frozen=True)
class Column:
    """How one column becomes features: the number or one 0/1 feature a level, then perhaps one of blanks."""

    name: str
    levels: tuple[str, ...] | None = None  # words, in feature order; none: the column holds numbers
    blanks: bool = False  # whether a 0/1 feature says that the cell is blank
    missing: tuple[str, ...] = ()  # cells that mean missing; numbers in any spelling
    lowest: float | None = None  # smaller numbers become this one
    highest: float | None = None
    log: bool = False  # log(1 + x), after the clipping

    @property
    def width(self) -> int:
        """Number of features."""
        return (1 if self.levels is None else len(self.levels)) + self.blanks


@dataclass(frozen=True)
class Encoding:
    """The columns of each modality, in slot order and feature order."""

    modalities: Mapping[str, tuple[Column, ...]]

    def width(self, modality: str) -> int:
        """Number of features of a modality."""
        return sum(column.width for column in self.modalities[modality])

    def fingerprint(self, modality: str) -> str:
        """Of everything that decides a modality's vectors; equal on all machines.

        Raises:
            DataError: If the encoding has no such modality.
        """
        if modality not in self.modalities:
            raise DataError(f"the encoding has no modality {modality!r}, only {', '.join(self.modalities)}")
        content = [_VERSION, [vars(column) for column in self.modalities[modality]]]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def text(self) -> str:
        """The content of the file that `load_encoding` reads; entries that say nothing are left out."""
        plain = Column("")
        columns = {
            name: [
                {key: value for key, value in vars(column).items() if value != getattr(plain, key)}
                for column in group
            ]
            for name, group in self.modalities.items()
        }
        content = {"version": _VERSION, "modalities": columns}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class _File:
    version: int
    modalities: Mapping[str, tuple[Column, ...]]


def load_encoding(path: Path) -> Encoding:
    """Read an encoding.

    Raises:
        DataError: If the file is missing, is no encoding, or is of a later version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such encoding file") from None
    except (OSError, ValueError) as error:  # also of text that is not UTF-8
        raise DataError(f"{path}: cannot be read as an encoding ({error})") from None
    return parse_encoding(text, str(path))


def parse_encoding(text: str, source: str) -> Encoding:
    """Make an encoding from the text of its file; raises a `DataError` that begins with ``source``."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{source}: cannot be read as an encoding ({error})") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != _VERSION:
        raise DataError(f"{source}: version is {version!r}, expected {_VERSION} as this program writes it")
    try:
        encoding = Encoding(from_table(_File, content, "the encoding").modalities)
    except TableError as error:
        raise DataError(f"{source}: {error}") from None
    for name, columns in encoding.modalities.items():
        names = [column.name for column in columns]
        if not columns or len(set(names)) < len(names):
            raise DataError(f"{source}: modality {name!r} has no column, or one twice")
        for column in columns:
            if column.levels is not None and len(set(column.levels)) < len(column.levels):
                raise DataError(f"{source}: column {column.name!r} has a level twice")
    return encoding
