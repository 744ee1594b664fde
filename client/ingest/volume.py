"""One type for a scan from any source: voxels, and where in the patient each of them lies.

DICOM coordinates point to the patient's left, back and head (LPS), NIfTI's to right, front and head (RAS),
both in millimetres. They differ by half a turn about the long axis, so one matrix converts either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mmare.errors import DataError

__all__ = ["LPS_TO_RAS", "RAS_TO_LPS", "Plane", "Volume", "is_label_map", "lps_to_ras", "ras_to_lps"]

LPS_TO_RAS: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
RAS_TO_LPS: NDArray[np.float64] = LPS_TO_RAS  # half a turn is its own inverse
MIN_SLICES = 3  # with fewer, spacing cannot be checked
SMALLEST_CELL_MM3 = 1e-9  # smaller voxels are degenerate: two axes coincide or one is zero

# Share of neighbours above 0 that are equal: at most 0.24 in real scans of 8 to 12 bits, 0.99 in label maps.
EQUAL_IN_LABEL_MAPS = 0.9
_EVERY = 3  # columns compared

_N_AXES = 3
_AFFINE_SHAPE = (4, 4)


class Plane(StrEnum):
    """The plane of a volume's slices, which the third axis crosses."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


_ACROSS = (Plane.SAGITTAL, Plane.CORONAL, Plane.AXIAL)  # by the world axis (R, A, S) of the stack


def lps_to_ras(affine_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert a voxel-to-world matrix ``(4, 4)`` from DICOM's LPS to NIfTI's RAS millimetres.

    Example:
        >>> lps_to_ras(np.eye(4)).diagonal().tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """
    return LPS_TO_RAS @ affine_mm


def ras_to_lps(affine_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert a voxel-to-world matrix ``(4, 4)`` from NIfTI's RAS to DICOM's LPS millimetres."""
    return RAS_TO_LPS @ affine_mm


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan of one contrast at one time.

    Values have the modality's unit (HU for CT). In a converted DICOM series x counts columns, y rows and z
    slices.

    Raises:
        DataError: If shape, type or affine is invalid.

    Example:
        >>> scan = Volume(np.zeros((4, 5, 6), np.int16), np.diag([-1.0, -1.0, 3.0, 1.0]))
        >>> scan.orientation, scan.plane.value, scan.spacing_mm
        ('LPS', 'axial', (1.0, 1.0, 3.0))
    """

    voxels: NDArray[np.int16] | NDArray[np.float32]  # (x, y, z)
    affine_mm: NDArray[np.float64]  # (4, 4), voxel index to RAS millimetres

    def __post_init__(self) -> None:
        if self.voxels.ndim != _N_AXES or 0 in self.voxels.shape:
            raise DataError(f"expected three non-empty axes, found shape {self.voxels.shape}")
        if self.voxels.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
            raise DataError(f"expected int16 or float32 voxels, found {self.voxels.dtype}")
        if self.affine_mm.shape != _AFFINE_SHAPE or self.affine_mm.dtype != np.float64:
            raise DataError(
                f"expected a 4 x 4 affine of float64, found {self.affine_mm.shape} of {self.affine_mm.dtype}"
            )
        if not np.isfinite(self.affine_mm).all() or not np.array_equal(self.affine_mm[3], (0, 0, 0, 1)):
            raise DataError("expected a finite affine with last row 0 0 0 1")
        if abs(np.linalg.det(self.affine_mm[:3, :3])) < SMALLEST_CELL_MM3:
            raise DataError("the affine is singular: voxels have no volume")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along x, y and z."""
        x, y, z = np.linalg.norm(self.affine_mm[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def orientation(self) -> str:
        """Anatomical direction of each axis, such as ``LPS``."""
        codes = nib.aff2axcodes(self.affine_mm)  # type: ignore[no-untyped-call]  # nibabel has no types here
        return "".join(str(letter) for letter in codes)

    @property
    def plane(self) -> Plane:
        """The plane that the slices are closest to."""
        row, column = self.affine_mm[:3, 0], self.affine_mm[:3, 1]
        return _ACROSS[int(np.argmax(np.abs(np.cross(row, column))))]


def is_label_map(voxels: NDArray[Any]) -> bool:
    """Whether ``(x, y, z)`` voxels are labels of regions, not measurements, which vary from voxel to voxel.

    One label alone is not told from a constant scan.
    """
    one, other = voxels[:-1:_EVERY], voxels[1::_EVERY]
    inside = (one > 0) & (other > 0)
    values = one[inside]
    if values.size == 0 or (values == values[0]).all():
        return False
    return bool((values == other[inside]).mean() > EQUAL_IN_LABEL_MAPS)
