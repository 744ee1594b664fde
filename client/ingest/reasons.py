"""Why a scan was refused, and what was corrected: stable codes, one sentence each.

The codes are stored in ``report.json``, the embedding cache and metric labels: never rename one.
Caches from before that are matched by the start of their sentence (`client.data.cache`), so keep it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from mmare.errors import DataError

__all__ = ["TRANSIENT", "Correction", "ScanReason", "ScanRefused", "explain", "refused_by"]


class ScanReason(StrEnum):
    """Why a file, a series, a slide or a volume cannot be used."""

    # files
    NOT_DICOM = "not-dicom"
    EMPTY_FILE = "empty-file"
    UNREADABLE_FILE = "unreadable-file"
    PERMISSION_DENIED = "permission-denied"
    DICOMDIR = "dicomdir"
    # kind of image
    DERIVED_OBJECT = "derived-object"
    SECONDARY_CAPTURE = "secondary-capture"
    COLOUR = "colour"
    LOCALIZER = "localizer"
    NO_PIXELS = "no-pixels"
    NO_GEOMETRY = "no-geometry"
    # pixel data
    UNKNOWN_TRANSFER_SYNTAX = "unknown-transfer-syntax"
    NO_DECODER = "no-decoder"
    WRONG_TRANSFER_SYNTAX = "wrong-transfer-syntax"
    TRUNCATED_PIXEL_DATA = "truncated-pixel-data"
    DAMAGED_PIXEL_DATA = "damaged-pixel-data"
    UNCLEAR_SCALING = "unclear-scaling"
    # arrangement of slices
    TOO_FEW_SLICES = "too-few-slices"
    MIXED_ORIENTATION = "mixed-orientation"
    FOUR_DIMENSIONAL = "four-dimensional"
    CONFLICTING_SLICES = "conflicting-slices"
    NO_IDENTITY = "no-identity"
    UID_PER_SLICE = "uid-per-slice"
    MISSING_SLICES = "missing-slices"
    GAP_TOO_WIDE = "gap-too-wide"
    SCATTERED_SLICES = "scattered-slices"
    MOSAIC_WITHOUT_LAYOUT = "mosaic-without-layout"
    # NIfTI
    NOT_NIFTI = "not-nifti"
    BAD_AFFINE = "bad-affine"
    CONFLICTING_AFFINES = "conflicting-affines"
    # whole slides
    NOT_A_SLIDE = "not-a-slide"
    CONFLICTING_LEVELS = "conflicting-levels"
    NO_RESOLUTION = "no-resolution"
    TOO_COARSE = "too-coarse"
    TOO_SMALL = "too-small"
    NO_TISSUE = "no-tissue"
    DARK_BACKGROUND = "dark-background"
    # volumes and masks as encoder input
    NON_FINITE_VOXELS = "non-finite-voxels"
    OUTLYING_VOXELS = "outlying-voxels"
    EMPTY_VOLUME = "empty-volume"
    CONSTANT_VOLUME = "constant-volume"
    LABEL_MAP = "label-map"
    NO_MASK = "no-mask"
    MASK_GRID = "mask-on-another-grid"
    EMPTY_MASK = "empty-mask"
    MASK_COMMAND = "mask-command-failed"
    NO_FITTING_SERIES = "no-fitting-series"
    NON_FINITE_EMBEDDING = "non-finite-embedding"
    # anything else
    NOT_CONVERTED = "not-converted"
    OTHER = "other"


class Correction(StrEnum):
    """What was done to turn a series into a volume."""

    TILT = "tilt"
    UNEVEN_GAPS = "uneven-gaps"
    DUPLICATE_SLICES = "duplicate-slices"
    SERIES_SPLIT = "series-split"
    ENHANCED_SPLIT = "enhanced-split"
    MOSAIC = "mosaic"
    MONOCHROME1 = "monochrome1"
    PHILIPS_SCALING = "philips-scaling"
    TILT_TAG_IGNORED = "tilt-tag-ignored"


# Transient: not caused by the scan itself, so it is retried in each run.
TRANSIENT: Final = frozenset(
    {ScanReason.PERMISSION_DENIED, ScanReason.UNREADABLE_FILE, ScanReason.MASK_COMMAND}
)

_SENTENCES: Final[dict[ScanReason | Correction, str]] = {
    ScanReason.NOT_DICOM: "The file is not DICOM.",
    ScanReason.EMPTY_FILE: "The file holds no bytes.",
    ScanReason.UNREADABLE_FILE: "The file or its header cannot be read, or the disk refused to give it.",
    ScanReason.PERMISSION_DENIED: "The account that runs this program may not read it.",
    ScanReason.DICOMDIR: "A DICOMDIR lists other files and holds no picture.",
    ScanReason.DERIVED_OBJECT: "A report, presentation state, segmentation, plan or other object, no scan.",
    ScanReason.SECONDARY_CAPTURE: "A secondary capture: a picture of a screen or a page, not a scan.",
    ScanReason.COLOUR: "The pixels are colours, not measurements.",
    ScanReason.LOCALIZER: "A localizer (scout, survey), taken to plan other series.",
    ScanReason.NO_PIXELS: "The object has no pixel data.",
    ScanReason.NO_GEOMETRY: "Position, orientation or pixel spacing is not given or makes no sense.",
    ScanReason.UNKNOWN_TRANSFER_SYNTAX: "The transfer syntax is not one of the DICOM standard.",
    ScanReason.NO_DECODER: "No installed codec reads this transfer syntax.",
    ScanReason.WRONG_TRANSFER_SYNTAX: "The pixel data is not in the transfer syntax that the file states.",
    ScanReason.TRUNCATED_PIXEL_DATA: "Pixel data end before the picture does.",
    ScanReason.DAMAGED_PIXEL_DATA: "Pixel data cannot be decoded.",
    ScanReason.UNCLEAR_SCALING: "The scale is lost in some slices, or is not one slope and one intercept.",
    ScanReason.TOO_FEW_SLICES: "Fewer than three slices lie side by side: a picture, not a volume.",
    ScanReason.MIXED_ORIENTATION: "The slices lie in several planes, too few in each of them for a volume.",
    ScanReason.FOUR_DIMENSIONAL: "The same positions were measured repeatedly (time, diffusion, phase).",
    ScanReason.CONFLICTING_SLICES: "Some positions hold different pictures; nothing says which one belongs.",
    ScanReason.NO_IDENTITY: "The series UID is empty or a placeholder: nothing keeps two scans apart.",
    ScanReason.UID_PER_SLICE: "Every slice has a UID or patient id of its own: export with the true ones.",
    ScanReason.MISSING_SLICES: "A gap is a multiple of the others: slices are missing.",
    ScanReason.GAP_TOO_WIDE: "A gap is so much wider than the others that filling it would invent anatomy.",
    ScanReason.SCATTERED_SLICES: "The slices are parallel but do not lie along one line.",
    ScanReason.MOSAIC_WITHOUT_LAYOUT: "A mosaic whose number of tiles or slice direction is not given.",
    ScanReason.NOT_NIFTI: "The file is not a readable NIfTI image.",
    ScanReason.BAD_AFFINE: "The header does not say where the voxels lie.",
    ScanReason.CONFLICTING_AFFINES: "The sform and qform point opposite ways: left and right are in doubt.",
    ScanReason.NOT_A_SLIDE: "The file is no whole slide that OpenSlide knows, or its head is damaged.",
    ScanReason.CONFLICTING_LEVELS: "The levels of the slide do not show one picture.",
    ScanReason.NO_RESOLUTION: "The slide does not say its microns per pixel, and none was given for it.",
    ScanReason.TOO_COARSE: "The slide is coarser than the study's resolution; it is never upsampled.",
    ScanReason.TOO_SMALL: "The slide is smaller than one tile.",
    ScanReason.NO_TISSUE: "No tissue stands out from the glass.",
    ScanReason.DARK_BACKGROUND: "The background is dark: no bright-field slide.",
    ScanReason.NON_FINITE_VOXELS: "Some voxels are NaN or infinite.",
    ScanReason.OUTLYING_VOXELS: "Some values are a million times as far off as the others: no measurements.",
    ScanReason.EMPTY_VOLUME: "No voxel lies above the background.",
    ScanReason.CONSTANT_VOLUME: "All voxels above the background have one value.",
    ScanReason.LABEL_MAP: "Neighbouring voxels have equal values: a map of labels, not a scan.",
    ScanReason.NO_MASK: "The study needs a mask and the patient has none.",
    ScanReason.MASK_GRID: "The mask does not lie on the grid of the scan.",
    ScanReason.EMPTY_MASK: "The mask marks no voxel.",
    ScanReason.MASK_COMMAND: "The command that makes the mask failed.",
    ScanReason.NO_FITTING_SERIES: "The folder holds no series that fits.",
    ScanReason.NON_FINITE_EMBEDDING: "The encoder gave values that are not finite.",
    ScanReason.NOT_CONVERTED: "The conversion failed in a way that was not foreseen.",
    ScanReason.OTHER: "",  # the detail is the sentence
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


def explain(code: ScanReason | Correction) -> str:
    """The sentence for a code.

    Example:
        >>> explain(ScanReason.DICOMDIR)
        'A DICOMDIR lists other files and holds no picture.'
    """
    return _SENTENCES[code]


class ScanRefused(DataError):  # noqa: N818  names what happened
    """A file, series, slide or volume that cannot be used.

    Args:
        reason: The stable code.
        detail: What was found, without path, name or identifier; appended to the code's sentence.

    Example:
        >>> print(ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA, "50 of 96 bytes."))
        Pixel data end before the picture does. 50 of 96 bytes.
    """

    def __init__(self, reason: ScanReason, detail: str = "") -> None:
        super().__init__(reason, detail)  # for pickling
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{explain(self.reason)} {self.detail}".strip()


def refused_by(error: DataError | OSError) -> ScanRefused:
    """Convert an error into a refusal, without the path.

    Example:
        >>> print(refused_by(FileNotFoundError(2, "No such file or directory", "/data/0001.nii.gz")))
        The file or its header cannot be read, or the disk refused to give it. FileNotFoundError.
    """
    if isinstance(error, ScanRefused):
        return error
    if isinstance(error, OSError):
        return ScanRefused(ScanReason.UNREADABLE_FILE, f"{type(error).__name__}.")
    return ScanRefused(ScanReason.OTHER, str(error))
