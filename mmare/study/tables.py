"""Dataclasses from plain tables (TOML, JSON), each value checked against its annotation.

The study file, site configurations and messages are validated here. Unknown and missing keys are errors.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["TableError", "check_keys", "convert", "from_table", "read_toml"]

Made = TypeVar("Made")

_hints = cache(get_type_hints)
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "absent"}


class TableError(ValueError):
    """An invalid table; the message names the place, what was found and what was expected."""


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file, with or without a byte-order mark.

    Raises:
        TableError: If it is missing (the message calls it a ``what`` file), unreadable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise TableError(f"{path}: no such {what} file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read ({type(error).__name__})") from None
    except tomllib.TOMLDecodeError as error:
        raise TableError(f"{path}: not valid TOML: {error}") from None


def from_table(made: type[Made], table: Mapping[str, Any], where: str) -> Made:
    """Make a dataclass of texts, numbers, enums, dataclasses, or tuples and mappings of them.

    Raises:
        TableError: If a key is unknown or missing, or a value is of the wrong kind; begins with ``where``.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Point:
        ...     x: float
        ...     y: float = 0.0
        >>> from_table(Point, {"x": 2}, "[point]")
        Point(x=2.0, y=0.0)
    """
    hints: dict[str, Any] = _hints(made)  # type: ignore[arg-type] # classes are hashable
    parts = fields(made)  # type: ignore[arg-type] # always a dataclass
    check_keys(table, {part.name for part in parts}, where)
    for part in parts:
        if part.default is MISSING and part.default_factory is MISSING and part.name not in table:
            raise TableError(f"{where} lacks the key {part.name!r}")
    return made(**{key: convert(value, hints[key], f"{where} {key}") for key, value in table.items()})


def check_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raise `TableError` for the first unknown key, naming the known ones."""
    for key in table:
        if key not in known:
            raise TableError(
                f"{where} has an unknown key {key!r}; expected one of {', '.join(sorted(known))}"
            )


def convert(value: Any, kind: Any, where: str) -> Any:  # noqa: ANN401 - a type form and its value
    """Check ``value`` against the annotation ``kind``; whole numbers become floats, texts their enum.

    Raises:
        TableError: If it is of another kind, or a number is not finite.
    """
    if kind is Any:
        return value
    origin = get_origin(kind)
    if origin is UnionType:
        return _convert_union(value, get_args(kind), where)
    if origin is tuple and isinstance(value, list | tuple):
        entry_kind = get_args(kind)[0]
        return tuple(convert(entry, entry_kind, where) for entry in value)
    if origin not in (None, tuple) and isinstance(value, Mapping):
        entry_kind = get_args(kind)[1]
        return {str(key): convert(entry, entry_kind, f"{where}.{key}") for key, entry in value.items()}
    return _convert_plain(value, kind, where)


def _convert_plain(value: Any, kind: Any, where: str) -> Any:  # noqa: ANN401 - a type form and its value
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return from_table(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if isinstance(value, str) and value in list(kind):
            return kind(value)
        raise TableError(f"{where} must be one of {', '.join(kind)}, found {value!r}")
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # not NaN either
        return float(value)
    if type(value) is kind and kind is not float:
        return value
    raise TableError(f"{where} must be {_describe(kind)}, found {value!r}")


def _convert_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:  # noqa: ANN401 - a type form and its value
    if value is None and NoneType in kinds:
        return None
    if isinstance(value, Mapping) and (made := next(filter(is_dataclass, kinds), None)):
        return convert(value, made, where)  # what is wrong inside it says more than that it is wrong
    if isinstance(value, list):  # its error is about an entry
        kinds = tuple(kind for kind in kinds if get_origin(kind) is tuple) or kinds
    if len(kinds) == 1:
        return convert(value, kinds[0], where)
    for kind in kinds:
        try:
            return convert(value, kind, where)
        except TableError:
            continue
    raise TableError(f"{where} must be {' or '.join(_describe(kind) for kind in kinds)}, found {value!r}")


def _describe(kind: Any) -> str:  # noqa: ANN401 - a type form
    if kind in _WORDS:
        return _WORDS[kind]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    return "a list" if get_origin(kind) is tuple else "a table"
