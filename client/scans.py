"""A patient's scan of one modality, from the path in the manifest to a preprocessed tensor."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from client.ingest.choose import SeriesRule, choose_series
from client.ingest.convert import convert_folder
from client.ingest.nifti import read_nifti
from client.preprocess import VolumeSteps, noise_seed, preprocess
from mmare.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from client.ingest.volume import Volume
    from mmare.study import ModalitySpec

__all__ = ["read_scan", "steps_of", "tensor_of"]


def steps_of(modality: ModalitySpec) -> VolumeSteps:
    """The preprocessing that a study wants for a modality."""
    steps = VolumeSteps()
    if modality.size:
        depth, height, width = modality.size
        steps = VolumeSteps(size=(depth, height, width))
    if modality.window:
        lowest, highest = modality.window
        steps = VolumeSteps(size=steps.size, window=(lowest, highest))
    return steps


def read_scan(path: Path, converted: Path) -> Volume:
    """Read a NIfTI file, or the series with most slices of a folder of DICOM files.

    Args:
        path: File or folder.
        converted: Where volumes of DICOM folders are kept.

    Raises:
        DataError: If it holds no usable volume.
    """
    if not path.is_dir():
        return read_nifti(path)
    out = converted / hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    choice = choose_series(convert_folder(path, out).series, SeriesRule())
    if choice.entry is None or choice.entry.output is None:
        raise DataError("The folder holds no usable series.")
    return read_nifti(out / choice.entry.output)


def tensor_of(path: Path, converted: Path, steps: VolumeSteps, *names: str) -> Tensor:
    """Read and preprocess a scan.

    Args:
        path: File or folder.
        converted: Where volumes of DICOM folders are kept.
        steps: Of the study.
        names: What the background noise is drawn from: site, patient, modality.

    Returns:
        ``(1, D, H, W)`` float32.

    Raises:
        DataError: If the scan cannot be used; says why, without a path.
    """
    return preprocess(read_scan(path, converted), steps, noise_seed(*names))
