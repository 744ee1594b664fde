"""Siemens mosaics: one image that holds the slices of a volume side by side.

The tiles fill a square, ``ceil(sqrt(n))`` on each side, row by row. The header's position is that of an
image as large as the mosaic, concentric with one tile; the first tile's is computed from it
(https://nipy.org/nibabel/dicom/dicom_mosaic.html). The slice direction is only in the private header: the
image's normal may point the other way.
"""

from __future__ import annotations

import math

import numpy as np

from client.ingest.dicom.geometry import stack_affine, unit_axes
from client.ingest.dicom.header import Frame
from client.ingest.dicom.pixels import measured_values
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.volume import Volume

__all__ = ["unpack_mosaic"]

_ALONG_NORMAL = 0.9  # cosine: the stated direction is the image's normal or its opposite


def unpack_mosaic(frame: Frame) -> Volume:
    """Split a mosaic into its volume.

    Raises:
        ScanRefused: If the number of tiles, the slice direction or the slice distance is missing, or the
            pixels cannot be read.
    """
    layout, spacing_mm, position_mm = frame.file.mosaic, frame.spacing_mm, frame.position_mm
    gap_mm = frame.slice_step_mm
    if layout is None or layout.n_tiles < 1 or layout.normal is None or not gap_mm or gap_mm < 0:
        raise ScanRefused(ScanReason.MOSAIC_WITHOUT_LAYOUT)
    if spacing_mm is None or position_mm is None or frame.orientation is None:
        raise ScanRefused(ScanReason.NO_GEOMETRY)
    side = math.ceil(math.sqrt(layout.n_tiles))
    rows, columns = frame.file.shape
    if rows % side or columns % side:
        raise ScanRefused(
            ScanReason.MOSAIC_WITHOUT_LAYOUT, f"{rows} x {columns} pixels do not hold {side} x {side} tiles."
        )
    height, width = rows // side, columns // side
    axes = unit_axes(frame.orientation)
    along = float(np.dot(axes[2], layout.normal))
    if abs(along) < _ALONG_NORMAL:
        raise ScanRefused(ScanReason.MOSAIC_WITHOUT_LAYOUT, "The slice direction is not across the picture.")
    (picture,) = measured_values([frame])
    tiles = picture.reshape(side, height, side, width).swapaxes(1, 2).reshape(-1, height, width)
    origin_mm = (
        np.array(position_mm, np.float64)
        + axes[0] * spacing_mm[1] * (columns - width) / 2
        + axes[1] * spacing_mm[0] * (rows - height) / 2
    )
    affine_mm = stack_affine(axes, origin_mm, (spacing_mm[0], spacing_mm[1]), math.copysign(gap_mm, along))
    return Volume(tiles[: layout.n_tiles].transpose(2, 1, 0), affine_mm)
