"""Values of a state that came from another machine, each checked; a ValueError says what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["fields", "items", "real", "require", "whole"]


def fields(content: object, names: tuple[str, ...], where: str) -> list[Any]:
    """The values of a table that must have exactly these keys."""
    if not (isinstance(content, Mapping) and content.keys() == set(names)):
        raise ValueError(f"{where} must be a table of {', '.join(names)}")
    return [content[name] for name in names]


def items(content: object, length: int | None, where: str) -> list[Any]:
    """A list, of ``length`` entries if that is given."""
    if not (isinstance(content, list) and length in (None, len(content))):
        raise ValueError(f"{where} must be a list of {'entries' if length is None else length}")
    return content


def whole(value: object, most: int, where: str) -> int:
    """A whole number from 0 to ``most``."""
    if not (type(value) is int and 0 <= value <= most):
        raise ValueError(f"{where} must be a whole number from 0 to {most}")
    return value


def real(value: Any, least: float, most: float, where: str) -> float:  # noqa: ANN401 - anything may come over the wire
    """A number from ``least`` to ``most``."""
    if not (type(value) in {int, float} and least <= value <= most):  # NaN and infinity compare as false
        raise ValueError(f"{where} must be a number from {least:g} to {most:g}")
    return float(value)


def require(holds: bool, reason: str) -> None:
    """Raise with a reason."""
    if not holds:
        raise ValueError(reason)
