"""Every scan of a site through its frozen encoder, once; embeddings lie in the cache afterwards."""

from __future__ import annotations

import errno
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from client.data.cache import EmbeddingCache
from client.data.read_scan import mask_of, read_scan, rule_of, steps_of
from client.data.scan_list import Scan, cache_key, noise_names, scans_of, site_cache, slice_steps_of
from client.encoders.preprocess import noise_seed, preprocess
from client.encoders.registry import ENCODERS, check_encoders, encoder_source
from client.encoders.vgg11 import slices_of
from client.ingest.reasons import Reason, VolumeReason
from client.ingest.slides.wsi import plan_of, tiles_of
from client.telemetry.embed_record import watched
from mmare.errors import DataError, RunError

if TYPE_CHECKING:
    from torch import Tensor

    from client.encoders.registry import VolumeEncoder
    from client.ingest.choose import SeriesRule
    from client.telemetry.embed_record import EmbedWatch
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["EmbedReport", "Refusal", "embed_site"]

LOG = logging.getLogger(__name__)

AHEAD: Final = 2  # scans that are read while one is encoded

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Refusal:
    """A scan that could not be used, and why, without its path."""

    modality: str
    row: int
    reason: str


@dataclass(frozen=True)
class EmbedReport:
    """What became of a site's scans.

    Args:
        encoded: Now.
        cached: Before.
        refused: With the reason.
        untrained: Notes of encoders whose features are not trained.
    """

    encoded: int
    cached: int
    refused: tuple[Refusal, ...]
    untrained: tuple[str, ...]


def embed_site(
    site: SiteConfig, study: Study, progress: Progress = lambda _done, _total: None
) -> EmbedReport:
    """Encode what the cache does not hold yet. Killed and run again, it goes on where it was.

    Args:
        site: Whose scans.
        study: Says which encoder and preprocessing.
        progress: Called with scans done and their number.

    Raises:
        DataError: If the manifest cannot be used.
        RunError: If the disk is full.
    """
    check_encoders(study)
    cache = site_cache(site)
    scans = scans_of(site, study)
    totals = Counter(scan.modality.name for scan in scans)
    with watched(site.cache, totals, frozenset(site.modalities)) as watch:
        todo, refused = _sort_out(cache, site, scans, watch)
        done = len(scans) - len(todo)
        cached = done - len(refused)
        progress(done, len(scans))
        encoded = 0
        for scan, key, outcome in _encoded(site, todo):
            try:
                if isinstance(outcome, Exception):
                    why = reason_of(outcome)
                    refused.append(Refusal(scan.modality.name, scan.row, why))
                    cache.put_refusal(key, why, lasting=_lasting(outcome))
                    watch.count(scan.modality.name, cached=False, refused=why)
                else:
                    cache.put(key, outcome.numpy())
                    watch.count(scan.modality.name, cached=False)
                    encoded += 1
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise RunError(
                        f"{site.cache}: the disk is full; make room and run again to go on"
                    ) from None
                raise
            done += 1
            progress(done, len(scans))
    notes = {
        ENCODERS[scan.modality.encoder].note: None for scan in scans if ENCODERS[scan.modality.encoder].note
    }
    return EmbedReport(encoded, cached, tuple(refused), tuple(notes))


def _sort_out(
    cache: EmbeddingCache, site: SiteConfig, scans: list[Scan], watch: EmbedWatch
) -> tuple[list[tuple[Scan, str]], list[Refusal]]:
    """Scans that must be read, with their keys, and those of which is known that they cannot be used."""
    todo: list[tuple[Scan, str]] = []
    refused: list[Refusal] = []
    for scan in scans:
        name = scan.modality.name
        try:
            key = cache_key(cache, site, scan)
        except OSError as error:
            refused.append(Refusal(name, scan.row, reason_of(error)))
            watch.count(name, cached=False, refused=reason_of(error))
            continue
        why = cache.refusal(key)
        if why is not None:
            refused.append(Refusal(name, scan.row, why))
            watch.count(name, cached=True, refused=why)
        elif cache.get(key) is None:
            todo.append((scan, key))
        else:
            watch.count(name, cached=True)
    _save(cache)
    return todo, refused


def _save(cache: EmbeddingCache) -> None:
    try:
        cache.save_index()
    except OSError:
        LOG.warning("the list of seen files cannot be kept; they will be read again")


def _encoded(
    site: SiteConfig, todo: list[tuple[Scan, str]]
) -> Iterator[tuple[Scan, str, Tensor | Exception]]:
    """Scans in order with their embedding ``(W,)``, or why there is none; reading goes on beside encoding."""
    source = encoder_source(site)
    encoders = {scan.modality.encoder: ENCODERS[scan.modality.encoder].open_volume for scan, _ in todo}
    opened = {name: make(source) for name, make in encoders.items() if make is not None}
    torch.set_num_threads(site.threads)  # of this thread; the reader is told by itself
    waiting: deque[tuple[Scan, str, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(1, "scans", torch.set_num_threads, (site.threads,)) as reader:
        try:
            for scan, key in todo:
                waiting.append((scan, key, reader.submit(_read, site, scan, key)))
                if len(waiting) > AHEAD:
                    yield _finish(*waiting.popleft(), opened)
            while waiting:
                yield _finish(*waiting.popleft(), opened)
        finally:
            reader.shutdown(wait=False, cancel_futures=True)


def try_scan(site: SiteConfig, scan: Scan) -> None:
    """Read a scan, and its mask where one is named, without encoding it.

    Raises:
        DataError: If it cannot be used.
        OSError: If a file cannot be read.
    """
    if ENCODERS[scan.modality.encoder].slides:
        plan_of(scan.path, fallback_um_px=site.modalities[scan.modality.name].um_px)
        return
    read_scan(scan.path, site.cache / "converted", _rules(site, scan), scan.modality.name)
    if scan.mask is not None:
        mask_of(scan.path, scan.mask, None, site.cache / "masks")


def _rules(site: SiteConfig, scan: Scan) -> dict[str, SeriesRule]:
    return {name: rule_of(site.modalities[name]) for name in scan.sharing}


def reason_of(error: Exception) -> str:
    """Why a scan cannot be used, without its path."""
    return f"cannot be read ({type(error).__name__})" if isinstance(error, OSError) else str(error)


def _lasting(error: Exception) -> bool:
    """Whether a scan is refused for what it is, and not for what went wrong around it just now."""
    passing = {Reason.PERMISSION_DENIED, Reason.UNREADABLE_FILE, VolumeReason.MASK_COMMAND}
    return isinstance(error, DataError) and getattr(error, "reason", None) not in passing


def _read(site: SiteConfig, scan: Scan, key: str) -> Tensor:
    """Read a scan and its mask, and preprocess; the tiles of a slide ``(N, 256, 256, 3)``."""
    source = site.modalities[scan.modality.name]
    if ENCODERS[scan.modality.encoder].slides:
        return torch.from_numpy(tiles_of(scan.path, fallback_um_px=source.um_px).pixels)
    steps = steps_of(scan.modality)
    volume = read_scan(scan.path, site.cache / "converted", _rules(site, scan), scan.modality.name)
    mask = None
    if steps.needs_mask:
        mask = mask_of(scan.path, scan.mask, source.mask, site.cache / "masks" / f"{key}.nii.gz")
    if ENCODERS[scan.modality.encoder].slices:
        tensor = slices_of(volume, slice_steps_of(scan.modality), mask)
    else:
        tensor = preprocess(volume, steps, noise_seed(*noise_names(site, scan)), mask)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def _finish(
    scan: Scan, key: str, reading: Future[Tensor], opened: dict[str, VolumeEncoder]
) -> tuple[Scan, str, Tensor | Exception]:
    try:
        volume = reading.result()
    except (DataError, OSError) as error:
        return scan, key, error
    vector = opened[scan.modality.encoder].encode(volume.unsqueeze(0))[0]  # (W,)
    if not bool(vector.isfinite().all()):
        return scan, key, DataError("The encoder gave values that are not finite.")
    return scan, key, vector
