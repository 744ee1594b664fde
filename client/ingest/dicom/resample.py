"""The two corrections that interpolate voxels: slices shifted within their plane, and slices at even gaps.

Both are linear along one axis at a time, as in dcm2niix 1.0.20260724 (``_Tilt`` and ``_Eq``): on the GE
series of the shared data no voxel differs from it by more than one unit, a rounding tie.

Next to padding, a shifted slice takes the nearer of two rows instead of their mean, as padding is no
measurement. Between slices padding is mixed, as in dcm2niix.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "to_even_gaps", "upright"]

Grid = NDArray[np.int16] | NDArray[np.float32]
_HALF = 0.5


def upright(
    slices: Grid, drift_mm: NDArray[np.float64], spacing_mm: float, axis: int, padding: float | None
) -> tuple[Grid, int]:
    """Shift every slice along one in-plane axis to its true position.

    The image grows by the whole pixels of the largest shift; new pixels hold ``padding``, or the smallest
    value of the stack if that is None.

    Args:
        slices: ``(n, rows, columns)``.
        drift_mm: ``(n,)`` drift of each slice along the axis, 0 for the first.
        spacing_mm: Between pixels along the axis.
        axis: 1 to shift along the columns (row by row), 2 along the rows.
        padding: Value of pixels that were not measured.

    Returns:
        The larger slices, and the number of pixels added before the first one (for the origin).
    """
    moved_px = drift_mm / spacing_mm
    before = math.ceil(max(0.0, -float(moved_px.min())))
    after = math.ceil(max(0.0, float(moved_px.max())))
    work = np.moveaxis(slices, axis, 1)  # (n, length, other)
    length = work.shape[1]
    empty = float(slices.min()) if padding is None else padding
    out = np.full((len(work), length + before + after, work.shape[2]), empty, slices.dtype)
    places = np.arange(length + before + after) - before  # of the new pixels, in pixels of the first slice
    for index, shift in enumerate(moved_px.tolist()):
        source = places - shift
        inside = (source > -1) & (source <= length - 1)  # dcm2niix extends the first edge, not the last
        low = np.clip(np.floor(source[inside]).astype(int), 0, length - 1)
        high = np.clip(np.floor(source[inside]).astype(int) + 1, 0, length - 1)
        share = (source[inside] - np.floor(source[inside]))[:, None]
        out[index, inside] = _mix(work[index, low], work[index, high], share, padding)
    return np.moveaxis(out, 1, axis), before


def to_even_gaps(slices: Grid, along_mm: NDArray[np.float64], grid_mm: NDArray[np.float64]) -> Grid:
    """Interpolate slices ``(n, rows, columns)`` linearly from rising ``along_mm`` to ``grid_mm``.

    Example:
        >>> thick = np.array([0, 10, 40], np.int16).reshape(3, 1, 1)
        >>> to_even_gaps(thick, np.array([0.0, 1.0, 4.0]), np.array([0.0, 2.0, 4.0])).ravel().tolist()
        [0, 20, 40]
    """
    high = np.clip(np.searchsorted(along_mm, grid_mm), 1, len(along_mm) - 1)
    low = high - 1
    share = np.clip((grid_mm - along_mm[low]) / (along_mm[high] - along_mm[low]), 0.0, 1.0)
    out = np.empty((len(grid_mm), *slices.shape[1:]), slices.dtype)
    for index, part in enumerate(share.tolist()):
        out[index] = _mix(slices[low[index]], slices[high[index]], part, None)
    return out


def _mix(low: Grid, high: Grid, share: float | NDArray[np.float64], padding: float | None) -> Grid:
    """``low`` and ``high`` weighted ``1 - share : share``, rounded for integers."""
    mixed = low * (1.0 - share) + high * share
    if padding is not None:
        near = np.where(np.asarray(share) > _HALF, high, low)
        mixed = np.where((low == padding) | (high == padding), near, mixed)
    if low.dtype == np.int16:
        return np.rint(mixed).astype(np.int16)
    return mixed.astype(np.float32)
