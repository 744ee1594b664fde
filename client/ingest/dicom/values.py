"""Read values from a pydicom data set that may hold anything; an invalid value counts as absent."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

__all__ = ["NUMBER_ERRORS", "first_item", "has_value", "number", "numbers", "private_value", "text", "texts"]

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


def _value(dataset: Dataset, tag: str | int | tuple[int, int]) -> Any:  # noqa: ANN401  a DICOM value has any type
    key = tag if isinstance(tag, str) else Tag(tag)
    try:
        return dataset[key].value if key in dataset else None
    except NUMBER_ERRORS:
        return None


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


def has_value(dataset: Dataset, tag: str) -> bool:
    """Whether an element is there and not empty, readable or not."""
    return tag in dataset and getattr(dataset.get_item(Tag(tag)), "value", None) not in (None, b"", "")


def _float(part: Any) -> float:  # noqa: ANN401  a DICOM value has any type
    """A number, also as text with a decimal comma, which pydicom leaves as text; else an error."""
    if isinstance(part, str) and ("_" in part or not part.isascii() or _THOUSANDS.fullmatch(part.strip())):
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


def first_item(dataset: Dataset, tag: str | BaseTag | tuple[int, int]) -> Dataset | None:
    """The first item of a sequence, or None."""
    value = _value(dataset, tag)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and value:
        item = value[0]
        return item if isinstance(item, Dataset) else None
    return None


def private_value(dataset: Dataset, group: int, creator: str, element: int) -> Any:  # noqa: ANN401  any type
    """A private element in its creator's block; without a reservation, in the usual block."""
    try:
        return dataset.private_block(group, creator)[element].value
    except NUMBER_ERRORS:
        return _value(dataset, (group, 0x1000 + element))
