"""Decide from the header alone whether an image is a slice of a volume, or why not."""

from __future__ import annotations

import re

from pydicom.config import IGNORE
from pydicom.uid import UID

from client.ingest.dicom.header import Frame
from client.ingest.reasons import ScanReason

__all__ = ["is_localizer_description", "kind_reasons"]

# Storage classes without an image of the patient, by the prefix of their UID.
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_DERIVED = tuple(
    _STORAGE + tail
    for tail in (
        "4.2",  # MR spectroscopy
        "9.",  # waveforms
        "11.",  # presentation states
        "30",  # parametric map
        "66",  # raw data, registration, segmentation, fiducials, tracts
        "67",  # real world value mapping
        "68.",  # surface scan
        "77.1.5.",  # ophthalmic maps
        "78.",  # lensometry and refraction
        "79.1",
        "80.1",
        "88.",  # structured reports
        "90.1",  # content assessment
        "104.",  # encapsulated documents
        "131",  # basic structured display
        "200.",  # CT performed procedure protocols
        "481.",  # radiotherapy
    )
)
_SECONDARY_CAPTURE = _STORAGE + "7"  # and 7.1 ... 7.4, the multi-frame ones
_DERIVED_MODALITIES = frozenset(
    {"AU", "DOC", "ECG", "EPS", "FID", "HD", "KO", "M3D", "PLAN", "PR", "REG", "RTDOSE", "RTIMAGE", "RTPLAN"}
    | {"RTRECORD", "RTSTRUCT", "RWV", "SEG", "SMR", "SR", "STAIN", "TEXTUREMAP"}
)
_SCREEN = frozenset({"SCREEN SAVE", "SCREENSAVE", "SCREEN_SAVE", "SCREEN CAPTURE"})
_SCOUT_TYPES = frozenset(
    {"LOCALIZER", "LOCALISER", "SCOUT", "SURVEY", "SURVIEW", "REF_SURVIEW", "TOPOGRAM", "SCANOGRAM"}
)
_SCOUT_WORDS = re.compile(
    r"(?<![a-z])(locali[sz]er\w*|loc|\w*scout\w*|survey\w*|surview\w*|topogram\w*|scanogram\w*|plan ?scan)"
    r"(?![a-z])",
    re.IGNORECASE,
)
_GREY = ("MONOCHROME1", "MONOCHROME2", "")


def kind_reasons(frame: Frame) -> tuple[ScanReason, ...]:
    """Every reason why an image is no slice of a volume, most important first; none if it may be one."""
    file = frame.file
    if _is_derived(frame):
        return (ScanReason.DERIVED_OBJECT,)
    checks = (
        (ScanReason.NO_PIXELS, not file.has_pixels or 0 in file.shape),
        (ScanReason.SECONDARY_CAPTURE, _is_secondary_capture(frame)),
        (ScanReason.COLOUR, file.n_samples > 1 or file.photometric not in _GREY),
        (ScanReason.LOCALIZER, not _SCOUT_TYPES.isdisjoint(part.upper() for part in frame.image_type)),
        (ScanReason.UNKNOWN_TRANSFER_SYNTAX, not UID(file.transfer_syntax, IGNORE).is_transfer_syntax),
    )
    reasons = tuple(reason for reason, applies in checks if applies)
    has_geometry = frame.position_mm and frame.orientation and frame.spacing_mm
    return reasons if reasons or has_geometry else (ScanReason.NO_GEOMETRY,)


def is_localizer_description(description: str) -> bool:
    """Whether a description names a localizer; many series say so nowhere else.

    Example:
        >>> is_localizer_description("3-Plane Loc SSFSE"), is_localizer_description("T2 blocked")
        (True, False)
    """
    return _SCOUT_WORDS.search(description) is not None


def _is_derived(frame: Frame) -> bool:
    uid = frame.file.sop_class_uid
    return frame.file.modality in _DERIVED_MODALITIES or any(
        uid == prefix.rstrip(".") or uid.startswith(prefix if prefix.endswith(".") else prefix + ".")
        for prefix in _DERIVED
    )


def _is_secondary_capture(frame: Frame) -> bool:
    uid = frame.file.sop_class_uid
    screen = not _SCREEN.isdisjoint(part.upper() for part in frame.image_type)
    return uid == _SECONDARY_CAPTURE or uid.startswith(_SECONDARY_CAPTURE + ".") or screen
