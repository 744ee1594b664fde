"""One part of a series to a `Volume`.

`client.ingest.dicom.scan` reads every header, `client.ingest.dicom.series` groups the frames into parts. What
cannot be corrected raises `ScanRefused` with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.ingest.dicom.geometry import (
    Stack,
    alternate,
    check_gaps,
    even_grid,
    is_even,
    is_upright,
    stack_affine,
    stack_slices,
)
from client.ingest.dicom.header import Frame
from client.ingest.dicom.mosaic import unpack_mosaic
from client.ingest.dicom.pixels import measured_values
from client.ingest.dicom.resample import Grid, to_even_gaps, upright
from client.ingest.dicom.series import Part
from client.ingest.reasons import Correction, ScanReason, ScanRefused
from client.ingest.volume import MIN_SLICES, Volume

__all__ = ["ConvertedSeries", "make_volume"]

SMALLEST_DRIFT_MM = 0.01  # rounding of positions; smaller shifts would only blur
SMALLEST_TILT_DEG = 0.1  # a stated tilt below this moves a 200 mm stack by a third of a millimetre


@dataclass(frozen=True)
class ConvertedSeries:
    """A volume and the corrections that were applied, in order."""

    volume: Volume
    corrections: tuple[Correction, ...]


def make_volume(part: Part) -> ConvertedSeries:
    """Decode the slices of a part without reasons against it, and make the stack even and upright.

    The volume's voxels are ``(column, row, slice)``, slices in the direction of the normal.

    Raises:
        ScanRefused: If pixels cannot be read, or the slices do not form a volume.
    """
    frames = part.frames
    corrections = list(part.corrections)
    if any(frame.file.photometric == "MONOCHROME1" for frame in frames):
        corrections.append(Correction.MONOCHROME1)
    if frames[0].scaling.is_private:
        corrections.append(Correction.PHILIPS_SCALING)
    if frames[0].file.mosaic is not None:
        return ConvertedSeries(unpack_mosaic(frames[0]), (*corrections, Correction.MOSAIC))
    return _make_stack(frames, corrections)


def _make_stack(frames: tuple[Frame, ...], corrections: list[Correction]) -> ConvertedSeries:
    stack, frames = _sorted(frames)
    if len(frames) < MIN_SLICES:
        raise ScanRefused(ScanReason.TOO_FEW_SLICES)
    is_tilted = not is_upright(stack)
    even = is_even(stack.along_mm)
    if not even:
        check_gaps(stack.along_mm, [frame.thickness_mm for frame in frames])
    slices = measured_values(frames)
    if alternate(slices):
        raise ScanRefused(ScanReason.CONFLICTING_SLICES, "Slices of different scans seem to alternate.")
    spacing_mm = _spacing(frames[0])
    origin_mm = stack.origin_mm
    if is_tilted:
        slices, origin_mm = _set_upright(slices, stack, frames[0], spacing_mm)
        corrections.append(Correction.TILT)
    elif abs(frames[0].file.tilt_deg) > SMALLEST_TILT_DEG:
        corrections.append(Correction.TILT_TAG_IGNORED)
    gap_mm = stack.mean_gap_mm
    if not even:
        grid_mm = even_grid(stack.along_mm)
        slices = to_even_gaps(slices, stack.along_mm, grid_mm)
        gap_mm = float(grid_mm[1])
        corrections.append(Correction.UNEVEN_GAPS)
    affine_mm = stack_affine(stack.axes, origin_mm, spacing_mm, gap_mm)
    return ConvertedSeries(Volume(slices.transpose(2, 1, 0), affine_mm), tuple(corrections))


def _sorted(frames: tuple[Frame, ...]) -> tuple[Stack, tuple[Frame, ...]]:
    """The frames sorted along the normal, and their stack by the orientation of the first."""
    positions = np.array([frame.position_mm for frame in frames], np.float64)  # (n, 3)
    rough = stack_slices(positions, frames[0].orientation or ())
    exact = stack_slices(positions, frames[rough.order[0]].orientation or ())
    return exact, tuple(frames[index] for index in exact.order)


def _spacing(frame: Frame) -> tuple[float, float]:
    if frame.spacing_mm is None:
        raise ScanRefused(ScanReason.NO_GEOMETRY)
    return frame.spacing_mm[0], frame.spacing_mm[1]


def _set_upright(
    slices: Grid, stack: Stack, frame: Frame, spacing_mm: tuple[float, float]
) -> tuple[Grid, NDArray[np.float64]]:
    """Undo the drift along columns and rows; the image grows on the side that its first pixel moves from."""
    stored, scaling = frame.file.padding, frame.scaling
    padding = None if stored is None else stored * scaling.slope + scaling.intercept
    origin_mm = stack.origin_mm
    for direction, axis, step_mm in ((1, 1, spacing_mm[0]), (0, 2, spacing_mm[1])):
        drift_mm = stack.within_mm[:, direction]
        if np.abs(drift_mm).max() > SMALLEST_DRIFT_MM:
            slices, added = upright(slices, drift_mm, step_mm, axis, padding)
            origin_mm = origin_mm - added * step_mm * stack.axes[direction]
    return slices, origin_mm
