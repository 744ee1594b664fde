"""A patient's scan of one modality and its mask, from the paths in the manifest to volumes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from client.encoders.preprocess import MaskUse, VolumeSteps, run_mask_command
from client.ingest.choose import Prefer, SeriesRule, choose_each
from client.ingest.convert import convert_folder
from client.ingest.nifti import read_nifti
from client.ingest.volume import Plane
from mmare.errors import DataError, InputError
from mmare.study.choices import MaskUse as StudyMask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from client.ingest.volume import Volume
    from mmare.study.specs import ModalitySpec
    from sites.config import MaskSource, ModalitySource

__all__ = ["mask_of", "read_scan", "rule_of", "steps_of"]


def steps_of(modality: ModalitySpec) -> VolumeSteps:
    """The preprocessing that a study wants for a modality."""
    size, window = modality.size, modality.window
    return VolumeSteps(
        size=(size[0], size[1], size[2]) if size else VolumeSteps.size,
        window=(window[0], window[1]) if window else None,
        mask=MaskUse.MASK if modality.mask is StudyMask.STRIP else MaskUse.NONE,
        crop_to_mask=modality.crop_to_mask,
    )


def rule_of(source: ModalitySource) -> SeriesRule:
    """Which series of a folder of DICOM files the site wants.

    Raises:
        DataError: If site.toml names a plane or preference that does not exist.
    """
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


def read_scan(path: Path, converted: Path, rules: Mapping[str, SeriesRule], modality: str) -> Volume:
    """Read a NIfTI file, or the series of a folder of DICOM files that the site's rule picks.

    The folder's ``report.json`` says which series was taken, and why not the others. Modalities that share a
    folder are served in turn, so that no series counts twice.

    Args:
        path: File or folder.
        converted: Where volumes of DICOM folders are kept.
        rules: Of every modality of the patient that names this path, in slot order.
        modality: That is wanted.

    Raises:
        DataError: If it holds no usable volume.
    """
    if not path.is_dir():
        return read_nifti(path)
    out = converted / hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    try:
        choice = choose_each(convert_folder(path, out, rules=rules).series, rules)[modality]
    except InputError as error:  # several patients in one folder, say
        raise DataError(str(error)) from None
    if choice.entry is None or choice.entry.output is None:
        raise DataError(f"The folder holds no series that fits: {choice.why}")
    return read_nifti(out / choice.entry.output)


def mask_of(path: Path, given: Path | None, source: MaskSource | None, made: Path) -> Volume | None:
    """The mask of a scan, as the hospital has it.

    Args:
        path: The scan.
        given: The mask's path, where the manifest or the site's folder names one.
        source: How the site holds masks.
        made: Where a mask that a program makes is kept.

    Raises:
        DataError: If the mask cannot be read or the program fails.
    """
    if given is not None:
        return read_nifti(given)
    if source is None or source.command is None:
        return None
    if not made.exists():
        run_mask_command(source.command, path, made, source.timeout_s)
    return read_nifti(made)
