"""Embedding progress of a site: a small file in its cache, written by the process that encodes the scans.

``mmare-site embed`` is a separate process; the worker reads the file for Prometheus. It holds exact counts
and stays in the cache; `client.telemetry.endpoint` decides what is disclosed.
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
from mmare.host.files import own_folder, write_whole
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
    """Counts of one modality: hits and misses over all calls of `mmare-site embed`, the rest of the last."""

    scans: int = 0  # in the manifest
    usable: int = 0  # with an embedding
    refused: dict[str, int] = field(default_factory=dict)  # per code of `ScanReason`
    refused_at: dict[str, float] = field(default_factory=dict)  # last read and refused, s since the epoch
    hits: int = 0  # found in the cache
    misses: int = 0  # had to be read

    @property
    def done(self) -> int:
        """Scans known to be usable or not."""
        return self.usable + sum(self.refused.values())


@dataclass(frozen=True)
class EmbedRecord:
    """Content of the file."""

    updated: float  # seconds since the epoch
    active: bool  # scans are being encoded; stays True if the process was killed
    modalities: Mapping[str, ScanCounts]
    format: int = FORMAT


def read_record(cache: Path) -> EmbedRecord | None:
    """The record in a cache; None if there is none of this format."""
    try:
        found = from_table(EmbedRecord, json.loads((cache / FILE).read_text(encoding="utf-8")), "the record")
    except (OSError, ValueError, RecursionError, AttributeError, TableError):
        return None
    codes = {code for counts in found.modalities.values() for code in (*counts.refused, *counts.refused_at)}
    return found if found.format == FORMAT and codes <= set(ScanReason) else None


class EmbedWatch:
    """Counts scans as they finish and writes the record every few seconds.

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
        """Count one finished scan; ``cached`` if its embedding or refusal was already known."""
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
        """Write the record; an error is logged, as progress must not stop the work."""
        if not self._modalities:
            return
        self._written = self._clock()
        record = EmbedRecord(self._written, active, self._modalities)
        try:
            own_folder(self._cache)
            write_whole(self._cache / FILE, json.dumps(asdict(record)).encode())
        except OSError:
            LOG.warning("the embedding progress cannot be saved")


@contextmanager
def watched(cache: Path, scans: Mapping[str, int], known: frozenset[str]) -> Iterator[EmbedWatch]:
    """An `EmbedWatch` for the block; the record says ``active`` until the block ends."""
    watch = EmbedWatch(cache, scans, known)
    watch.write(active=True)
    try:
        yield watch
    finally:
        watch.write(active=False)
