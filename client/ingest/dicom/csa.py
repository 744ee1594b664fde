"""Siemens' private header (CSA), as far as a mosaic needs it.

Layout: https://nipy.org/nibabel/dicom/siemens_csa.html. Both versions are a list of named elements with text
items padded to four bytes. nibabel's own reader is no substitute: as of 5.4 it fails on every header of the
first version (nipy/nibabel issue 817).
"""

from __future__ import annotations

import struct

__all__ = ["read_csa"]

_VERSION_2 = b"SV10"
_MOST_ELEMENTS = 1000  # real headers have about 100
_NAME_BYTES = 64
_ELEMENT = struct.Struct("<64si4siii")  # name, multiplicity, representation, SyngoDT, number of items, check
_ITEM = struct.Struct("<4i")


def read_csa(header: bytes) -> dict[str, tuple[str, ...]]:
    """Parse (0029,1010) or (0029,1020): element name to its non-empty values; empty if it is no CSA header.

    Example:
        >>> read_csa(b"something else")
        {}
    """
    try:
        return _read(header)
    except (struct.error, UnicodeDecodeError, ValueError):
        return {}


def _read(header: bytes) -> dict[str, tuple[str, ...]]:
    second = header[:4] == _VERSION_2
    offset = 8 if second else 0
    (n_elements,) = struct.unpack_from("<I", header, offset)
    if not 0 < n_elements < _MOST_ELEMENTS:
        return {}
    offset += 8  # the number of elements and a check word
    elements: dict[str, tuple[str, ...]] = {}
    first_n_items = 0
    for _ in range(n_elements):
        name, _, _, _, n_items, _ = _ELEMENT.unpack_from(header, offset)
        offset += _ELEMENT.size
        if n_items < 0:
            raise ValueError("not a CSA header")
        first_n_items = first_n_items or n_items
        values = []
        for _ in range(n_items):
            words = _ITEM.unpack_from(header, offset)
            offset += _ITEM.size
            # the first version adds the first element's number of items to lengths
            length = words[1] if second else words[0] - first_n_items
            if length < 0 or offset + length > len(header):
                break
            values.append(_text(header[offset : offset + length]))
            offset += (length + 3) // 4 * 4
        elements[_text(name[:_NAME_BYTES])] = tuple(value for value in values if value)
    return elements


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("latin-1").strip()
