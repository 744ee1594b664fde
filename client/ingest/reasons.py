"""Why a series or a file was refused, and what was corrected: stable codes, one sentence each.

The codes are written to ``report.json`` and may be counted over hospitals: an existing one is never renamed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from mmare.errors import DataError

if TYPE_CHECKING:
    pass

__all__ = [
    "Correction",
    "Reason",
    "Refused",
    "SlideReason",
    "SlideRefused",
    "VolumeReason",
    "VolumeRefused",
    "explain",
]


class Reason(StrEnum):
    """Why something did not become a volume."""

    # files
    NOT_DICOM = "not-dicom"
    EMPTY_FILE = "empty-file"
    UNREADABLE_FILE = "unreadable-file"
    PERMISSION_DENIED = "permission-denied"
    DICOMDIR = "dicomdir"
    # what a picture is
    DERIVED_OBJECT = "derived-object"
    SECONDARY_CAPTURE = "secondary-capture"
    COLOUR = "colour"
    LOCALIZER = "localizer"
    NO_PIXELS = "no-pixels"
    NO_GEOMETRY = "no-geometry"
    # pixel data
    UNKNOWN_TRANSFER_SYNTAX = "unknown-transfer-syntax"
    NO_DECODER = "no-decoder"
    TRUNCATED_PIXEL_DATA = "truncated-pixel-data"
    DAMAGED_PIXEL_DATA = "damaged-pixel-data"
    # how the slices lie
    TOO_FEW_SLICES = "too-few-slices"
    MIXED_ORIENTATION = "mixed-orientation"
    FOUR_DIMENSIONAL = "four-dimensional"
    CONFLICTING_SLICES = "conflicting-slices"
    MISSING_SLICES = "missing-slices"
    GAP_TOO_WIDE = "gap-too-wide"
    SCATTERED_SLICES = "scattered-slices"
    MOSAIC_WITHOUT_LAYOUT = "mosaic-without-layout"
    # NIfTI
    NOT_NIFTI = "not-nifti"
    BAD_AFFINE = "bad-affine"
    # anything else
    NOT_CONVERTED = "not-converted"


class Correction(StrEnum):
    """What was done to a series so that it became a volume."""

    TILT = "tilt"
    UNEVEN_GAPS = "uneven-gaps"
    DUPLICATE_SLICES = "duplicate-slices"
    SERIES_SPLIT = "series-split"
    ENHANCED_SPLIT = "enhanced-split"
    MOSAIC = "mosaic"
    MONOCHROME1 = "monochrome1"
    PHILIPS_SCALING = "philips-scaling"
    TILT_TAG_IGNORED = "tilt-tag-ignored"


_SENTENCES: dict[Reason | Correction, str] = {
    Reason.NOT_DICOM: "The file is not DICOM.",
    Reason.EMPTY_FILE: "The file holds no bytes.",
    Reason.UNREADABLE_FILE: "The header cannot be read, or the disk refused to give it.",
    Reason.PERMISSION_DENIED: "The account that runs the conversion may not read it.",
    Reason.DICOMDIR: "A DICOMDIR lists other files and holds no picture.",
    Reason.DERIVED_OBJECT: "A report, presentation state, segmentation, plan or other object, no scan.",
    Reason.SECONDARY_CAPTURE: "A secondary capture: a picture of a screen or a page, not a scan.",
    Reason.COLOUR: "The pixels are colours, not measurements.",
    Reason.LOCALIZER: "A localizer (scout, survey), taken to plan other series.",
    Reason.NO_PIXELS: "The object has no pixel data.",
    Reason.NO_GEOMETRY: "Position, orientation or pixel spacing is not given or makes no sense.",
    Reason.UNKNOWN_TRANSFER_SYNTAX: "The transfer syntax is not one of the DICOM standard.",
    Reason.NO_DECODER: "No installed codec reads this transfer syntax.",
    Reason.TRUNCATED_PIXEL_DATA: "Pixel data end before the picture does.",
    Reason.DAMAGED_PIXEL_DATA: "Pixel data cannot be decoded.",
    Reason.TOO_FEW_SLICES: "Fewer than three slices lie side by side: a picture, not a volume.",
    Reason.MIXED_ORIENTATION: "The slices lie in several planes, too few in any of them to make a volume.",
    Reason.FOUR_DIMENSIONAL: "The same positions were measured repeatedly (time, diffusion, phase).",
    Reason.CONFLICTING_SLICES: "Some positions hold different pictures and nothing tells which one belongs.",
    Reason.MISSING_SLICES: "A gap is a multiple of the others: slices are missing.",
    Reason.GAP_TOO_WIDE: "A gap is so much wider than the others that filling it would invent anatomy.",
    Reason.SCATTERED_SLICES: "The slices are parallel but do not lie along one line.",
    Reason.MOSAIC_WITHOUT_LAYOUT: "A mosaic whose number of tiles or slice direction is not told.",
    Reason.NOT_NIFTI: "The file is not a readable NIfTI image.",
    Reason.BAD_AFFINE: "The header does not say where the voxels lie.",
    Reason.NOT_CONVERTED: "The conversion failed in a way that was not foreseen.",
    Correction.TILT: "Slices were moved within their plane, interpolated linearly, to stand upright.",
    Correction.UNEVEN_GAPS: "Slices were interpolated linearly to even gaps.",
    Correction.DUPLICATE_SLICES: "Slices that occurred more than once with the same pixels were dropped.",
    Correction.SERIES_SPLIT: "One series UID held different things, which became separate volumes.",
    Correction.ENHANCED_SPLIT: "The frames of a multi-frame object were put apart by its functional groups.",
    Correction.MOSAIC: "A mosaic was cut into its slices.",
    Correction.MONOCHROME1: "The display is inverted (MONOCHROME1); the values are kept as measured.",
    Correction.PHILIPS_SCALING: "Values are the scanner's own (Philips scale slope), as dcm2niix gives them.",
    Correction.TILT_TAG_IGNORED: "A gantry tilt is stated, but the positions show an upright stack.",
}


def explain(code: Reason | Correction) -> str:
    """The sentence that a code stands for.

    Example:
        >>> explain(Reason.DICOMDIR)
        'A DICOMDIR lists other files and holds no picture.'
    """
    return _SENTENCES[code]


class Refused(DataError):  # noqa: N818  reads as what happened: raise Refused(reason)
    """A series or file that cannot become a volume.

    Args:
        reason: The stable code.
        detail: What was found, without path, name or identifier; follows the sentence of the code.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{explain(reason)} {detail}".strip())
        self.reason = reason
        self.detail = detail


class SlideReason(StrEnum):
    """Why a file gave no tiles; stable, never renamed."""

    EMPTY_FILE = "empty-file"
    UNREADABLE_FILE = "unreadable-file"
    PERMISSION_DENIED = "permission-denied"
    NOT_A_SLIDE = "not-a-slide"
    DAMAGED_PIXEL_DATA = "damaged-pixel-data"
    NO_RESOLUTION = "no-resolution"
    TOO_COARSE = "too-coarse"
    TOO_SMALL = "too-small"
    NO_TISSUE = "no-tissue"
    DARK_BACKGROUND = "dark-background"


_SLIDE_SENTENCES = {
    SlideReason.EMPTY_FILE: "The file holds no bytes.",
    SlideReason.UNREADABLE_FILE: "The file is missing, is no regular file, or the disk refused to give it.",
    SlideReason.PERMISSION_DENIED: "The account that reads the slides may not read it.",
    SlideReason.NOT_A_SLIDE: "The file is no whole slide that OpenSlide knows, or its head is damaged.",
    SlideReason.DAMAGED_PIXEL_DATA: "The slide is cut short or its pixels cannot be decoded.",
    SlideReason.NO_RESOLUTION: "The slide does not say its microns per pixel, and none was given for it.",
    SlideReason.TOO_COARSE: "The slide is coarser than the study's resolution; it is never upsampled.",
    SlideReason.TOO_SMALL: "The slide is smaller than one tile.",
    SlideReason.NO_TISSUE: "No tissue stands out from the glass.",
    SlideReason.DARK_BACKGROUND: "The background is dark: no bright-field slide.",
}


class SlideRefused(DataError):  # noqa: N818  reads as what happened, as Refused of the volumes
    """A slide that gives no tiles.

    Args:
        reason: The stable code.
        detail: What was found, without path, name or identifier; follows the sentence of the code.
    """

    def __init__(self, reason: SlideReason, detail: str = "") -> None:
        super().__init__(f"{_SLIDE_SENTENCES[reason]} {detail}".strip())
        self.reason = reason
        self.detail = detail


class VolumeReason(StrEnum):
    """Why a volume was not encoded: stable codes, counted in reports; an existing one is never renamed."""

    NON_FINITE = "non-finite-voxels"
    EMPTY = "empty-volume"
    CONSTANT = "constant-volume"
    NO_MASK = "no-mask"
    MASK_GRID = "mask-on-another-grid"
    EMPTY_MASK = "empty-mask"
    MASK_COMMAND = "mask-command-failed"


_VOLUME_SENTENCES = {
    VolumeReason.NON_FINITE: "Some voxels are NaN or infinite.",
    VolumeReason.EMPTY: "No voxel lies above the background.",
    VolumeReason.CONSTANT: "All voxels above the background have one value.",
    VolumeReason.NO_MASK: "The study needs a mask and the patient has none.",
    VolumeReason.MASK_GRID: "The mask does not lie on the grid of the scan.",
    VolumeReason.EMPTY_MASK: "The mask marks no voxel.",
    VolumeReason.MASK_COMMAND: "The command that makes the mask failed.",
}


class VolumeRefused(DataError):  # noqa: N818  reads as what happened, as client.ingest.reasons.Refused
    """A volume that no encoder should see.

    Args:
        reason: The stable code.
        detail: What was found, without path, name or identifier; follows the sentence of the code.
    """

    def __init__(self, reason: VolumeReason, detail: str = "") -> None:
        super().__init__(f"{_VOLUME_SENTENCES[reason]} {detail}".strip())
        self.reason = reason
        self.detail = detail
