"""Geometry of parallel slices: order, gaps and drift, as pure functions of numbers.

Coordinates are DICOM's (LPS, mm), except that `stack_affine` returns RAS. A stack is described by each
slice's distance *along* the normal and its drift *within* its plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.volume import lps_to_ras

__all__ = [
    "Stack",
    "alternate",
    "check_gaps",
    "even_grid",
    "is_even",
    "is_upright",
    "same_orientation",
    "same_place",
    "stack_affine",
    "stack_slices",
    "unit_axes",
]

SAME_PLACE_MM = 0.01  # positions are written to 1e-3 mm or finer; no slices lie closer than this
SAME_ORIENTATION = 5e-3  # cosines: a third of a degree; headers round to 1e-4, planes differ by degrees
EVEN_MM = 0.1  # tolerated distance of a slice from an even grid: positions may be rounded to 0.1 mm
EVEN_SHARE = 0.2  # ... but at most this share of the gap
UPRIGHT_MM = 0.1  # tolerated drift over a whole stack; below half a pixel of any scanner
UPRIGHT_SHARE = 1e-3  # ... or this share of its length (0.06 degrees), the effect of rounded cosines
LARGEST_TILT_DEG = 45.0  # gantries tilt to 30; beyond this the images are no stack
WIDE_GAP = 1.5  # times the common gap: wider is suspicious
WHOLE_MULTIPLE = 0.1  # tolerance for a ratio of 2, 3, ...: slices are missing
WIDEST_GAP = 2.0  # times the common gap: wider is not interpolated
SAME_GAP_SHARE = 0.05  # gaps within 5 % of one another count as equal
COARSE = 4  # every fourth pixel shows whether slices are alike
FEWEST_OF_EACH = 3  # slices of each scan: with fewer, chance decides
MOST_ALTERNATING = 4  # scans in one stack
ALTERNATING = 2.0  # times; neighbours within a scan differ less than slices further apart
MOST_SLICES_PER_SLICE = 2  # an even grid has at most twice the measured slices


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices in their order along the normal."""

    order: tuple[int, ...]  # (n,) index of the given slice that comes first, second, ...
    axes: NDArray[np.float64]  # (3, 3) row direction, column direction, normal: one per row, orthonormal, LPS
    origin_mm: NDArray[np.float64]  # (3,) centre of the first pixel of the first slice, LPS
    along_mm: NDArray[np.float64]  # (n,) distance of each slice from the first along the normal, rising
    within_mm: NDArray[np.float64]  # (n, 2) drift of each slice against the first, along rows and columns

    @property
    def mean_gap_mm(self) -> float:
        """Mean distance between slices."""
        return float(self.along_mm[-1]) / max(1, len(self.along_mm) - 1)


def unit_axes(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Row direction, column direction and normal from the six cosines: ``(3, 3)``, one per row, right-handed.

    The header's cosines are rounded; the column is made exactly orthogonal to the row.
    """
    row = np.asarray(orientation[:3], np.float64)
    row /= np.linalg.norm(row)
    column = np.asarray(orientation[3:], np.float64)
    column -= (column @ row) * row
    column /= np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)])


def same_orientation(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two images are parallel and turned the same way, within the rounding of cosines."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= SAME_ORIENTATION


def same_place(positions_mm: NDArray[np.float64], orientation: Sequence[float]) -> NDArray[np.int64]:
    """Number the distinct positions along the normal: ``(n,)``, equal for slices within 0.01 mm.

    Example:
        >>> same_place(np.array([[0, 0, 5.0], [0, 0, 0], [0, 0, 5.001]]), (1, 0, 0, 0, 1, 0)).tolist()
        [1, 0, 1]
    """
    along = positions_mm @ unit_axes(orientation)[2]
    order = np.argsort(along, kind="stable")
    steps = np.concatenate([[0], np.diff(along[order]) > SAME_PLACE_MM])
    places = np.empty(len(along), np.int64)
    places[order] = np.cumsum(steps)
    return places


def stack_slices(positions_mm: NDArray[np.float64], orientation: Sequence[float]) -> Stack:
    """Sort slices along their normal, given ``(n, 3)`` positions of first pixels and their common cosines."""
    axes = unit_axes(orientation)
    order = np.argsort(positions_mm @ axes[2], kind="stable")
    offsets = (positions_mm[order] - positions_mm[order[0]]) @ axes.T  # (n, 3): row, column, normal
    return Stack(
        order=tuple(order.tolist()),
        axes=axes,
        origin_mm=positions_mm[order[0]].astype(np.float64),
        along_mm=offsets[:, 2],
        within_mm=offsets[:, :2],
    )


def is_even(along_mm: NDArray[np.float64]) -> bool:
    """Whether no slice is further from its place on an even grid than positions are exact.

    Deviations are measured per slice, not per gap, so that rounding errors do not add up.
    """
    n_gaps = len(along_mm) - 1
    if n_gaps < 1:
        return True
    grid = np.linspace(0.0, along_mm[-1], n_gaps + 1)
    allowed = min(EVEN_MM, EVEN_SHARE * float(along_mm[-1]) / n_gaps)
    return bool(np.abs(along_mm - grid).max() <= allowed)


def is_upright(stack: Stack) -> bool:
    """Whether slices lie exactly above one another.

    Raises:
        ScanRefused: If they do not, and do not lie along one slanted line either.
    """
    length = float(stack.along_mm[-1])
    allowed = max(UPRIGHT_MM, UPRIGHT_SHARE * length)
    if np.abs(stack.within_mm).max() <= allowed:
        return True
    slant = stack.within_mm[-1] / length
    off_line = np.abs(stack.within_mm - stack.along_mm[:, None] * slant).max()
    tilt_deg = math.degrees(math.atan(float(np.linalg.norm(slant))))
    if off_line > allowed or tilt_deg > LARGEST_TILT_DEG:
        raise ScanRefused(
            ScanReason.SCATTERED_SLICES,
            f"Largest distance from a line: {off_line:.2f} mm, slant {tilt_deg:.1f} deg.",
        )
    return False


def alternate(slices: NDArray[np.generic]) -> bool:
    """Whether ``(n, rows, columns)`` slices resemble those two to four steps away, not their neighbours.

    Scans that lie a part of a step apart make an even stack; within one scan neighbours are the most alike.
    """
    coarse = slices[:, ::COARSE, ::COARSE].astype(np.float64)
    periods = [k for k in range(1, MOST_ALTERNATING + 1) if len(coarse) >= FEWEST_OF_EACH * k]
    apart = [np.median(np.abs(coarse[k:] - coarse[:-k]).mean(axis=(1, 2))) for k in periods]
    return any(apart[0] > ALTERNATING * far for far in apart[1:])


def check_gaps(along_mm: NDArray[np.float64], thickness_mm: Sequence[float | None]) -> None:
    """Refuse a stack with a hole in it.

    A gap much wider than the common one is a hole, unless the adjacent slices are thicker in proportion, as
    where a protocol changes from thin to thick slices. A thickness is None if not stated.

    Raises:
        ScanRefused: `ScanReason.MISSING_SLICES` if the gap is a whole multiple of the common one,
            `ScanReason.GAP_TOO_WIDE` if it is more than twice the common one.
    """
    gaps = np.diff(along_mm)
    common = _common_gap(gaps)
    usual = _usual_thickness(gaps, common, thickness_mm)
    for index in np.flatnonzero(gaps > WIDE_GAP * common).tolist():
        ratio = float(gaps[index]) / common
        beside = [thickness for thickness in thickness_mm[index : index + 2] if thickness]
        if usual and beside and max(beside) / usual * (1 + WHOLE_MULTIPLE) >= ratio:
            continue
        found = f"A gap of {gaps[index]:.2f} mm among gaps of {common:.2f} mm."
        if abs(ratio - round(ratio)) <= WHOLE_MULTIPLE * round(ratio) / 2:
            raise ScanRefused(ScanReason.MISSING_SLICES, found)
        if ratio > WIDEST_GAP:
            raise ScanRefused(ScanReason.GAP_TOO_WIDE, found)


def _common_gap(gaps_mm: NDArray[np.float64]) -> float:
    """The gap that most others equal; the narrowest of several."""
    alike = np.abs(gaps_mm[:, None] - gaps_mm) <= SAME_GAP_SHARE * gaps_mm[:, None]  # (n, n)
    counts = alike.sum(axis=1)
    return float(gaps_mm[counts == counts.max()].min())


def _usual_thickness(
    gaps_mm: NDArray[np.float64], common_mm: float, thickness_mm: Sequence[float | None]
) -> float | None:
    usual = np.flatnonzero(np.abs(gaps_mm - common_mm) <= SAME_GAP_SHARE * common_mm).tolist()
    beside = [thickness for index in usual for thickness in thickness_mm[index : index + 2] if thickness]
    return min(beside) if beside else None


def even_grid(along_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evenly spaced places ``(m,)`` from the first to the last of rising places ``(n,)``, the first at 0.

    As in dcm2niix: no further apart than the narrowest gap, but at most twice as many as were measured.

    Example:
        >>> even_grid(np.array([0.0, 3.0, 6.0, 10.0])).tolist()
        [0.0, 2.5, 5.0, 7.5, 10.0]
    """
    narrowest = float(np.diff(along_mm).min())
    n_slices = math.ceil(float(along_mm[-1]) / narrowest - SAME_GAP_SHARE / 100) + 1
    return np.linspace(0.0, along_mm[-1], min(n_slices, MOST_SLICES_PER_SLICE * len(along_mm)))


def stack_affine(
    axes: NDArray[np.float64], origin_mm: NDArray[np.float64], spacing_mm: tuple[float, float], gap_mm: float
) -> NDArray[np.float64]:
    """Affine of an upright, even stack: voxel index ``(column, row, slice)`` to RAS mm.

    DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1, with the slice axis added. ``spacing_mm`` is between rows,
    between columns, in the order of PixelSpacing.
    """
    affine = np.eye(4)
    affine[:3, 0] = axes[0] * spacing_mm[1]  # the column number rises along a row
    affine[:3, 1] = axes[1] * spacing_mm[0]
    affine[:3, 2] = axes[2] * gap_mm
    affine[:3, 3] = origin_mm
    return lps_to_ras(affine)
