"""Embed modalities before a federation exists, because mnar depends on what a modality shows.

The complete federation is written to a temporary folder, and its scans and texts go through the study's
encoders as at a hospital. The folder is removed, but embeddings of scans move into the caches of the sites.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from client.data.progress import scan_progress
from mmare.errors import InputError
from mmare.study.choices import Kind

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from mmare.study.study import Study
    from sites.config import SiteConfig
    from sites.federation import SiteTables
    from sites.missing.amputate import Embed

    Vectors = dict[str, NDArray[float32]]  # by patient id

__all__ = ["embedding_first"]

_CACHE = "cache"  # default of site.toml


@contextmanager
def embedding_first(out: Path, console: Console, weights: Path | None = None) -> Iterator[Embed]:
    """Yield the ``embed`` of `sites.missing.amputate.take_away`; on success, scans end in the sites' caches.

    Args:
        out: The federation folder; the temporary one lies beside it.
        console: For progress.
        weights: Folder filled by ``mmare-site weights import``.
    """
    folder = out.parent / f".{out.name}.{uuid.uuid4().hex}.embed"

    def embed(study: Study, sites: Sequence[SiteTables], names: Sequence[str]) -> dict[str, Vectors]:
        from sites.federation import site_folders, write_federation  # noqa: PLC0415 - pandas takes seconds

        reduced = replace(study, modalities=tuple(entry for entry in study.modalities if entry.name in names))
        _check_weights(reduced, weights)
        write_federation(folder, reduced, [left for site in sites if (left := _reduced(site, reduced))])
        return _embedded([replace(site, weights=weights) for site in site_folders(folder)], reduced, console)

    try:
        yield embed
        for cache in sorted(folder.glob(f"*/{_CACHE}")):
            target = out / cache.parent.name
            if target.is_dir() and not (target / _CACHE).exists():
                cache.rename(target / _CACHE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_weights(study: Study, weights: Path | None) -> None:
    from client.encoders.registry import EncoderSource, fingerprint  # noqa: PLC0415 - torch takes seconds

    for modality in study.modalities:
        try:
            fingerprint(modality.encoder, EncoderSource(weights=weights))
        except InputError as error:
            why = "its weights are missing" if weights is None else f"its weights cannot be used ({error})"
            raise InputError(
                f"mnar on pc1 embeds {modality.name} with {modality.encoder} first, and {why}; "
                "expected their folder in --weights, or --encoder med3d-resnet18-random (untrained), "
                "or --driver label"
            ) from None


def _reduced(site: SiteTables, study: Study) -> SiteTables | None:
    """A site's tables without modalities that need no encoder, and without patients who then have nothing."""
    from sites.federation import having  # noqa: PLC0415 - pandas takes seconds
    from sites.manifest import ID  # noqa: PLC0415 - as above

    names = {modality.name for modality in study.modalities}
    ids = [str(patient) for patient in site.manifest[ID]]
    anything = set().union(*(having(ids, site, modality) for modality in study.modalities))
    if not anything:
        return None
    return replace(
        site,
        manifest=site.manifest[[patient in anything for patient in ids]],
        features={},
        columns={name: columns for name, columns in site.columns.items() if name in names},
        scans={name: column for name, column in site.scans.items() if name in names},
    )


def _embedded(sites: Sequence[SiteConfig], study: Study, console: Console) -> dict[str, Vectors]:
    """Per modality, ``(W,)`` vectors of all sites; a refused scan has none."""
    from client.data.dataset import load_data  # noqa: PLC0415 - torch takes seconds
    from client.data.embed import embed_site  # noqa: PLC0415 - as above
    from sites.manifest import load_manifest  # noqa: PLC0415 - pandas takes seconds

    if any(modality.kind is Kind.VOLUME for modality in study.modalities):
        with scan_progress(console) as bar:
            for site in sites:
                task = bar.add_task(f"scans of {site.id}", total=None)
                embed_site(site, study, partial(_advance, bar, task))
    vectors: dict[str, Vectors] = {modality.name: {} for modality in study.modalities}
    for site in sites:
        ids = load_manifest(site.manifest, study).patient_ids
        data = load_data(site, study)
        for slot, modality in enumerate(study.modalities):
            rows = data.present[:, slot].nonzero()[:, 0].tolist()
            matrix = data.embedding[slot].numpy()  # (N, W)
            vectors[modality.name] |= {ids[row]: matrix[row] for row in rows}
    return vectors


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
