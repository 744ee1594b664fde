"""The scans that a site holds for a study, their cache keys, and what the cache holds for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from client.data.scan_sources import scan_paths
from client.encoders.preprocess import MaskUse, VolumeSteps
from client.encoders.registry import EncoderSource, encoder_entry, encoder_source
from client.encoders.vgg11 import SliceSteps
from client.ingest.reasons import TRANSIENT, refused_by
from mmare.errors import DataError
from mmare.study.choices import Kind
from mmare.study.choices import MaskUse as StudyMask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from client.data.cache import EmbeddingCache
    from client.encoders.registry import Steps
    from client.ingest.reasons import ScanRefused
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study
    from sites.config import SiteConfig
    from sites.manifest import Patients

__all__ = ["ListedScan", "Scan", "list_scan", "noise_names", "scan_fingerprint", "scans_of", "steps_of"]


@dataclass(frozen=True)
class Scan:
    """One scan that the manifest names."""

    row: int  # of the manifest, from 0
    patient: str
    modality: ModalitySpec
    path: Path  # file or folder
    mask: Path | None  # file; None if there is none or a command makes it
    sharing: tuple[str, ...]  # the patient's modalities that name the same folder, in slot order
    steps: Steps
    encoding: str  # what the embedding depends on besides content, the same for all scans of the modality


@dataclass(frozen=True, eq=False)
class ListedScan:
    """A scan and its state in the cache."""

    scan: Scan
    key: str  # empty if its files cannot be read
    vector: NDArray[np.float32] | None = None  # (W,)
    refused: ScanRefused | None = None

    @property
    def is_due(self) -> bool:
        """Whether it must be read: never tried, or refused for a transient reason."""
        untried = self.refused is None or self.refused.reason in TRANSIENT
        return bool(self.key) and self.vector is None and untried


def list_scan(cache: EmbeddingCache, site: SiteConfig, scan: Scan) -> ListedScan:
    """Look a scan up in the cache."""
    try:
        key = _cache_key(cache, site, scan)
    except OSError as error:
        return ListedScan(scan, "", refused=refused_by(error))
    vector = cache.get(key)
    return ListedScan(scan, key, vector, cache.refusal(key) if vector is None else None)


def steps_of(modality: ModalitySpec, source: EncoderSource | None = None) -> Steps:
    """A modality's preprocessing: the encoder's own, or as the study defines it."""
    entry = encoder_entry(modality, source or EncoderSource())
    if entry.steps is not None:
        return entry.steps(modality)
    kind = SliceSteps if entry.slices else VolumeSteps
    size, window = modality.size, modality.window
    return kind(
        size=(size[0], size[1], size[2]) if size else kind.size,
        window=(window[0], window[1]) if window else None,
        mask=MaskUse.MASK if modality.mask is StudyMask.STRIP else MaskUse.NONE,
        crop_to_mask=modality.crop_to_mask,
    )


def scan_fingerprint(site: SiteConfig, modality: ModalitySpec) -> str:
    """Fingerprint of encoder, weights and preprocessing of a volume modality at this site."""
    source = encoder_source(site, modality.name)
    return encoder_entry(modality, source).fingerprint(source, steps_of(modality, source).fingerprint)


def scans_of(site: SiteConfig, study: Study, manifest: Patients) -> list[Scan]:
    """Every scan of the study's volume modalities that a manifest names, modality by modality.

    Raises:
        DataError: If the manifest cannot be used.
        InputError: If an encoder's weights are missing or have changed.
    """
    found = []
    for modality in study.modalities:
        if modality.kind is not Kind.VOLUME or modality.name not in site.modalities:
            continue
        source = site.modalities[modality.name]
        steps = steps_of(modality, encoder_source(site, modality.name))
        encoding = f"{scan_fingerprint(site, modality)}/{encoder_source(site).autocast}/{source.um_px}"
        masks = _mask_paths(manifest, site, modality) if steps.needs_mask else lambda _row, _scan: None
        for row, path in scan_paths(modality, site, manifest):
            patient, mask = manifest.patient_ids[row], masks(row, path)
            found.append(Scan(row, patient, modality, path, mask, (modality.name,), steps, encoding))
    sharing: dict[tuple[int, Path], tuple[str, ...]] = {}
    for scan in found:
        place = (scan.row, scan.path)
        sharing[place] = (*sharing.get(place, ()), scan.modality.name)
    return [replace(scan, sharing=sharing[scan.row, scan.path]) for scan in found]


def _mask_paths(
    manifest: Patients, site: SiteConfig, modality: ModalitySpec
) -> Callable[[int, Path], Path | None]:
    """Lookup of a row's mask file; it gives None where a command makes the mask.

    Raises:
        DataError: If site.toml has no mask settings, or the manifest lacks their column.
    """
    mask = site.modalities[modality.name].mask
    if mask is None:
        raise DataError(
            f"{site.folder / 'site.toml'}: the study wants masks of {modality.name}; "
            f"expected [modality.{modality.name}.mask] with column, folder or command"
        )
    if mask.column is not None:
        if site.modalities[modality.name].column is None:
            raise DataError(
                f"{site.folder / 'site.toml'}: [modality.{modality.name}.mask] column has one mask a "
                "patient, who may have several scans; expected folder or command"
            )
        if mask.column not in manifest.table.columns:
            raise DataError(
                f"{manifest.source}: the masks of {modality.name} need the column {mask.column!r}"
            )
        values = list(manifest.table[mask.column])
        return lambda row, _scan: (
            manifest.source.parent / values[row] if isinstance(values[row], str) and values[row] else None
        )
    folder = mask.folder
    return lambda _row, scan: None if folder is None else folder / scan.name


def noise_names(site: SiteConfig, scan: Scan) -> tuple[str, str, str]:
    """What seeds the background noise of a scan: site, patient, modality."""
    return site.id, scan.patient, scan.modality.name


def _cache_key(cache: EmbeddingCache, site: SiteConfig, scan: Scan) -> str:
    """Key of a scan's embedding: identity, scan and mask content, series rule, mask command, fingerprint."""
    source = site.modalities[scan.modality.name]
    parts = [*noise_names(site, scan), scan.encoding]
    if scan.path.is_dir():
        series = {name: dict(site.modalities[name].series) for name in scan.sharing}
        parts.append(json.dumps([scan.modality.name, series], sort_keys=True))
    if scan.mask is not None:
        parts.append(cache.key(scan.mask, "mask"))
    elif source.mask is not None and scan.steps.needs_mask:
        parts.append(source.mask.command or "")
    return cache.key(scan.path, "/".join(parts))
