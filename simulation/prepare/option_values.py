"""The values of repeatable options: lists, pairs and numbers."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from mmare.errors import StudyError

__all__ = ["commas", "named", "number"]


def number(text: str, flag: str) -> float:
    """A number; raises `StudyError` if the text is none."""
    try:
        return float(text)
    except ValueError:
        raise StudyError(f"{flag} is {text!r}, expected a number") from None


def commas(words: Sequence[str]) -> list[str]:
    """Split words at commas, but not inside double quotes."""
    parts = (part for word in words for row in csv.reader([word], skipinitialspace=True) for part in row)
    return [part.strip() for part in parts if part.strip()]


def named(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """Parse ``NAME=VALUE`` pairs; raises `StudyError` if one is malformed or a name occurs twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, value = (part.strip() for part in pair.partition("="))
        if not name or not value:
            raise StudyError(f"{flag} is {pair!r}, expected NAME=VALUE")
        if name in found:
            raise StudyError(f"{flag} names {name!r} twice, expected each modality once")
        found[name] = value
    return found
