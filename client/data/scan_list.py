"""Which scans a site holds for a study, and the key of the embedding of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from client.data.cache import EmbeddingCache
from client.data.read_scan import steps_of
from client.encoders.registry import ENCODERS, encoder_source, fingerprint
from client.encoders.vgg11 import SliceSteps
from client.ingest.slides.tissue import Tiling
from mmare.errors import DataError
from mmare.study.choices import Kind
from sites.manifest import load_manifest

if TYPE_CHECKING:
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study
    from sites.config import SiteConfig
    from sites.manifest import Manifest

__all__ = ["Scan", "cache_key", "scan_fingerprint", "scans_of", "site_cache"]


@dataclass(frozen=True)
class Scan:
    """One scan that the manifest names.

    Args:
        row: In the manifest, from 0.
        patient: Id.
        modality: Of the study.
        path: File or folder.
        mask: File of its mask, where there is one.
        sharing: Modalities of the patient that name the same folder, in slot order.
        fingerprint: Of encoder, weights and preprocessing.
    """

    row: int
    patient: str
    modality: ModalitySpec
    path: Path
    mask: Path | None
    sharing: tuple[str, ...]
    fingerprint: str


def site_cache(site: SiteConfig) -> EmbeddingCache:
    """The site's embeddings."""
    return EmbeddingCache(site.cache)


def scan_fingerprint(site: SiteConfig, modality: ModalitySpec) -> str:
    """What names encoder, weights and preprocessing of a volume modality at this site."""
    entry = ENCODERS[modality.encoder]
    steps = slice_steps_of(modality) if entry.slices else steps_of(modality)
    tiling = Tiling().fingerprint if entry.slides else steps.fingerprint
    return fingerprint(modality.encoder, encoder_source(site), tiling)


def slice_steps_of(modality: ModalitySpec) -> SliceSteps:
    """The preprocessing of an encoder that sees slices; it has another default size."""
    steps = steps_of(modality)
    size = steps.size if modality.size else SliceSteps.size
    return SliceSteps(size, steps.window, steps.mask, steps.crop_to_mask)


def scans_of(site: SiteConfig, study: Study) -> list[Scan]:
    """Every scan of the study's volume modalities that the site's manifest names, modality by modality.

    Args:
        site: Whose scans.
        study: Which modalities.

    Raises:
        DataError: If the manifest cannot be used.
        InputError: If an encoder's weights are missing or have changed.
    """
    manifest = load_manifest(site.manifest, study.classes, study.seed)
    found = []
    for modality in study.modalities:
        if modality.kind is not Kind.VOLUME or modality.name not in site.modalities:
            continue
        column = site.modalities[modality.name].column
        if column is None or column not in manifest.table.columns:
            raise DataError(
                f"{manifest.source}: modality {modality.name} needs a column of scans, found {column!r}"
            )
        mark = scan_fingerprint(site, modality)
        masks = _mask_paths(manifest, site, modality)
        for row, value in enumerate(manifest.table[column]):
            if isinstance(value, str) and value:
                path = site.manifest.parent / value  # an absolute path stays as it is
                patient, mask = manifest.patient_ids[row], masks(row, path)
                found.append(Scan(row, patient, modality, path, mask, (modality.name,), mark))
    sharing: dict[tuple[int, Path], tuple[str, ...]] = {}
    for scan in found:
        place = (scan.row, scan.path)
        sharing[place] = (*sharing.get(place, ()), scan.modality.name)
    return [replace(scan, sharing=sharing[scan.row, scan.path]) for scan in found]


def _mask_paths(
    manifest: Manifest, site: SiteConfig, modality: ModalitySpec
) -> Callable[[int, Path], Path | None]:
    """Where the mask of a row's scan lies; nothing where a program makes it or the study needs none.

    Raises:
        DataError: If the study needs masks and site.toml says nothing of them.
    """
    if not steps_of(modality).needs_mask:
        return lambda _row, _scan: None
    mask = site.modalities[modality.name].mask
    if mask is None:
        raise DataError(
            f"{site.folder / 'site.toml'}: the study wants masks of {modality.name}; "
            f"expected [modality.{modality.name}.mask] with column, folder or command"
        )
    if mask.column is not None:
        if mask.column not in manifest.table.columns:
            raise DataError(
                f"{manifest.source}: the masks of {modality.name} need the column {mask.column!r}"
            )
        values = list(manifest.table[mask.column])
        return lambda row, _scan: (
            site.manifest.parent / values[row] if isinstance(values[row], str) and values[row] else None
        )
    folder = mask.folder
    return lambda _row, scan: None if folder is None else folder / scan.name


def noise_names(site: SiteConfig, scan: Scan) -> tuple[str, str, str]:
    """What the background noise of a scan is drawn from."""
    return site.id, scan.patient, scan.modality.name


def cache_key(cache: EmbeddingCache, site: SiteConfig, scan: Scan) -> str:
    """Key of a scan's embedding: whose it is, content of scan and mask, rule, command, fingerprint.

    Raises:
        OSError: If a file cannot be read.
    """
    source = site.modalities[scan.modality.name]
    parts = [
        *noise_names(site, scan),
        scan.fingerprint,
        str(encoder_source(site).autocast),
        str(source.um_px),
    ]
    if scan.path.is_dir():
        series = {name: dict(site.modalities[name].series) for name in scan.sharing}
        parts.append(json.dumps([scan.modality.name, series], sort_keys=True))
    if scan.mask is not None:
        parts.append(cache.key(scan.mask, "mask"))
    elif source.mask is not None and steps_of(scan.modality).needs_mask:
        parts.append(source.mask.command or "")
    return cache.key(scan.path, "/".join(parts))
