"""What the ingest needs from a DICOM file: one `FileHeader`, and one `Frame` per image.

Everything after this module uses these two frozen types; pydicom data sets go no further than
`client.ingest.dicom.reader` and `client.ingest.dicom.pixels`. A classic file is one with a single frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

__all__ = ["FileHeader", "Frame", "Key", "MosaicLayout", "Scaling", "ScalingSource"]


class Key(StrEnum):
    """What may distinguish two images at one position, in the order in which it is tried."""

    STACK = "stack"
    IMAGE_TYPE = "image type"
    COMPONENT = "component"
    ECHO = "echo time"
    ECHO_NUMBER = "echo number"
    INVERSION = "inversion time"
    FLIP = "flip angle"
    KERNEL = "kernel"
    ENERGY = "tube voltage"
    THICKNESS = "slice thickness"
    IN_PLANE = "position within the plane"
    TEMPORAL = "temporal position"
    B_VALUE = "b value"
    ACQUISITION = "acquisition"
    CONTRAST = "contrast agent"
    UNIT = "unit"


@dataclass(frozen=True, slots=True)
class MosaicLayout:
    """How a Siemens mosaic is tiled."""

    n_tiles: int
    normal: tuple[float, float, float] | None  # slice direction (LPS); None if not stated


class ScalingSource(StrEnum):
    """Where a scale of pixel values comes from."""

    ABSENT = "absent"  # stored values are measured values
    STATED = "stated"
    MAPPED = "mapped"  # by a real-world mapping
    UNREADABLE = "unreadable"  # no number or several, zero, half lost, or a lookup table


@dataclass(frozen=True, slots=True)
class Scaling:
    """Measured values are ``stored x slope + intercept``."""

    slope: float = 1.0
    intercept: float = 0.0
    source: ScalingSource = ScalingSource.ABSENT
    is_private: bool = False  # by Philips's own scale slope


@dataclass(frozen=True, slots=True)
class PlainPixels:
    """Uncompressed grey pixels in a file."""

    start: int  # bytes before them
    dtype: str  # of a stored value, as NumPy writes it
    n_unused_bits: int  # the highest of each value


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What all frames of a file share; named after the DICOM attributes unless noted."""

    path: Path
    patient: str = field(repr=False)  # PatientID: tells patients apart and is written nowhere
    study_uid: str
    series_uid: str
    origin: tuple[str, ...] = field(repr=False)  # what is constant in a series and differs between mixed ones
    series_time: str  # SeriesTime
    times_s: tuple[float | None, ...]  # of acquisition and of content, from a common origin
    series_number: int  # 0 if absent
    sop_class_uid: str
    sop_uid: str  # SOPInstanceUID
    transfer_syntax: str
    description: str  # SeriesDescription, or ProtocolName if that is empty
    modality: str
    manufacturer: str  # lower case
    shape: tuple[int, int]  # rows, columns
    n_samples: int  # per pixel: 1 unless coloured
    photometric: str
    n_frames: int
    has_pixels: bool
    enhanced: bool  # functional groups describe the frames
    padding: float | None  # PixelPaddingValue as stored
    is_lossy: bool  # LossyImageCompression
    tilt_deg: float  # GantryDetectorTilt, 0 if absent
    mosaic: MosaicLayout | None  # of a Siemens mosaic
    plain: PlainPixels | None  # None: read through pydicom


@dataclass(frozen=True, slots=True)
class Frame:
    """One image."""

    file: FileHeader
    index: int  # in the file, from 0
    position_mm: tuple[float, ...] | None  # centre of its first pixel, LPS
    orientation: tuple[float, ...] | None  # unit vectors along a row and along a column, LPS
    spacing_mm: tuple[float, ...] | None  # between rows, between columns
    thickness_mm: float | None  # SliceThickness
    slice_step_mm: float | None  # SpacingBetweenSlices
    image_type: tuple[str, ...]  # FrameType in an enhanced file
    scaling: Scaling
    keys: tuple[tuple[Key, str], ...]

    @property
    def identity(self) -> tuple[str, int, str]:
        """Sort key that does not depend on where files lie, unless they are copies."""
        return self.file.sop_uid, self.index, str(self.file.path)

    def key(self, key: Key) -> str:
        """The value of one key, empty if the image has none."""
        return dict(self.keys).get(key, "")
