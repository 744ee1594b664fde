"""A patient's scan of one modality and its mask, from the paths in the manifest to what an encoder sees."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from client.data.scan_list import noise_names
from client.encoders.preprocess import noise_seed, preprocess, run_mask_command
from client.encoders.registry import ENCODERS
from client.encoders.vgg11 import SliceSteps, slices_of
from client.ingest.choose import Prefer, SeriesRule, choose_each
from client.ingest.convert import convert_folder
from client.ingest.nifti import read_nifti
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.slides.wsi import plan_of, tiles_of
from client.ingest.volume import Plane
from mmare.errors import DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from client.data.scan_list import Scan
    from client.ingest.volume import Volume
    from sites.config import ModalitySource, SiteConfig

__all__ = ["read_scan", "try_scan"]


def read_scan(site: SiteConfig, scan: Scan, key: str) -> Tensor:
    """Read a scan and its mask, and preprocess; a mask that a program makes is kept under ``key``.

    Returns:
        What its encoder takes one of; the tiles of a slide ``(N, 256, 256, 3)``.

    Raises:
        DataError: If it cannot be used.
        OSError: If a file cannot be read.
    """
    if ENCODERS[scan.modality.encoder].slides:
        um_px = site.modalities[scan.modality.name].um_px
        return torch.from_numpy(tiles_of(scan.path, fallback_um_px=um_px).pixels)
    volume = _volume(site, scan)
    mask = _mask(site, scan, key) if scan.steps.needs_mask else None
    if isinstance(scan.steps, SliceSteps):
        tensor = slices_of(volume, scan.steps, mask)
    else:
        tensor = preprocess(volume, scan.steps, noise_seed(*noise_names(site, scan)), mask)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def try_scan(site: SiteConfig, scan: Scan) -> None:
    """Read a scan, and its mask where one is named, without preprocessing.

    Raises:
        DataError: If it cannot be used.
        OSError: If a file cannot be read.
    """
    if ENCODERS[scan.modality.encoder].slides:
        plan_of(scan.path, fallback_um_px=site.modalities[scan.modality.name].um_px)
        return
    _volume(site, scan)
    if scan.mask is not None:
        read_nifti(scan.mask)


def _volume(site: SiteConfig, scan: Scan) -> Volume:
    """A NIfTI file, or the series of a folder of DICOM files that the site's rule picks.

    The folder's ``report.json`` says which series was taken, and why not the others. Modalities that share a
    folder are served in turn, so that no series counts twice.
    """
    rules = {name: _rule(site.modalities[name]) for name in scan.sharing}
    if not scan.path.is_dir():
        return read_nifti(scan.path)
    out = site.cache / "converted" / hashlib.sha256(str(scan.path.absolute()).encode()).hexdigest()[:16]
    try:
        choice = choose_each(convert_folder(scan.path, out, rules=rules).series, rules)[scan.modality.name]
    except InputError as error:  # several patients in one folder, say
        raise DataError(str(error)) from None
    if choice.entry is None or choice.entry.output is None:
        raise ScanRefused(ScanReason.NO_FITTING_SERIES, choice.why)
    return read_nifti(out / choice.entry.output)


def _rule(source: ModalitySource) -> SeriesRule:
    """Which series of a folder of DICOM files the site wants."""
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
    """The mask of a scan, as the hospital has it."""
    if scan.mask is not None:
        return read_nifti(scan.mask)
    source = site.modalities[scan.modality.name].mask
    if source is None or source.command is None:
        return None
    made = site.cache / "masks" / f"{key}.nii.gz"
    if not made.exists():
        run_mask_command(source.command, scan.path, made, source.timeout_s)
    return read_nifti(made)
