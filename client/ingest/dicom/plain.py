"""Uncompressed pixels read from where the scan found them, without parsing the header a second time.

Parsing takes ten times as long as reading a slice; `client.ingest.dicom.pixels` has pydicom read all others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from math import prod
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from client.ingest.dicom.header import FileHeader, PlainPixels
from client.ingest.dicom.values import number, only_number
from client.ingest.files import os_error_reason
from client.ingest.reasons import ScanReason, ScanRefused

__all__ = ["find_plain_pixels", "read_plain_pixels"]

_PIXEL_DATA = struct.pack("<HH", 0x7FE0, 0x0010)
_BITS_ALLOCATED = (8, 16, 32)
_GREY = ("MONOCHROME1", "MONOCHROME2")


def find_plain_pixels(stream: BinaryIO, dataset: Dataset, syntax: str, size: int) -> PlainPixels | None:
    """Where the pixels lie in a file of ``size`` bytes whose header ``stream`` has passed.

    None if anything about them is unusual: compressed, coloured, big-endian or cut short.
    """
    head = stream.read(12)
    if syntax == ExplicitVRLittleEndian and head[4:6] in (b"OB", b"OW"):
        length_at = 8
    elif syntax == ImplicitVRLittleEndian:
        length_at = 4
    else:
        return None
    if not head.startswith(_PIXEL_DATA) or len(head) < length_at + 4:
        return None
    (n_bytes,) = struct.unpack_from("<I", head, length_at)
    start = stream.tell() - len(head) + length_at + 4
    allocated, stored, signed = (
        only_number(dataset, name) for name in ("BitsAllocated", "BitsStored", "PixelRepresentation")
    )
    shape = [number(dataset, name) for name in ("Rows", "Columns")] + [number(dataset, "NumberOfFrames") or 1]
    n_pixels = prod(int(length or 0) for length in shape)
    if (
        allocated not in _BITS_ALLOCATED
        or stored is None
        or not 0 < stored <= allocated
        or signed not in (0, 1)
        or number(dataset, "SamplesPerPixel") not in (None, 1)
        or dataset.get("PhotometricInterpretation") not in _GREY
        or not 0 < n_pixels * int(allocated) // 8 <= n_bytes <= size - start
    ):
        return None
    return PlainPixels(start, f"<{'i' if signed else 'u'}{int(allocated) // 8}", int(allocated - stored))


def read_plain_pixels(
    file: FileHeader, plain: PlainPixels, indices: Iterable[int]
) -> Iterator[NDArray[np.generic]]:
    """Stored values ``(rows, columns)`` of some frames; a ScanRefused if the file is gone or cut by now."""
    kind = np.dtype(plain.dtype)
    n_pixels = prod(file.shape)
    try:
        with file.path.open("rb") as stream:
            for index in indices:
                stream.seek(plain.start + index * n_pixels * kind.itemsize)
                values = np.fromfile(stream, kind, n_pixels)
                if len(values) < n_pixels:
                    raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA)
                if plain.n_unused_bits:  # they may hold an overlay
                    values = values << plain.n_unused_bits >> plain.n_unused_bits
                yield values.reshape(file.shape)
    except OSError as error:
        raise ScanRefused(os_error_reason(error)) from error
