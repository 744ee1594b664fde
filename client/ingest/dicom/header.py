"""What the rest of the ingest needs to know of a DICOM file: one `FileHeader`, and one `Frame` per picture.

Everything after this module works on these two frozen types; a data set of pydicom goes no further than here
and `client.ingest.dicom.pixels`. A classic file is a multi-frame file with one frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

__all__ = ["FileHeader", "Frame", "Key", "MosaicLayout"]


class Key(StrEnum):
    """What may tell two pictures at one position apart, in the order in which it is asked."""

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


@dataclass(frozen=True)
class MosaicLayout:
    """How a Siemens mosaic is tiled.

    Args:
        n_tiles: Slices in the mosaic.
        normal: The direction in which the slices follow one another (LPS), or None where the file does not
            tell.
    """

    n_tiles: int
    normal: tuple[float, float, float] | None


@dataclass(frozen=True)
class FileHeader:
    """What all frames of a file share. ``patient`` tells patients apart and is written nowhere.

    Args:
        path: The file.
        patient: PatientID.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        series_number: SeriesNumber, 0 where absent.
        sop_class_uid: SOPClassUID.
        sop_uid: SOPInstanceUID.
        transfer_syntax: Its UID.
        description: SeriesDescription, or ProtocolName where that is empty.
        modality: Modality.
        manufacturer: Manufacturer, lower case.
        shape: Rows, columns.
        n_samples: Numbers per pixel: 1 unless coloured.
        photometric: PhotometricInterpretation.
        n_frames: Pictures in the file.
        has_pixels: Whether anything follows the header.
        enhanced: Whether functional groups describe the frames.
        padding: PixelPaddingValue as stored, or None.
        tilt_deg: GantryDetectorTilt, 0 where absent.
        mosaic: The layout where the picture is a Siemens mosaic.
    """

    path: Path
    patient: str = field(repr=False)
    study_uid: str
    series_uid: str
    series_number: int
    sop_class_uid: str
    sop_uid: str
    transfer_syntax: str
    description: str
    modality: str
    manufacturer: str
    shape: tuple[int, int]
    n_samples: int
    photometric: str
    n_frames: int
    has_pixels: bool
    enhanced: bool
    padding: float | None
    tilt_deg: float
    mosaic: MosaicLayout | None


@dataclass(frozen=True)
class Frame:
    """One picture.

    Args:
        file: The file it is in.
        index: Its place in the file, from 0.
        position_mm: Centre of its first pixel (LPS), or None.
        orientation: Unit vectors along a row and along a column (LPS), or None.
        spacing_mm: Distance between rows, between columns, or None.
        thickness_mm: SliceThickness, or None.
        slice_step_mm: SpacingBetweenSlices, or None.
        image_type: ImageType, or FrameType of an enhanced file.
        slope: What stored values are multiplied with.
        intercept: What is added then.
        scaling_is_private: Whether slope and intercept are Philips's own.
        keys: What may tell it from another picture at the same position.
    """

    file: FileHeader
    index: int
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    slice_step_mm: float | None
    image_type: tuple[str, ...]
    slope: float
    intercept: float
    scaling_is_private: bool
    keys: tuple[tuple[Key, str], ...]

    @property
    def identity(self) -> tuple[str, int, str]:
        """What orders frames the same way wherever their files lie."""
        return self.file.sop_uid, self.index, str(self.file.path)

    def key(self, key: Key) -> str:
        """The value of one key, empty where the picture has none."""
        return dict(self.keys).get(key, "")
