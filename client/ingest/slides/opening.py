"""Open a slide, or say why it is none: OpenSlide's formats, a DICOM slide's folder, a plain RGB TIFF."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openslide
import pydicom
from PIL import Image
from PIL.TiffImagePlugin import IMAGEDESCRIPTION, RESOLUTION_UNIT, X_RESOLUTION, Y_RESOLUTION, TiffImageFile
from pydicom.errors import InvalidDicomError
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

from client.ingest.files import os_error_reason
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.slides.resolution import DESCRIPTION, PER_UNIT, UNIT

__all__ = ["opened"]

LONGEST_SIDE_PX = 1_000_000  # 25 cm at 0.25 µm
LARGEST_STORED_TILE_PX = 8192 * 8192  # in the file; scanners write 240 to 4096 a side
LARGEST_LOWEST_LEVEL_PX = 150_000 * 150_000  # without a pyramid; read in strips
_SIDES = ("width", "height")
_EXTRAS = frozenset({"LABEL", "OVERVIEW", "LOCALIZER", "THUMBNAIL"})
_IDENTITY = ["SOPClassUID", "SeriesInstanceUID", "ImageType"]
_NO_PYRAMID = "It is a slide's label, overview or thumbnail; name a file of its pyramid."
_CUT_SHORT = "The slide is damaged or cut short."
_RESOLUTION_UNITS = {1: "none", 2: "inch", 3: "centimeter"}  # as OpenSlide calls them
_INCH = 2  # the unit of a TIFF that names none
_PILLOW_ERRORS = (  # observed on damaged files
    Image.DecompressionBombError,
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    struct.error,
)


@contextmanager
def opened(path: Path) -> Iterator[openslide.AbstractSlide]:
    """Open a slide; OpenSlide's errors within the block become a reason.

    Raises:
        ScanRefused: With the reason; the message holds no path.
    """
    try:
        if path.is_dir() and any(path.iterdir()):
            path = _file_of(path)
        if not path.is_file():  # a pipe would block
            raise ScanRefused(ScanReason.UNREADABLE_FILE, "It is missing or not a regular file.")
        with path.open("rb") as stream:
            if not stream.read(1):
                raise ScanRefused(ScanReason.EMPTY_FILE)
    except OSError as error:
        raise ScanRefused(os_error_reason(error)) from error
    try:
        with _open(path) as slide:
            _check_sizes(slide)
            yield slide
    except openslide.OpenSlideError as error:
        if (header := _header(path)) is not None and _is_extra(header):
            raise ScanRefused(ScanReason.NOT_A_SLIDE, _NO_PYRAMID) from error
        raise ScanRefused(ScanReason.DAMAGED_PIXEL_DATA, _CUT_SHORT) from error


def _open(path: Path) -> openslide.AbstractSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        return _plain_tiff(path)


def _file_of(folder: Path) -> Path:
    """A file of the pyramid of the only DICOM slide in a folder; OpenSlide finds the others of its series."""
    found: dict[str, Path] = {}
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        header = _header(path)
        if header is None or header.get("SOPClassUID") != VLWholeSlideMicroscopyImageStorage:
            continue
        if not _is_extra(header):
            found.setdefault(str(header.get("SeriesInstanceUID")), path)
    if len(found) == 1:
        return next(iter(found.values()))
    held = f"with {len(found)} DICOM slides" if found else "without a DICOM slide"
    raise ScanRefused(ScanReason.NOT_A_SLIDE, f"It is a folder {held}; name one file of the slide's pyramid.")


def _header(path: Path) -> pydicom.Dataset | None:
    """What tells the kind of a DICOM file; none if it is no such file."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_IDENTITY)
    except (InvalidDicomError, OSError, EOFError, ValueError, LookupError, struct.error):
        return None


def _is_extra(header: pydicom.Dataset) -> bool:
    """Whether it is a label, overview or thumbnail of a DICOM slide."""
    return not _EXTRAS.isdisjoint(header.get("ImageType") or ())


def _check_sizes(slide: openslide.AbstractSlide) -> None:
    """Refuse implausible sizes in a damaged header: OpenSlide aborts the process if out of memory."""
    for level, (width, height) in enumerate(slide.level_dimensions):
        tile = [slide.properties.get(f"openslide.level[{level}].tile-{side}", "0") for side in _SIDES]
        if max(width, height) > LONGEST_SIDE_PX or math.prod(map(int, tile)) > LARGEST_STORED_TILE_PX:
            raise ScanRefused(ScanReason.DAMAGED_PIXEL_DATA, "Its header states impossible sizes.")
    if math.prod(slide.level_dimensions[-1]) > LARGEST_LOWEST_LEVEL_PX:
        raise ScanRefused(ScanReason.DAMAGED_PIXEL_DATA, "Its lowest level is impossibly large.")


def _plain_tiff(path: Path) -> openslide.AbstractSlide:
    """A single-image RGB TIFF without pyramid or tiles, as small slides are exported."""
    refused = ScanRefused(ScanReason.NOT_A_SLIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged tags and large images
        try:
            with Image.open(path, formats=("TIFF",)) as picture:
                if not isinstance(picture, TiffImageFile) or picture.mode != "RGB" or picture.n_frames != 1:
                    raise ScanRefused(ScanReason.NOT_A_SLIDE, "A TIFF that is not a single RGB image.")
                refused = ScanRefused(ScanReason.DAMAGED_PIXEL_DATA, _CUT_SHORT)
                return _PlainTiff(picture)
        except _PILLOW_ERRORS as error:
            raise refused from error


class _PlainTiff(openslide.ImageSlide):
    """A TIFF that Pillow decodes, with what its tags say under OpenSlide's names."""

    def __init__(self, picture: TiffImageFile) -> None:
        super().__init__(picture.copy())  # decoded here
        tags = picture.tag_v2
        names = dict(zip(PER_UNIT, (X_RESOLUTION, Y_RESOLUTION), strict=True))
        self._tags = {name: str(float(tags[tag])) for name, tag in names.items() if tag in tags}
        self._tags[UNIT] = _RESOLUTION_UNITS.get(tags.get(RESOLUTION_UNIT, _INCH), "none")
        self._tags[DESCRIPTION] = str(tags.get(IMAGEDESCRIPTION, ""))

    @property
    def properties(self) -> dict[str, str]:
        """Its tags."""
        return self._tags
