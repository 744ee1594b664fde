"""Microns per pixel of a slide, as the file states it: nothing is guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import openslide

from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.slides.tissue import PLAUSIBLE_UM_PX
from mmare.errors import InputError

__all__ = ["DESCRIPTION", "NATIVE_TOLERANCE", "PER_UNIT", "UNIT", "resolution"]

NATIVE_TOLERANCE = 0.05  # 20x is 0.4990 or 0.5040 µm, by scanner; such a level is not resampled

DESCRIPTION, UNIT = "tiff.ImageDescription", "tiff.ResolutionUnit"
PER_UNIT = ("tiff.XResolution", "tiff.YResolution")  # pixels

_STATED = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
_UNITS_UM = {
    **dict.fromkeys(("µm", "\N{GREEK SMALL LETTER MU}m", r"\u00B5m", "um", "micron", "microns"), 1.0),
    **dict.fromkeys(("micrometer", "micrometre"), 1.0),
    "nm": 1e-3,
    "mm": 1e3,
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("inch", "in"), 25_400.0),
}
_Axes = tuple[float, float]


def resolution(properties: Mapping[str, str], fallback: float | None) -> _Axes:
    """Microns per pixel of level 0, across and down.

    OME's PhysicalSize and ImageJ's unit are read from the description of a TIFF, else its tags. Sizes that no
    microscope has count as not stated.

    Args:
        properties: OpenSlide's.
        fallback: What applies where nothing is stated.

    Raises:
        ScanRefused: If nothing is stated and there is no ``fallback``, or the file contradicts itself.
        InputError: If ``fallback`` makes no sense.
    """
    description = properties.get(DESCRIPTION, "")
    tags = _plausible([_number(properties.get(name)) for name in _STATED]) or _by_unit(
        properties, [properties.get(UNIT, "")] * 2
    )
    if description.startswith("ImageJ="):
        tags = _imagej(properties, description) or tags
    ome = _ome(description)
    if ome and tags and any(abs(a / b - 1) > NATIVE_TOLERANCE for a, b in zip(ome, tags, strict=True)):
        raise ScanRefused(ScanReason.NO_RESOLUTION, "Its OME description and its tags state two.")
    if stated := ome or tags:
        return stated
    if fallback is None:
        raise ScanRefused(ScanReason.NO_RESOLUTION)
    lowest, highest = PLAUSIBLE_UM_PX
    if not lowest <= fallback <= highest:
        raise InputError(f"um_px of slides is {fallback}, expected {lowest} to {highest} microns per pixel")
    return fallback, fallback


def _imagej(properties: Mapping[str, str], description: str) -> _Axes | None:
    """The tags count pixels per the unit that the description names."""
    said = dict(line.partition("=")[::2] for line in description.splitlines())
    across = said.get("unit", "")
    return _by_unit(properties, [across, said.get("yunit", across)])


def _ome(description: str) -> _Axes | None:
    if "<OME" not in description or not (found := re.search(r"<Pixels\b[^>]*>", description)):
        return None
    said = dict(re.findall(r'(PhysicalSize\w+)\s*=\s*"([^"]*)"', found[0]))
    return _plausible(
        [
            _number(said.get(f"PhysicalSize{axis}"))
            * _UNITS_UM.get(said.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
            for axis in "XY"
        ]
    )


def _by_unit(properties: Mapping[str, str], units: Sequence[str]) -> _Axes | None:
    per_unit = [_number(properties.get(name)) or math.nan for name in PER_UNIT]
    sizes = [_UNITS_UM.get(unit.strip(), math.nan) for unit in units]
    return _plausible([size / n for size, n in zip(sizes, per_unit, strict=True)])


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _plausible(sizes: Sequence[float]) -> _Axes | None:
    lowest, highest = PLAUSIBLE_UM_PX
    across, down = sizes
    return (across, down) if lowest <= across <= highest and lowest <= down <= highest else None
