"""Why a series or a file was refused, and what was corrected: stable codes, one sentence each.

The codes are written to ``report.json`` and may be counted over hospitals: an existing one is never renamed.
"""

from __future__ import annotations

from enum import StrEnum

from mmare.errors import DataError

__all__ = ["Correction", "Reason", "Refused", "explain"]


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
