"""``/metrics`` of the site worker: what the hospital's own Prometheus is told.

A number of patients or scans is told only where neither it nor what it could be subtracted from is small:
a monitoring system is read by more people than the data are.
"""

from __future__ import annotations

import platform
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import torch
from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from client.privacy.small_groups import withheld_groups
from client.relay.programs import SUPEREXEC, SUPERNODE, RelayFolder
from client.relay.status_file import last_contact, read_state
from client.telemetry.audit_tally import AuditTally
from client.telemetry.catalogue import INFO_PACKAGES, PHASE_SECONDS, SITE_METRICS
from client.telemetry.embed_record import read_record
from client.telemetry.folder_size import FolderSize
from client.telemetry.gpu import GpuReader
from client.telemetry.seen import RoundWatch
from mmare.errors import InputError, SiteCode
from mmare.host.metric_families import Kind, Sample
from mmare.host.metric_labels import OTHER, Names, one_word, safe
from mmare.wire.joining import SiteKit
from mmare.wire.messages import Task

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client.metrics_core import Metric as Family

    from client.privacy.approvals import Approval, ApprovalFolder
    from client.telemetry.embed_record import ScanCounts
    from client.telemetry.seen import Seen
    from sites.config import SiteConfig

__all__ = ["SiteMetrics", "serving"]

BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)  # seconds
CACHE_PARTS: Final = ("embeddings", "converted", "masks", "runs")
MOST_MODALITIES: Final = 100
MOST_STUDIES: Final = 100
PROGRAMS: Final = ("worker", SUPERNODE, SUPEREXEC)  # that mmare-site start keeps running
_USABLE: Final = ""  # beside the words for scans that are not

_PREFIX: Final = "mmare_site_worker_"


class SiteMetrics(Collector):
    """What a worker tells of itself, its disk and its audit log when it is asked.

    Args:
        site: Whose worker it is.
        approvals: Of the site.
        audit: Path of the site's audit log.
        seen: What the worker has seen.
        gpus: Of this machine.
    """

    def __init__(
        self,
        site: SiteConfig,
        approvals: ApprovalFolder,
        audit: Path,
        seen: Seen,
        gpus: GpuReader | None = None,
    ) -> None:
        self._site = site
        self._label = safe(site.id)
        self._approvals = approvals
        self._audit = audit
        self._tally = AuditTally(audit)
        self._seen = seen
        self._gpus = gpus or GpuReader()
        self._lock = threading.Lock()  # scrapes may overlap
        self._modalities = Names(MOST_MODALITIES)
        self._modalities.add_all(sorted(site.modalities))
        text = next(metric.text for metric in SITE_METRICS if metric.name == PHASE_SECONDS)
        self._durations = Histogram(
            PHASE_SECONDS, text, ("site", "study", "phase"), buckets=BUCKETS, registry=None
        )
        self.observe = RoundWatch(self._took)
        self.cache_size = FolderSize(site.cache, CACHE_PARTS)

    def _took(self, study: str, phase: str, seconds: float) -> None:
        self._durations.labels(self._label, study, phase).observe(seconds)

    def collect(self) -> Iterator[Family]:
        """All metrics with their values now."""
        values: dict[str, dict[tuple[str, ...], float]] = {metric.name: {} for metric in SITE_METRICS}
        with self._lock:
            for sample in self._samples():
                values[sample.metric].setdefault(sample.labels, sample.value)  # two odd names are one label
        for metric in SITE_METRICS:
            if metric.kind is Kind.HISTOGRAM:
                yield from self._histograms()
                continue
            make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = make(metric.name, metric.text, labels=metric.labels)
            for labels, value in values[metric.name].items():
                family.add_metric(labels, value)
            yield family

    def _histograms(self) -> Iterator[Family]:
        for family in self._durations.collect():
            family.samples = [each for each in family.samples if not each.name.endswith("_created")]
            yield family

    def _samples(self) -> Iterator[Sample]:
        approvals = self._approvals.all()
        yield from self._work()
        yield from self._relay()
        yield from self._released(approvals)
        yield from self._scans(approvals)
        yield from self._machine()

    def _sample(self, name: str, value: float, *labels: str) -> Sample:
        return Sample(f"{_PREFIX}{name}", (self._label, *labels), value)

    # What it did

    def _work(self) -> Iterator[Sample]:
        versions = [safe(version(name)) for name in INFO_PACKAGES]
        yield self._sample("info", 1.0, *versions, safe(platform.python_version()))
        seen, rounds = self._seen, self.observe
        yield self._sample("start_timestamp_seconds", seen.started)
        yield self._sample("messages_total", seen.messages)
        yield self._sample("busy_seconds_total", seen.busy_s)
        yield self._sample("run_open", float(rounds.run_open))
        if seen.last_contact is not None:
            yield self._sample("last_contact_timestamp_seconds", seen.last_contact)
        if rounds.deadline_s is not None:
            yield self._sample("round_deadline_seconds", rounds.deadline_s)
        for study, loss in dict(rounds.losses).items():
            yield self._sample("train_loss", loss, study)

    def _relay(self) -> Iterator[Sample]:
        """What ``mmare-site start`` notes of the relay; nothing where it has none, or may not look."""
        folder = RelayFolder.of(self._site)
        try:
            if not SiteKit(self._site.coordinator.kit).joined.exists():
                return
            contact, state = last_contact(folder), read_state(folder)
        except OSError:
            return
        if contact is not None:
            yield self._sample("relay_contact_timestamp_seconds", contact.timestamp())
        for program in () if state is None else state.programs:
            if program.name in PROGRAMS:
                yield self._sample("program_up", float(program.pid is not None), program.name)
                yield self._sample("program_starts_total", program.starts, program.name)

    # What left

    def _released(self, approvals: Iterable[Approval]) -> Iterator[Sample]:
        approved = {approval.study_hash: approval for approval in approvals}
        tally = self._tally
        tally.read_on({name: approval.time for name, approval in approved.items()})
        yield self._sample("approvals", len(approved))
        yield self._sample("audit_log_bytes", tally.size)
        yield self._sample("released_bytes_total", tally.bytes)
        for task in (*Task, OTHER):  # counters begin at nothing, or their first increase is not seen
            yield self._sample("releases_total", tally.released[task], task)
        for code in (*SiteCode, OTHER):
            yield self._sample("refusals_total", tally.refused[code], code)
        yield from self._budgets(approved.values())

    def _budgets(self, approved: Iterable[Approval]) -> Iterator[Sample]:
        """Of studies of one name the one that has used the largest share."""
        budgets: dict[str, tuple[float, int, int]] = {}
        names = Names(MOST_STUDIES)
        for approval in approved:
            limits = (approval.max_releases, self._site.max_releases)
            most = min((each for each in limits if each is not None), default=None)
            if approval.study is None or not most:
                continue
            used = self._tally.used[approval.study_hash]
            name = names(one_word(approval.study.name))
            budgets[name] = max(budgets.get(name, (0.0, 0, most)), (used / most, used, most))
        for name, (_, used, most) in budgets.items():
            yield self._sample("releases_used", used, name)
            yield self._sample("releases_allowed", most, name)

    # What there is

    def _scans(self, approvals: Iterable[Approval]) -> Iterator[Sample]:
        record = read_record(self._site.cache)
        if record is None:
            return
        studies = [approval.study for approval in approvals if approval.study is not None]
        limit = max((self._site.min_count, *(study.privacy.min_count for study in studies)))
        yield self._sample("embedding_active", float(record.active))
        yield self._sample("embedding_timestamp_seconds", record.updated)
        for name, counts in sorted(record.modalities.items()):
            if name in self._site.modalities:
                label = self._modalities(name)
                for told, value in _told(counts, limit):
                    yield self._sample(told[0], value, label, *told[1:])
                for reason, moment in counts.refused_at.items():
                    yield self._sample("scan_refused_timestamp_seconds", moment, label, reason)

    def _machine(self) -> Iterator[Sample]:
        for part, size in self.cache_size.bytes.items():
            yield self._sample("cache_bytes", size, part)
        for place, path in (("cache", self._site.cache), ("audit", self._audit)):
            try:
                disk = shutil.disk_usage(_existing(path))
            except OSError:
                continue
            yield self._sample("disk_free_bytes", disk.free, place)
            yield self._sample("disk_size_bytes", disk.total, place)
        for gpu in self._gpus.read():
            yield self._sample("gpu_memory_used_bytes", gpu.used_bytes, str(gpu.number))
            yield self._sample("gpu_memory_size_bytes", gpu.size_bytes, str(gpu.number))
            if gpu.busy is not None:
                yield self._sample("gpu_busy_ratio", gpu.busy, str(gpu.number))
        started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call] # torch leaves it untyped
        if started:  # else asking would start CUDA
            reserved = sum(torch.cuda.memory_reserved(number) for number in range(torch.cuda.device_count()))
            yield self._sample("gpu_reserved_bytes", reserved)


@contextmanager
def serving(metrics: SiteMetrics, port: int, address: str) -> Iterator[int]:
    """Serve a site's metrics while the block runs; gives the port.

    Raises:
        InputError: If the port cannot be had.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    try:
        server, answers = start_http_server(port, address, registry)
    except (OSError, OverflowError) as error:
        raise InputError(f"[metrics] port {port} of {address} cannot be served: {error}") from None
    try:
        with metrics.cache_size.measured():
            yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        answers.join()


def _told(counts: ScanCounts, limit: int) -> Iterator[tuple[tuple[str, ...], float]]:
    """What may be told of the scans of a modality: the rest of a metric's name and its further labels."""
    if counts.scans < max(limit, 1):
        return
    yield ("scans",), counts.scans
    done = counts.done
    for name, number in (
        ("scans_done", done),
        ("cache_hits_total", counts.hits),
        ("cache_misses_total", counts.misses),
    ):
        whole = name == "scans_done" and done == counts.scans
        yield (name,), number if whole else _in_steps(number, limit)
    groups: Mapping[str, int] = {_USABLE: counts.usable, **counts.refused}
    withheld = withheld_groups(groups, limit)
    for word, number in groups.items():
        if word not in withheld:
            yield ("scans_usable",) if word == _USABLE else ("scans_refused", word), number


def _in_steps(number: int, step: int) -> int:
    """A number that grows, told in whole steps: by how much it grew says nothing of a few.

    Example:
        >>> _in_steps(13, 5), _in_steps(13, 0)
        (10, 13)
    """
    return number - number % step if step > 1 else number


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())
