"""How far a site's scans are encoded: a small file in its cache, written by the process that encodes them.

``mmare-site embed`` is a process of its own; the worker reads the file for Prometheus. It holds exact numbers
and stays in the cache, with the embeddings themselves; `client.telemetry.endpoint` decides what is shown.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from client.ingest.reasons import ScanReason
from mmare.host.files import write_whole
from mmare.study.tables import TableError, from_table

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EmbedRecord", "EmbedWatch", "ScanCounts", "read_record", "watched"]

LOG = logging.getLogger(__name__)

FILE: Final = "embedding.json"
FORMAT: Final = 1
INTERVAL_S: Final = 2.0  # between two writes


@dataclass
class ScanCounts:
    """One modality; the first three are of the last time that scans were encoded.

    Args:
        scans: That the manifest names.
        usable: With an embedding.
        refused: Per code of `client.ingest.reasons.ScanReason`.
        refused_at: Seconds since the epoch at which a scan was last read and refused, per code.
        hits: Scans, over all times, of which the cache knew all.
        misses: Scans, over all times, that had to be read.
    """

    scans: int = 0
    usable: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    refused_at: dict[str, float] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0

    @property
    def done(self) -> int:
        """Scans of which is known whether they can be used."""
        return self.usable + sum(self.refused.values())


@dataclass(frozen=True)
class EmbedRecord:
    """What the file says.

    Args:
        updated: Seconds since the epoch.
        active: Whether scans are being encoded; stays True where the process was killed.
    """

    updated: float
    active: bool
    modalities: Mapping[str, ScanCounts]
    format: int = FORMAT


def read_record(cache: Path) -> EmbedRecord | None:
    """The record of a cache; nothing where there is none that this software wrote."""
    try:
        found = from_table(EmbedRecord, json.loads((cache / FILE).read_text(encoding="utf-8")), "the record")
    except (OSError, ValueError, RecursionError, AttributeError, TableError):
        return None
    codes = {code for counts in found.modalities.values() for code in (*counts.refused, *counts.refused_at)}
    return found if found.format == FORMAT and codes <= set(ScanReason) else None


class EmbedWatch:
    """Counts scans as they end, and writes the record now and then.

    Args:
        cache: Folder of the site.
        scans: Number per modality of the study.
        known: Modalities of the site; others are dropped from the record.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        cache: Path,
        scans: Mapping[str, int],
        known: frozenset[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._clock = clock
        before = read_record(cache)
        kept = before.modalities if before else {}
        self._modalities = {name: counts for name, counts in kept.items() if name in known}
        for name, number in scans.items():
            old = kept.get(name, ScanCounts())
            self._modalities[name] = ScanCounts(
                number, refused_at=dict(old.refused_at), hits=old.hits, misses=old.misses
            )
        self._written = 0.0

    def observe(self, modality: str, *, cached: bool, refused: ScanReason | None = None) -> None:
        """Count one scan that is done; ``cached`` where its embedding or refusal was known before."""
        counts, now = self._modalities[modality], self._clock()
        if cached:
            counts.hits += 1
        else:
            counts.misses += 1
        if refused is None:
            counts.usable += 1
        else:
            counts.refused[refused] = counts.refused.get(refused, 0) + 1
            if not cached:
                counts.refused_at[refused] = now
        if now - self._written >= INTERVAL_S:
            self.write(active=True)

    def write(self, *, active: bool) -> None:
        """Put the record on the disk; a disk that is full does not end the work here."""
        if not self._modalities:
            return
        self._written = self._clock()
        record = EmbedRecord(self._written, active, self._modalities)
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            write_whole(self._cache / FILE, json.dumps(asdict(record)).encode())
        except OSError:
            LOG.warning("how far the scans are encoded cannot be written down")


@contextmanager
def watched(cache: Path, scans: Mapping[str, int], known: frozenset[str]) -> Iterator[EmbedWatch]:
    """An `EmbedWatch` over the block: the record says that scans are being encoded until the block ends."""
    watch = EmbedWatch(cache, scans, known)
    watch.write(active=True)
    try:
        yield watch
    finally:
        watch.write(active=False)
