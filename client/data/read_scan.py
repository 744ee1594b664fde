"""Read a patient's scan of one modality and its mask, and prepare what the encoder takes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from client.data.scan_list import noise_names
from client.encoders.files.steps import FileSteps, prepared
from client.encoders.preprocess import noise_seed, preprocess, run_mask_command
from client.encoders.vgg11 import SliceSteps, slices_of
from client.ingest.choose import Prefer, SeriesRule, choose_each
from client.ingest.convert import convert_folder
from client.ingest.nifti import read_nifti
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.slides.tissue import Tiling
from client.ingest.slides.wsi import plan_of, tiles_of
from client.ingest.volume import Plane, is_label_map
from mmare.errors import DataError, InputError
from mmare.host.files import own_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from client.data.scan_list import Scan
    from client.ingest.volume import Volume
    from sites.config import ModalitySource, SiteConfig

__all__ = ["converted_folder", "read_scan", "try_scan"]


def read_scan(site: SiteConfig, scan: Scan, key: str) -> Tensor:
    """Read a scan and its mask, and preprocess; a mask made by a command is cached under ``key``.

    Returns:
        One input of the encoder; the tiles ``(N, 256, 256, 3)`` of a slide.

    Raises:
        DataError: If it cannot be used.
        OSError: If a file cannot be read.
    """
    if isinstance(scan.steps, Tiling):
        um_px = site.modalities[scan.modality.name].um_px
        return torch.from_numpy(tiles_of(scan.path, tiling=scan.steps, fallback_um_px=um_px).pixels)
    volume = _scan(site, scan)
    mask = _mask(site, scan, key) if scan.steps.needs_mask else None
    if isinstance(scan.steps, SliceSteps):
        tensor = slices_of(volume, scan.steps, mask)
    elif isinstance(scan.steps, FileSteps):
        tensor = prepared(volume, scan.steps, mask)
    else:
        tensor = preprocess(volume, scan.steps, noise_seed(*noise_names(site, scan)), mask)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def try_scan(site: SiteConfig, scan: Scan) -> None:
    """Read a scan, and its mask if a file is named, without preprocessing; raises as `read_scan`."""
    if isinstance(scan.steps, Tiling):
        plan_of(scan.path, tiling=scan.steps, fallback_um_px=site.modalities[scan.modality.name].um_px)
        return
    _scan(site, scan)
    if scan.mask is not None:
        read_nifti(scan.mask)


def _scan(site: SiteConfig, scan: Scan) -> Volume:
    volume = _volume(site, scan)
    if is_label_map(volume.voxels):
        raise ScanRefused(ScanReason.LABEL_MAP)
    return volume


def _volume(site: SiteConfig, scan: Scan) -> Volume:
    """Read a NIfTI file, or the series of a DICOM folder that the site's rule selects.

    The folder's ``report.json`` says which series was taken and why not the others. Modalities that share a
    folder choose in slot order, so that no series is used twice.
    """
    rules = {name: _rule(site.modalities[name]) for name in scan.sharing}
    if not scan.path.is_dir():
        return read_nifti(scan.path)
    out = converted_folder(site, scan.path)
    own_folder(out)
    try:
        choice = choose_each(convert_folder(scan.path, out, rules=rules).series, rules)[scan.modality.name]
    except InputError as error:  # such as several patients in one folder
        raise DataError(str(error)) from None
    if choice.entry is None or choice.entry.output is None:
        raise ScanRefused(ScanReason.NO_FITTING_SERIES, choice.why)
    return read_nifti(out / choice.entry.output)


def converted_folder(site: SiteConfig, scans: Path) -> Path:
    """Where the volumes of a folder of DICOM files are kept, with ``report.json``."""
    return site.cache / "converted" / hashlib.sha256(str(scans.absolute()).encode()).hexdigest()[:16]


def _rule(source: ModalitySource) -> SeriesRule:
    try:
        return SeriesRule(
            plane=Plane(source.series["plane"]) if "plane" in source.series else None,
            description=source.series.get("description"),
            prefer=Prefer(source.series.get("prefer", Prefer.MOST_SLICES)),
            modality=source.series.get("modality"),
        )
    except ValueError as error:
        raise DataError(
            f"site.toml: series: {error}; expected plane {', '.join(Plane)}, prefer {', '.join(Prefer)}"
        ) from None


def _mask(site: SiteConfig, scan: Scan, key: str) -> Volume | None:
    """Read the mask of a scan, making it first if the site configures a command."""
    if scan.mask is not None:
        return read_nifti(scan.mask)
    source = site.modalities[scan.modality.name].mask
    if source is None or source.command is None:
        return None
    made = site.cache / "masks" / f"{key}.nii.gz"
    if not made.exists():
        run_mask_command(source.command, scan.path, made, source.timeout_s)
    return read_nifti(made)
