"""Read values from a pydicom data set that may hold anything; an invalid value counts as absent."""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from mmare.numerals import is_plain

__all__ = [
    "NUMBER_ERRORS",
    "FrameSources",
    "first_item",
    "has_value",
    "items",
    "number",
    "numbers",
    "only_number",
    "private_value",
    "text",
    "texts",
]

# What pydicom raises on first access to an invalid value.
NUMBER_ERRORS = (
    ValueError,
    TypeError,
    OverflowError,
    AttributeError,
    LookupError,
    struct.error,
    NotImplementedError,
)
_FLOAT_BYTES = 4
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # such as 1,024: its comma may mean either


_SIMPLE = frozenset({"CS", "DA", "DS", "IS", "LO", "PN", "SH", "TM", "UI", "US", "FD", "FL"})
_tag = functools.cache(Tag)


def _value(dataset: Dataset, tag: str | int | tuple[int, int]) -> Any:  # noqa: ANN401  a DICOM value has any type
    key = _tag(tag)
    try:
        raw = dataset.get_item(key)
        if isinstance(raw, RawDataElement) and raw.VR in _SIMPLE and not key.is_private:
            how = raw.is_implicit_VR, raw.is_little_endian, _character_sets(dataset.original_character_set)
            return _converted(key, raw.VR, raw.value, *how)
        return dataset[key].value
    except NUMBER_ERRORS:  # KeyError among them
        return None


@functools.lru_cache(1 << 12)  # most values of a series are the same in all its files
def _converted(tag: BaseTag, vr: str, value: bytes | None, *how: Any) -> Any:  # noqa: ANN401  as above
    implicit, little, character_sets = how
    raw = RawDataElement(tag, vr, len(value or b""), value, 0, implicit, little)
    return convert_raw_data_element(raw, encoding=list(character_sets)).value


def _character_sets(stated: str | MutableSequence[str]) -> tuple[str, ...]:
    return (stated,) if isinstance(stated, str) else tuple(stated)


def number(dataset: Dataset, tag: str | int | tuple[int, int]) -> float | None:
    """The finite number in an element (the first of several), else None."""
    value = _value(dataset, tag)
    if isinstance(value, bytes) and len(value) == _FLOAT_BYTES:  # a private float in implicit VR
        (value,) = struct.unpack("<f", value)
    elif not isinstance(value, str | bytes) and isinstance(value, Sequence) and value:
        value = value[0]
    try:
        result = _float(value)
    except NUMBER_ERRORS:
        return None
    return result if math.isfinite(result) else None


def only_number(dataset: Dataset, tag: str | tuple[int, int]) -> float | None:
    """The finite number in an element, else None; also if it holds several that differ."""
    value = _value(dataset, tag)
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return None if several and any(part != value[0] for part in value) else number(dataset, tag)


def has_value(dataset: Dataset, tag: str | tuple[int, int]) -> bool:
    """Whether an element is there and not empty, readable or not."""
    key = _tag(tag)
    return key in dataset and getattr(dataset.get_item(key), "value", None) not in (None, b"", "")


def _float(part: Any) -> float:  # noqa: ANN401  a DICOM value has any type
    """A number, also as text with a decimal comma, which pydicom leaves as text; else an error."""
    if isinstance(part, str) and (not is_plain(part) or _THOUSANDS.fullmatch(part.strip())):
        raise ValueError(part)
    return float(part.replace(",", ".") if isinstance(part, str) else part)


def numbers(dataset: Dataset, tag: str, count: int) -> tuple[float, ...] | None:
    """Exactly ``count`` finite numbers, else None."""
    value = _value(dataset, tag)
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        result = tuple(_float(part) for part in value)
    except NUMBER_ERRORS:
        return None
    return result if len(result) == count and all(map(math.isfinite, result)) else None


def texts(dataset: Dataset, tag: str) -> tuple[str, ...]:
    """The values of an element as stripped text; none if it is absent."""
    value = _value(dataset, tag)
    if value is None or value == "":
        return ()
    parts = [value] if isinstance(value, str | bytes) or not isinstance(value, Sequence) else value
    return tuple(str(part).strip() for part in parts)


def text(dataset: Dataset, tag: str) -> str:
    r"""An element as text, its values joined with ``\`` as in DICOM; empty if it is absent."""
    return "\\".join(texts(dataset, tag))


def items(dataset: Dataset, tag: str | BaseTag | tuple[int, int]) -> tuple[Dataset, ...]:
    """The items of a sequence; none if it is absent."""
    value = _value(dataset, tag)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return ()
    return tuple(item for item in value if isinstance(item, Dataset))


def first_item(dataset: Dataset, tag: str | BaseTag | tuple[int, int]) -> Dataset | None:
    """The first item of a sequence, or None."""
    return next(iter(items(dataset, tag)), None)


def private_value(dataset: Dataset, group: int, creator: str, element: int) -> Any:  # noqa: ANN401  any type
    """A private element in its creator's block; without a reservation, in the usual block."""
    try:
        return dataset.private_block(group, creator)[element].value
    except NUMBER_ERRORS:
        return _value(dataset, (group, 0x1000 + element))


@dataclass(frozen=True)
class FrameSources:
    """The data sets that describe one frame, most specific first."""

    places: tuple[Dataset, ...]

    def holder(self, keyword: str) -> Dataset:
        """The data set that holds an element; the least specific one if none does."""
        tag = _tag(keyword)
        return next((place for place in self.places[:-1] if tag in place), self.places[-1])

    def number(self, keyword: str) -> float | None:
        """As `number`, of the most specific place."""
        return number(self.holder(keyword), keyword)

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """As `numbers`, of the most specific place."""
        return numbers(self.holder(keyword), keyword, count)

    def text(self, keyword: str) -> str:
        """As `text`, of the most specific place."""
        return text(self.holder(keyword), keyword)
