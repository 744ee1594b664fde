"""Slides made in code."""

import io
import struct
from functools import cache, lru_cache

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

from client.ingest.reasons import ScanRefused
from client.ingest.slides.wsi import tiles_of
from mmare.errors import DataError

GLASS = (243, 242, 244)
TISSUE = (190, 120, 170)
BLOCK = 256  # of the tiled TIFF, a multiple of 16


def write_pyramid(path, levels, um_px=None, description="a tiled picture", per_unit=(), unit=1):
    """A tiled, uncompressed RGB TIFF as Aperio lays it out: one directory for each level, the finest first.

    Without `um_px` it is a generic tiled TIFF, which says no resolution but `per_unit` pixels across and
    down, and what is in its `description`.
    """
    out = bytearray(b"II*\0\0\0\0\0")
    next_at = 4  # where the offset of the next directory goes
    for number, picture in enumerate(levels):
        height, width = picture.shape[:2]
        offsets = []
        for block in blocks(picture):
            offsets.append(len(out))
            out += block.tobytes()
        text = description if um_px is None else f"Aperio Image Library phantom|MPP = {um_px}"
        about = text.encode() + b"\0"

        n = len(offsets)
        lengths = struct.pack(f"<{n}I", *[BLOCK * BLOCK * 3] * n)
        starts = struct.pack(f"<{n}I", *offsets)
        inline = n == 1
        entries = [
            (254, 4, 1, 0 if number == 0 else 1),
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 3, append(out, struct.pack("<3H", 8, 8, 8))),
            (259, 3, 1, 1),
            (262, 3, 1, 2),
            (270, 2, len(about), append(out, about)),
            (277, 3, 1, 3),
            (284, 3, 1, 1),
            (322, 4, 1, BLOCK),
            (323, 4, 1, BLOCK),
            (324, 4, n, offsets[0] if inline else append(out, starts)),
            (325, 4, n, BLOCK * BLOCK * 3 if inline else append(out, lengths)),
        ]
        sizes = [struct.pack("<2I", round(number * 1000), 1000) for number in per_unit]
        entries += [(282 + axis, 5, 1, append(out, size)) for axis, size in enumerate(sizes)]
        entries = sorted([*entries, (296, 3, 1, unit)])
        struct.pack_into("<I", out, next_at, len(out))
        out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        next_at = len(out)
        out += b"\0\0\0\0"
    path.write_bytes(out)
    return path


def blocks(picture):
    """The stored tiles, row by row, filled up beyond the edges."""
    for top in range(0, picture.shape[0], BLOCK):
        for left in range(0, picture.shape[1], BLOCK):
            block = np.zeros((BLOCK, BLOCK, 3), np.uint8)
            part = picture[top : top + BLOCK, left : left + BLOCK]
            block[: part.shape[0], : part.shape[1]] = part
            yield block


def append(out, content):
    at = len(out)
    out.extend(content + b"\0" * (len(content) % 2))
    return at


def canvas(width, height, *boxes: tuple[int, int, int, int], glass=GLASS):
    """Glass with boxes of tissue: (left, top, width, height) in pixels."""
    picture = np.full((height, width, 3), glass, np.uint8)
    for left, top, across, down in boxes:
        picture[top : top + down, left : left + across] = TISSUE
    return picture


def halved(picture, factor):
    height, width = (length // factor for length in picture.shape[:2])
    whole = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return whole.mean(axis=(1, 3)).round().astype(np.uint8)


@lru_cache
@cache
def drawn(seed, width=2048, height=1536):
    """Textured tissue of some shape in the middle of a slide, read-only; every seed another one."""
    draws = np.random.default_rng(seed)

    def field(n):
        waves = Image.fromarray(draws.normal(size=(n, n * width // height)).astype(np.float32))
        return np.asarray(waves.resize((width, height), Image.Resampling.BICUBIC))

    down, across = np.mgrid[:height, :width]
    middle = np.hypot((down - height / 2) / height, (across - width / 2) / width)
    tissue = 0.6 * field(5) + 1.2 - 4.2 * middle > 0
    texture = 12 * field(40) + 12 * field(160) + 10 * draws.normal(size=(height, width))
    picture = np.where(tissue[..., None], TISSUE + texture[..., None], GLASS)
    found = picture.clip(0, 255).astype(np.uint8)
    found.flags.writeable = False
    return found


def shrunk(picture, factor, box=None):
    """A lower level as a scanner makes it: averages, sizes rounded down."""
    height, width = picture.shape[:2]
    size = (width // factor, height // factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX, box))


def write_dicom_level(
    path, picture, number, spacing_um, syntax=ExplicitVRLittleEndian, series="1.2.3.4", kind="VOLUME"
):
    """One level of a DICOM slide: tiled in full, one optical path."""
    level = pydicom.Dataset()
    level.ensure_file_meta()
    level.file_meta.TransferSyntaxUID = syntax
    level.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    level.SOPInstanceUID = f"{series}.{number}"
    level.StudyInstanceUID, level.SeriesInstanceUID, level.Modality = "1.2.3", series, "SM"
    level.InstanceNumber = number
    level.ImageType = ["DERIVED", "PRIMARY", kind, "RESAMPLED"]
    if number == 1:
        level.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    level.Rows = level.Columns = BLOCK
    level.TotalPixelMatrixRows, level.TotalPixelMatrixColumns = picture.shape[:2]
    level.SamplesPerPixel, level.PlanarConfiguration, level.PixelRepresentation = 3, 0, 0
    level.BitsAllocated = level.BitsStored = 8
    level.HighBit = 7
    level.PhotometricInterpretation = {JPEGBaseline8Bit: "YBR_FULL_422", JPEG2000: "YBR_ICT"}.get(
        syntax, "RGB"
    )
    level.DimensionOrganizationType = "TILED_FULL"
    level.NumberOfOpticalPaths = level.TotalPixelMatrixFocalPlanes = 1
    measures, shared, optics = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [spacing_um[1] / 1000, spacing_um[0] / 1000]
    shared.PixelMeasuresSequence = [measures]
    level.SharedFunctionalGroupsSequence = [shared]
    optics.OpticalPathIdentifier = "1"
    level.OpticalPathSequence = [optics]
    frames = [_frame(block, syntax) for block in blocks(picture)]
    level.NumberOfFrames = len(frames)
    level.PixelData = b"".join(frames) if syntax == ExplicitVRLittleEndian else encapsulate(frames)
    level["PixelData"].VR = "OB"
    path.parent.mkdir(exist_ok=True)
    level.save_as(path, enforce_file_format=True)


def _frame(block, syntax):
    if syntax == ExplicitVRLittleEndian:
        return block.tobytes()
    stream = io.BytesIO()
    if syntax == JPEGBaseline8Bit:
        Image.fromarray(block).save(stream, "JPEG", quality=95)
    else:
        Image.fromarray(block).save(stream, "JPEG2000", no_jp2=True, mct=1)
    return stream.getvalue()


def reason_of(path, **options: object):
    with pytest.raises(ScanRefused) as refused:
        tiles_of(path, **options)
    assert isinstance(refused.value, DataError)
    assert path.name not in str(refused.value)
    assert "\n" not in str(refused.value)
    return refused.value.reason
