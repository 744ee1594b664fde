"""What the tests of the ingest share: convert a folder and read back what was written."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.ingest.convert import convert_folder
from client.ingest.report import Report, SeriesEntry

__all__ = ["convert", "only", "read_back"]


def convert(tmp_path: Path) -> Report:
    """Convert ``in`` to ``out``."""
    return convert_folder(tmp_path / "in", tmp_path / "out")


def only(report: Report) -> SeriesEntry:
    """The one entry of a report."""
    (entry,) = report.series
    return entry


def read_back(tmp_path: Path, entry: SeriesEntry) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Voxels ``(x, y, z)`` and affine of what an entry became."""
    assert entry.output is not None, (entry.reasons, entry.detail)
    image = nib.load(tmp_path / "out" / entry.output)
    return np.asarray(image.dataobj), image.affine
