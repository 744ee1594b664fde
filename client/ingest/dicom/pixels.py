"""Decode images and turn stored values into measured ones.

Codecs are pydicom's: its own for plain and run-length data, GDCM for JPEG, JPEG-LS and JPEG 2000, OpenJPEG
for HTJ2K. Values are ``stored x slope + intercept`` per image. As in dcm2niix, MONOCHROME1 (a matter of
display) and padding values are left as they are.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from math import prod

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import Tag
from pydicom.uid import RLELossless

from client.ingest.dicom.header import FileHeader, Frame, Scaling
from client.ingest.dicom.plain import read_plain_pixels
from client.ingest.dicom.reader import transfer_syntax_of
from client.ingest.dicom.resample import Grid
from client.ingest.dicom.values import number
from client.ingest.files import os_error_reason
from client.ingest.reasons import ScanReason, ScanRefused

__all__ = ["fingerprints", "measured_values", "stored_values"]

_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
_PIXEL_TAGS = [  # all that decoding needs: reading every element takes longer
    *(Tag(keyword) for keyword in _PIXEL_KEYWORDS),
    *map(Tag, ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration")),
    *map(Tag, ("NumberOfFrames", "BitsAllocated", "BitsStored", "PixelRepresentation")),
    *map(Tag, ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")),
    *(Tag(group, 0x0102) for group in _OVERLAY_GROUPS),
]
_END_OF_IMAGE = b"\xff\xd9"  # ends every stream of the JPEG family
_TRAILING_BYTES = 64  # padding that encoders append
_BITS_PER_BYTE = 8
_ITEM_TAG = b"\xfe\xff\x00\xe0"  # begins encapsulated pixel data
_WHOLE = 2.0**31  # times 32 stored bits stays within int64
_INT16 = np.iinfo(np.int16)


def stored_values(frames: Sequence[Frame]) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """Decode images, reading each file once.

    Yields:
        A frame's index among those given, and its stored values ``(rows, columns)``.

    Raises:
        ScanRefused: If a file or its pixel data cannot be read.
    """
    for file, places in _by_file(frames).items():
        pictures = _decoder_of(file)([frames[place].index for place in places])
        yield from zip(places, pictures, strict=True)


def measured_values(frames: Sequence[Frame]) -> Grid:
    """Values of images of one size, ``(n, rows, columns)``: int16 if all are whole and fit, else float32.

    Raises:
        ScanRefused: If a file or its pixel data cannot be read.
    """
    pictures: list[NDArray[np.generic]] = [np.empty(0)] * len(frames)
    for place, stored in stored_values(frames):
        pictures[place] = _scale(stored, frames[place].scaling)
    if all(picture.dtype == np.int16 for picture in pictures):
        return np.stack(pictures).astype(np.int16, copy=False)
    return np.stack([picture.astype(np.float32) for picture in pictures])


def fingerprints(frames: Sequence[Frame]) -> list[bytes | None]:
    """Per image a hash, equal for equal values, None if it cannot be read; each file is opened once."""
    marks: list[bytes | None] = [None] * len(frames)
    for file, places in _by_file(frames).items():
        with suppress(ScanRefused):
            decode = _decoder_of(file)
            for place in places:
                with suppress(ScanRefused):
                    (values,) = decode([frames[place].index])
                    marks[place] = _hash(values, frames[place])
    return marks


def _hash(values: NDArray[np.generic], frame: Frame) -> bytes:
    digest = hashlib.sha256(np.array([frame.scaling.slope, frame.scaling.intercept]).tobytes())
    digest.update(np.ascontiguousarray(values, np.float64).tobytes())
    return digest.digest()


def _by_file(frames: Sequence[Frame]) -> dict[FileHeader, list[int]]:
    """Places in the sequence of the frames of each file."""
    places: dict[FileHeader, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame.file, []).append(place)
    return places


def _scale(stored: NDArray[np.generic], scaling: Scaling) -> NDArray[np.generic]:
    slope, intercept = scaling.slope, scaling.intercept
    is_whole = slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < _WHOLE
    if is_whole and np.issubdtype(stored.dtype, np.integer):
        ends = [int(end) * int(slope) + int(intercept) for end in (stored.min(), stored.max())]
        fits = min(ends) >= _INT16.min and max(ends) <= _INT16.max
        if fits and (slope, intercept) == (1, 0):
            return stored.astype(np.int16)
        return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(np.int16 if fits else np.int64)
    with np.errstate(over="ignore"):
        scaled = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    if np.issubdtype(stored.dtype, np.integer) and not np.isfinite(scaled).all():
        raise ScanRefused(ScanReason.UNCLEAR_SCALING, f"A slope of {slope:g} and intercept of {intercept:g}.")
    return scaled


def _decoder_of(file: FileHeader) -> Callable[[Sequence[int]], Iterable[NDArray[np.generic]]]:
    """What gives the stored values of some images of a file; a ScanRefused if it cannot be read."""
    if file.plain:
        return partial(read_plain_pixels, file, file.plain)
    return _Pictures(file).decode


class _Pictures:
    """The images of one file, which is opened and checked once; a ScanRefused if it cannot be read."""

    def __init__(self, file: FileHeader) -> None:
        self._file = file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about padding and invalid values elsewhere in the header
            self._dataset = _read(file)
            _check_decoder(file)
            _check_length(file, self._dataset)

    def decode(self, indices: Sequence[int]) -> Iterator[NDArray[np.generic]]:
        """Stored values ``(rows, columns)`` of some images; a ScanRefused if they cannot be decoded."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            decoder = get_decoder(self._file.transfer_syntax)
            try:
                for values, _ in decoder.iter_array(self._dataset, indices=indices, raw=True):
                    yield self._checked(_without_overlay(self._dataset, values))
            except ScanRefused:
                raise
            except Exception as error:  # codecs raise anything
                raise ScanRefused(ScanReason.DAMAGED_PIXEL_DATA) from error

    def _checked(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        if values.shape != self._file.shape:
            raise ScanRefused(
                ScanReason.DAMAGED_PIXEL_DATA, f"Decoded {values.shape}, the header says {self._file.shape}."
            )
        return values


def _read(file: FileHeader) -> pydicom.FileDataset:
    try:
        dataset = pydicom.dcmread(file.path, force=True, specific_tags=_PIXEL_TAGS)
    except OSError as error:
        raise ScanRefused(os_error_reason(error)) from error
    except Exception as error:  # a file cut off in the middle of an element
        raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA) from error
    if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):  # the header promised some
        raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA)
    dataset.ensure_file_meta()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(transfer_syntax_of(dataset))
    return dataset


def _check_decoder(file: FileHeader) -> None:
    name = pydicom.uid.UID(file.transfer_syntax).name
    try:
        decoder = get_decoder(file.transfer_syntax)
    except NotImplementedError as error:
        raise ScanRefused(ScanReason.NO_DECODER, f"It is {name}.") from error
    if not decoder.is_available:
        raise ScanRefused(ScanReason.NO_DECODER, f"It is {name}; {', '.join(decoder.missing_dependencies)}.")


def _check_length(file: FileHeader, dataset: Dataset) -> None:
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        keyword = next(keyword for keyword in _PIXEL_KEYWORDS if keyword in dataset)
        bits = number(dataset, "BitsAllocated") or 0.0
        wanted = prod(file.shape) * file.n_samples * file.n_frames * int(bits) // _BITS_PER_BYTE
        found = len(dataset[keyword].value or b"")
        if getattr(dataset[keyword], "is_undefined_length", False):
            raise ScanRefused(
                ScanReason.WRONG_TRANSFER_SYNTAX, "It is compressed, stated is an uncompressed one."
            )
        if found < wanted:
            raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA, f"{found} of {wanted} bytes.")
        return
    if not dataset.PixelData.startswith(_ITEM_TAG):
        raise ScanRefused(ScanReason.WRONG_TRANSFER_SYNTAX, "It is uncompressed, stated is a compressed one.")
    try:
        streams = list(generate_frames(dataset.PixelData, number_of_frames=file.n_frames))
    except Exception as error:
        raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA) from error
    if len(streams) < file.n_frames:
        raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA, f"{len(streams)} of {file.n_frames} pictures.")
    if file.transfer_syntax != RLELossless and any(
        _END_OF_IMAGE not in s[-_TRAILING_BYTES:] for s in streams
    ):
        raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA, "A compressed picture does not end.")


def _without_overlay(dataset: Dataset, values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Clear the bits above BitsStored if an old overlay is hidden in them."""
    bits = int(number(dataset, "BitsStored") or 0)
    hidden = any(
        (group, 0x0102) in dataset and (number(dataset, (group, 0x0102)) or 0) >= bits
        for group in _OVERLAY_GROUPS
    )
    if not hidden or not 0 < bits < values.dtype.itemsize * _BITS_PER_BYTE or values.dtype.kind not in "iu":
        return values
    kept = values.astype(np.int64) & ((1 << bits) - 1)
    if values.dtype.kind == "i":
        kept = np.where(kept >= 1 << (bits - 1), kept - (1 << bits), kept)
    return kept.astype(values.dtype)
