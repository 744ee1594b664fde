"""How an image says to turn stored values into measured ones; what cannot be read is never 1 and 0."""

from __future__ import annotations

import math

from pydicom.dataset import Dataset

from client.ingest.dicom.header import FileHeader, Scaling, ScalingSource
from client.ingest.dicom.values import FrameSources, first_item, has_value, items, only_number

__all__ = ["read_scaling"]

_PHILIPS = "philips"
_SCALE_SLOPE = (0x2005, 0x100E)  # Philips, private
_PHILIPS_FRAME = (0x2005, 0x140F)
_RESCALE = ("RescaleSlope", "RescaleIntercept")
_MAPPING = ("RealWorldValueSlope", "RealWorldValueIntercept")
_MAPPINGS = "RealWorldValueMappingSequence"
_LOOKUP_TABLE = "ModalityLUTSequence"
_UNREADABLE = Scaling(source=ScalingSource.UNREADABLE)


def read_scaling(file: FileHeader, facts: FrameSources, group: Dataset) -> Scaling:
    """The scale of a frame's values; Philips MR's own where there is one.

    Philips MR scales displayed values per series; only its private scaling, which dcm2niix uses too, compares
    between series (Chenevert et al. 2014, https://doi.org/10.1593/tlo.13811). As in dcm2niix, a real-world
    mapping of Philips stands in for a rescale that is not stated, and is not applied otherwise: most repeat
    the scale of the display.
    """
    stated = _stated(facts)
    if not file.manufacturer.startswith(_PHILIPS):
        return stated
    if stated.source is ScalingSource.ABSENT:
        stated = _mapped(facts)
    private = first_item(group, _PHILIPS_FRAME) if file.enhanced else group
    is_scaled = file.modality == "MR" and private is not None and has_value(private, _SCALE_SLOPE)
    if private is None or not is_scaled or stated.source is ScalingSource.UNREADABLE:
        return stated
    scale = only_number(private, _SCALE_SLOPE)
    if scale == 0:  # an empty field
        return stated
    both = stated.slope * (scale or 0.0)
    if not both or not math.isfinite(1.0 / both):
        return _UNREADABLE
    return Scaling(stated.slope / both, stated.intercept / both, stated.source, is_private=True)


def _stated(facts: FrameSources) -> Scaling:
    if has_value(facts.holder(_LOOKUP_TABLE), _LOOKUP_TABLE):
        return _UNREADABLE
    return _pair([facts.holder(keyword) for keyword in _RESCALE], _RESCALE, ScalingSource.STATED)


def _mapped(facts: FrameSources) -> Scaling:
    """The scale that all real-world mappings of a frame agree on."""
    found = [place for place in facts.places if _MAPPING[0] in place]  # of an enhanced file
    found += items(facts.places[-1], _MAPPINGS)
    scales = {_pair([item, item], _MAPPING, ScalingSource.MAPPED) for item in found}
    scales.discard(Scaling())  # a lookup table
    return scales.pop() if len(scales) == 1 else _UNREADABLE if scales else Scaling()


def _pair(holders: list[Dataset], keywords: tuple[str, str], source: ScalingSource) -> Scaling:
    """Slope and intercept, which the standard states together or not at all."""
    there = [has_value(*place) for place in zip(holders, keywords, strict=True)]
    if not any(there):
        return Scaling()
    slope, intercept = (only_number(*place) for place in zip(holders, keywords, strict=True))
    if not all(there) or not slope or intercept is None:
        return _UNREADABLE
    return Scaling(slope, intercept, source)
