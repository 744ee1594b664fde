"""A site's patients as tensors: manifest, features and texts brought together for one study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.encoders.registry import ENCODERS, GIVEN, encoder_source, fingerprint
from mmare.errors import DataError
from mmare.study.choices import Kind
from mmare.wire.messages import Split
from sites.features import load_features
from sites.manifest import load_manifest
from sites.prompts import compile_prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study
    from sites.config import ModalitySource, SiteConfig
    from sites.manifest import Manifest

__all__ = ["SiteData", "load_data", "presence_of"]


@dataclass(frozen=True)
class SiteData:
    """Patients of a site.

    Args:
        embedding: ``(N, W_j)`` float32 per modality in slot order, zero where absent.
        present: ``(N, M)`` bool.
        label: ``(N,)`` int64.
        rows: Row numbers per split.
        encoders: Fingerprint per modality that the site has.
    """

    embedding: tuple[Tensor, ...]
    present: Tensor
    label: Tensor
    rows: Mapping[Split, Tensor]
    encoders: Mapping[str, str]

    @classmethod
    def pooled(cls, sites: Sequence[SiteData]) -> SiteData:
        """The rows of several sites in one place, in the order given."""
        starts = np.cumsum([0, *(len(site.label) for site in sites)]).tolist()
        return cls(
            embedding=tuple(
                torch.cat(parts) for parts in zip(*(site.embedding for site in sites), strict=True)
            ),
            present=torch.cat([site.present for site in sites]),
            label=torch.cat([site.label for site in sites]),
            rows={
                split: torch.cat(
                    [site.rows[split] + start for site, start in zip(sites, starts, strict=False)]
                )
                for split in Split
            },
            encoders={name: mark for site in sites for name, mark in site.encoders.items()},
        )


def load_data(site: SiteConfig, study: Study) -> SiteData:
    """Read what a site holds of a study's modalities.

    Raises:
        DataError: If a file is missing or cannot be used, or a patient has no modality; names file and row.
    """
    manifest = load_manifest(site.manifest, study.classes, study.seed)
    encoders: dict[str, str] = {}
    columns: list[NDArray[np.bool_]] = []
    embeddings: list[Tensor] = []
    for modality in study.modalities:
        rows = np.zeros((len(manifest.patient_ids), modality.width), dtype=np.float32)
        present = np.zeros(len(manifest.patient_ids), dtype=bool)
        if modality.name in site.modalities:
            encoders[modality.name] = _FILL[modality.kind](rows, present, modality, manifest, site, study)
        embeddings.append(torch.from_numpy(rows))
        columns.append(present)
    found = np.stack(columns, axis=1)  # (N, M)
    for row in np.flatnonzero(~found.any(axis=1)).tolist():
        raise DataError(
            f"{manifest.source}: data row {row + 1} has none of the study's modalities "
            f"({', '.join(modality.name for modality in study.modalities)}); expected at least one"
        )
    return SiteData(
        embedding=tuple(embeddings),
        present=torch.from_numpy(found),
        label=torch.from_numpy(manifest.labels),
        rows={split: torch.from_numpy(np.flatnonzero(manifest.splits == split.value)) for split in Split},
        encoders=encoders,
    )


def presence_of(
    modality: ModalitySpec, manifest: Manifest, site: SiteConfig, study: Study
) -> NDArray[np.bool_]:
    """Which patients have a modality of features or text, ``(N,)``.

    Raises:
        DataError: If its file or columns cannot be used.
    """
    rows = np.zeros((len(manifest.patient_ids), modality.width), dtype=np.float32)
    present = np.zeros(len(manifest.patient_ids), dtype=bool)
    _FILL[modality.kind](rows, present, modality, manifest, site, study)
    return present


def _fill_features(
    rows: NDArray[np.float32],
    present: NDArray[np.bool_],
    modality: ModalitySpec,
    manifest: Manifest,
    site: SiteConfig,
    _study: Study,
) -> str:
    """Write the vectors of a features file; returns the encoder's fingerprint, as its siblings do."""
    source = site.modalities[modality.name]
    if source.file is None:
        raise DataError(f"{manifest.source}: modality {modality.name} needs a features file in site.toml")
    table = load_features(source.file, modality.width)
    for row, patient in enumerate(manifest.patient_ids):
        if patient in table:
            rows[row] = table[patient]
            present[row] = True
    return GIVEN


def _fill_text(
    rows: NDArray[np.float32],
    present: NDArray[np.bool_],
    modality: ModalitySpec,
    manifest: Manifest,
    site: SiteConfig,
    _study: Study,
) -> str:
    """Write the embeddings of texts, encoded here and now."""
    texts = _texts(modality, site.modalities[modality.name], manifest)
    chosen = [row for row, text in enumerate(texts) if text is not None]
    source = encoder_source(site)
    if chosen:
        make = ENCODERS[modality.encoder].open_text
        assert make is not None  # noqa: S101 - check_encoders lets text encoders through only
        encoder = make(source, modality.width)
        rows[chosen] = encoder.encode([text for text in texts if text is not None])
        present[chosen] = True
    return fingerprint(modality.encoder, source)


def _fill_volumes(
    rows: NDArray[np.float32],
    present: NDArray[np.bool_],
    modality: ModalitySpec,
    manifest: Manifest,
    site: SiteConfig,
    study: Study,
) -> str:
    """Write the embeddings of scans from the cache; a scan that was refused is a missing modality."""
    from client.data import scan_list  # noqa: PLC0415 - readers of scans take seconds

    cache = scan_list.site_cache(site)
    for scan in scan_list.scans_of(site, study):
        if scan.modality.name != modality.name:
            continue
        try:
            key = scan_list.cache_key(cache, site, scan)
        except OSError:
            continue  # embedding said so
        vector = cache.get(key)
        if vector is not None:
            rows[scan.row] = vector
            present[scan.row] = True
        elif cache.refusal(key) is None and cache.refusal(key, lasting=False) is None:
            raise DataError(
                f"{manifest.source}: data row {scan.row + 1}: the scan of {modality.name} is not embedded; "
                "run mmare-site embed first"
            )
    return scan_list.scan_fingerprint(site, modality)


_FILL = {Kind.FEATURES: _fill_features, Kind.TEXT: _fill_text, Kind.VOLUME: _fill_volumes}


def _texts(modality: ModalitySpec, source: ModalitySource, manifest: Manifest) -> list[str | None]:
    """The text of each patient, ready or worded by the study's prompt; nothing where all fields are blank."""
    table = manifest.table
    wanted = (source.column,) if source.column is not None else source.columns
    for column in wanted:
        if column not in table.columns:
            raise DataError(f"{manifest.source}: modality {modality.name} needs the column {column!r}")
    if source.column is not None:
        return [text if isinstance(text, str) and text else None for text in table[source.column]]
    prompt = compile_prompt(modality.prompt or "")
    records = table[list(wanted)].to_dict("records")
    return [
        prompt.render(
            {str(key): value if isinstance(value, str) else None for key, value in record.items()},
            modality.prompt_mode,
        )
        for record in records
    ]
