"""Run every scan of a site through its frozen encoder, once; the embeddings stay in the cache."""

from __future__ import annotations

import errno
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import torch

from client.data.cache import EmbeddingCache
from client.data.read_scan import read_scan
from client.data.scan_list import ListedScan, Scan, list_scan, scans_of
from client.encoders.registry import ENCODERS, check_encoders, encoder_entry, encoder_source
from client.ingest.reasons import ScanReason, ScanRefused, refused_by
from client.telemetry.embed_record import watched
from mmare.errors import DataError, RunError
from sites.manifest import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from client.encoders.registry import VolumeEncoder
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["EmbedReport", "Refusal", "embed_scans", "embed_site"]

LOG = logging.getLogger(__name__)

AHEAD: Final = 2  # scans read ahead while one is encoded

Progress = Callable[[int, int], None]  # done, total


class Tell(Protocol):
    """Called with every scan that is done."""

    def __call__(self, done: ListedScan, *, cached: bool) -> None:
        """A scan with its embedding or refusal, and whether the cache held it."""


@dataclass(frozen=True)
class Refusal:
    """A scan that cannot be used, and why; without its path."""

    modality: str
    row: int
    reason: ScanReason
    detail: str

    @property
    def sentence(self) -> str:
        """The code's sentence and the detail."""
        return str(ScanRefused(self.reason, self.detail))


@dataclass(frozen=True)
class EmbedReport:
    """The outcome for a site's scans."""

    encoded: int  # by this call
    cached: int  # by earlier ones
    refused: tuple[Refusal, ...]
    untrained: tuple[str, ...]  # notes of encoders with untrained weights


def embed_site(
    site: SiteConfig, study: Study, progress: Progress = lambda _done, _total: None
) -> EmbedReport:
    """Encode what the cache does not hold yet; an interrupted run resumes where it stopped.

    Raises:
        DataError: If the manifest cannot be used.
        RunError: If the disk is full.
    """
    check_encoders(study)
    scans = scans_of(site, study, load_manifest(site.manifest, study))
    totals = Counter(scan.modality.name for scan in scans)
    with watched(site.cache, totals, frozenset(site.modalities)) as watch:

        def observe(done: ListedScan, *, cached: bool) -> None:
            why = None if done.refused is None else done.refused.reason
            watch.observe(done.scan.modality.name, cached=cached, refused=why)

        return embed_scans(site, scans, progress, observe)


def embed_scans(site: SiteConfig, scans: Sequence[Scan], progress: Progress, tell: Tell) -> EmbedReport:
    """Encode those scans that the cache does not hold yet, and ``tell`` of each; raises as `embed_site`."""
    cache = EmbeddingCache(site.cache)
    ends: list[tuple[bool, Refusal | None]] = []  # whether cached, and why it is unusable

    def observe(done: ListedScan, *, cached: bool) -> None:
        name, why = done.scan.modality.name, done.refused
        ends.append((cached, None if why is None else Refusal(name, done.scan.row, why.reason, why.detail)))
        tell(done, cached=cached)

    due = []
    for listed in (list_scan(cache, site, scan) for scan in scans):
        if listed.is_due:
            due.append(listed)
        else:
            observe(listed, cached=bool(listed.key))
    _save_index(cache)
    progress(len(ends), len(scans))
    for encoded in _encoded(site, due):
        _keep(cache, site, encoded)
        observe(encoded, cached=False)
        progress(len(ends), len(scans))
    entries = (ENCODERS.get(scan.modality.encoder) for scan in scans)
    notes = {entry.note: None for entry in entries if entry is not None and entry.note}
    refused = tuple(refusal for _, refusal in ends if refusal is not None)
    return EmbedReport(ends.count((False, None)), ends.count((True, None)), refused, tuple(notes))


def _save_index(cache: EmbeddingCache) -> None:
    try:
        cache.save_index()
    except OSError:
        LOG.warning("the index of scanned files cannot be saved; the files will be read again")


def _keep(cache: EmbeddingCache, site: SiteConfig, encoded: ListedScan) -> None:
    """Store an embedding, or the reason why there is none."""
    try:
        if encoded.vector is not None:
            cache.put(encoded.key, encoded.vector)
        elif encoded.refused is not None:
            cache.put_refusal(encoded.key, encoded.refused)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RunError(f"{site.cache}: the disk is full; free some space and run again to resume") from None


def _encoded(site: SiteConfig, due: list[ListedScan]) -> Iterator[ListedScan]:
    """Scans in order, each with its embedding or refusal; the next ones are read meanwhile."""
    torch.set_num_threads(site.threads)  # per thread; the reader sets its own
    opened = _opened(site, due)
    waiting: deque[tuple[ListedScan, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(1, "scans", torch.set_num_threads, (site.threads,)) as reader:
        try:
            for listed in due:
                waiting.append((listed, reader.submit(read_scan, site, listed.scan, listed.key)))
                if len(waiting) > AHEAD:
                    yield _finish(*waiting.popleft(), opened)
            while waiting:
                yield _finish(*waiting.popleft(), opened)
        finally:
            reader.shutdown(wait=False, cancel_futures=True)


def _opened(site: SiteConfig, due: list[ListedScan]) -> dict[str, VolumeEncoder]:
    """The encoders of scans by modality; modalities with the same one share it."""
    shared: dict[tuple[str, Path | None], VolumeEncoder] = {}
    by_modality = {}
    for modality in {each.scan.modality.name: each.scan.modality for each in due}.values():
        source = encoder_source(site, modality.name)
        key = modality.encoder, source.given
        make = encoder_entry(modality, source).open_volume
        if key not in shared and make is not None:
            shared[key] = make(source)
        by_modality[modality.name] = shared[key]
    return by_modality


def _finish(listed: ListedScan, reading: Future[Tensor], opened: dict[str, VolumeEncoder]) -> ListedScan:
    try:
        tensor = reading.result()
    except (DataError, OSError) as error:
        return replace(listed, refused=refused_by(error))
    vector = opened[listed.scan.modality.name].encode(tensor.unsqueeze(0))[0]  # (W,)
    if not bool(vector.isfinite().all()):
        return replace(listed, refused=ScanRefused(ScanReason.NON_FINITE_EMBEDDING))
    return replace(listed, vector=vector.numpy(), refused=None)
