"""``/metrics`` of the site worker, for the hospital's own Prometheus.

A count of patients or scans is disclosed only if neither it nor anything it could be subtracted from is
small: a monitoring system has more readers than the data.
"""

from __future__ import annotations

import platform
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import torch
from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from client.privacy.records.ledger import ledger_of
from client.privacy.small_groups import withheld_groups
from client.relay.programs import SUPEREXEC, SUPERNODE, RelayFolder
from client.relay.status_file import last_contact, read_state
from client.telemetry.audit_tally import AuditTally
from client.telemetry.catalogue import INFO_PACKAGES, PHASE_SECONDS, PREFIX, SITE_METRICS
from client.telemetry.embed_record import read_record
from client.telemetry.folder_size import FolderSize
from client.telemetry.gpu import GpuReader
from client.telemetry.prediction_tally import FEWEST, drift_of
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
    from client.privacy.records.audit_log import AuditLog
    from client.telemetry.embed_record import ScanCounts
    from client.telemetry.prediction_tally import Scores
    from client.telemetry.seen import WorkerActivity
    from sites.config import SiteConfig

__all__ = ["SiteMetrics", "serving"]

BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)  # seconds
CACHE_PARTS: Final = ("embeddings", "converted", "masks", "runs")
MOST_MODALITIES: Final = 100
MOST_STUDIES: Final = 100
MOST_MODELS: Final = 20
MOST_GROUPS: Final = 200  # classes, patterns and modalities of models
MODEL_DIGITS: Final = 12
PROGRAMS: Final = ("worker", SUPERNODE, SUPEREXEC)  # supervised by mmare-site start
_USABLE: Final = ""  # a key that no reason of a refusal has


class SiteMetrics(Collector):
    """Collects the metrics of a worker, its disk and its audit log at each scrape."""

    def __init__(
        self,
        site: SiteConfig,
        approvals: ApprovalFolder,
        audit: AuditLog,
        seen: WorkerActivity,
        gpus: GpuReader | None = None,
    ) -> None:
        self._site = site
        self._label = safe(site.id)
        self._approvals = approvals
        self._audit = audit
        self._tally = AuditTally(audit.path)
        self._ledger = ledger_of(site)
        self._seen = seen
        self._gpus = gpus or GpuReader()
        self._lock = threading.Lock()  # scrapes may overlap
        self._models, self._groups = Names(MOST_MODELS), Names(MOST_GROUPS)
        self._modalities = Names(MOST_MODALITIES)
        self._modalities.add_all(sorted(site.modalities))
        text = next(metric.text for metric in SITE_METRICS if metric.name == PHASE_SECONDS)
        self._durations = Histogram(
            PHASE_SECONDS, text, ("site", "study", "phase"), buckets=BUCKETS, registry=None
        )
        self.observe = RoundWatch(self._observe_duration)
        self.cache_size = FolderSize(site.cache, CACHE_PARTS)

    def _observe_duration(self, study: str, phase: str, seconds: float) -> None:
        self._durations.labels(self._label, study, phase).observe(seconds)

    def collect(self) -> Iterator[Family]:
        """All metrics with their current values."""
        values: dict[str, dict[tuple[str, ...], float]] = {metric.name: {} for metric in SITE_METRICS}
        with self._lock:
            for sample in self._samples():
                values[sample.metric].setdefault(sample.labels, sample.value)  # sanitised names may coincide
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
        yield from self._predictions(approvals)
        yield from self._machine()

    def _sample(self, name: str, value: float, *labels: str) -> Sample:
        return Sample(PREFIX + name, (self._label, *labels), value)

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
        """What ``mmare-site start`` records of the relay; nothing if there is none or it is not readable."""
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

    def _released(self, approvals: Iterable[Approval]) -> Iterator[Sample]:
        approved = {approval.study_hash: approval for approval in approvals}
        tally = self._tally
        tally.read_on({name: approval.time for name, approval in approved.items()})
        yield self._sample("approvals", len(approved))
        yield self._sample("audit_log_bytes", tally.size)
        with suppress(OSError):  # the gate reports it
            wrong = self._audit.examine(*(approval.head for approval in approved.values()))[1]
            yield self._sample("audit_log_intact", float(not wrong))
        yield self._sample("released_bytes_total", tally.bytes)
        for task in (*Task, OTHER):  # start at 0, else rate() misses the first increase
            yield self._sample("releases_total", tally.released[task], task)
        for code in (*SiteCode, OTHER):
            yield self._sample("refusals_total", tally.refused[code], code)
        yield from self._budgets(approved.values())
        yield from self._differential_privacy()

    def _differential_privacy(self) -> Iterator[Sample]:
        """What the ledger says, unless it cannot be read, which the gate reports."""
        names = Names(MOST_STUDIES)
        spent: dict[str, float] = {}
        with suppress(OSError):
            wrong = self._ledger.examine(self._audit.budget)[1]
            for charge in self._ledger.charges():
                name = names(one_word(charge.name))
                spent[name] = spent.get(name, 0.0) + charge.epsilon
            yield self._sample("ledger_intact", float(not wrong))
        for name, epsilon in spent.items():
            yield self._sample("epsilon_spent", epsilon, name)
        if self._site.epsilon_limit is not None:
            yield self._sample("epsilon_limit", self._site.epsilon_limit)

    def _budgets(self, approved: Iterable[Approval]) -> Iterator[Sample]:
        """Used and allowed answers per study name: the approval with the largest share used."""
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

    def _scans(self, approvals: Iterable[Approval]) -> Iterator[Sample]:
        record = read_record(self._site.cache)
        if record is None:
            return
        limit = self._limit(approvals)
        yield self._sample("embedding_active", float(record.active))
        yield self._sample("embedding_timestamp_seconds", record.updated)
        for name, counts in sorted(record.modalities.items()):
            if name in self._site.modalities:
                label = self._modalities(name)
                for (metric, *labels), value in _disclosed(counts, limit):
                    yield self._sample(metric, value, label, *labels)
                for reason, moment in counts.refused_at.items():
                    yield self._sample("scan_refused_timestamp_seconds", moment, label, reason)

    def _limit(self, approvals: Iterable[Approval]) -> int:
        """The smallest count that may be told."""
        studies = [approval.study for approval in approvals if approval.study is not None]
        return max((self._site.min_count, *(study.privacy.min_count for study in studies)))

    def _predictions(self, approvals: Iterable[Approval]) -> Iterator[Sample]:
        """Counts per model, by the first digits of its digest, and the drift of its latest patients."""
        limit = self._limit(approvals)
        for digest, tally in self._tally.models.items():
            model = self._models(digest[:MODEL_DIGITS])
            for name, counts in (("total", tally.calls), ("by_pattern_total", tally.patterns)):
                told: Counter[str] = Counter()
                for group, number in counts.items():
                    told[self._groups(one_word(group))] += _in_steps(number, limit)
                for group, number in told.items():
                    yield self._sample(f"predictions_{name}", number, model, group)
            drift = drift_of(tally.latest.values())
            if drift.patients >= max(FEWEST, limit):
                if drift.shares:
                    never = _in_steps(drift.never, limit) / drift.patients
                    yield self._sample("unseen_pattern_ratio", never, model)
                    yield self._sample("pattern_drift_ratio", drift.presence, model)
                for name, far in drift.distance.items():
                    yield self._sample("input_distance", far, model, self._groups(one_word(name)))
            if tally.scores is not None:
                yield from self._scores(tally.scores, model, limit)

    def _scores(self, scores: Scores, model: str, limit: int) -> Iterator[Sample]:
        """How predictions did, once enough outcomes were known."""
        if scores.patients < max(FEWEST, limit) or scores.fewest < limit:
            return
        yield self._sample("scored_predictions", scores.patients, model)
        for name, value in scores.metrics.items():
            yield self._sample(f"scored_{name}", value, model)
        for name, (gap, error) in scores.gaps.items():
            group = self._groups(one_word(name))
            yield self._sample("calibration_gap", gap, model, group)
            yield self._sample("calibration_gap_error", error, model, group)

    def _machine(self) -> Iterator[Sample]:
        for part, size in self.cache_size.bytes.items():
            yield self._sample("cache_bytes", size, part)
        for place, path in (("cache", self._site.cache), ("audit", self._audit.path)):
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
        if started:  # else the query would initialise CUDA
            reserved = sum(torch.cuda.memory_reserved(number) for number in range(torch.cuda.device_count()))
            yield self._sample("gpu_reserved_bytes", reserved)


@contextmanager
def serving(metrics: SiteMetrics, port: int, address: str) -> Iterator[int]:
    """Serve a site's metrics for the block; yields the port.

    Raises:
        InputError: If the port is not available.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, address, registry)
    except (OSError, OverflowError) as error:
        raise InputError(f"[metrics] port {port} of {address} cannot be served: {error}") from None
    try:
        with metrics.cache_size.measured():
            yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _disclosed(counts: ScanCounts, limit: int) -> Iterator[tuple[tuple[str, ...], float]]:
    """What may be disclosed of a modality: name (without prefix) and further labels of each metric, value."""
    if counts.scans < max(limit, 1):
        return
    yield ("scans",), counts.scans
    done = counts.done
    yield ("scans_done",), done if done == counts.scans else _in_steps(done, limit)
    yield ("cache_hits_total",), _in_steps(counts.hits, limit)
    yield ("cache_misses_total",), _in_steps(counts.misses, limit)
    groups: Mapping[str, int] = {_USABLE: counts.usable, **counts.refused}
    withheld = withheld_groups(groups, limit)
    for reason, number in groups.items():
        if reason not in withheld:
            yield ("scans_usable",) if reason == _USABLE else ("scans_refused", reason), number


def _in_steps(number: int, step: int) -> int:
    """A growing number, rounded down to whole steps, so that its increase says nothing about a few scans.

    Example:
        >>> _in_steps(13, 5), _in_steps(13, 0)
        (10, 13)
    """
    return number - number % step if step > 1 else number


def _existing(path: Path) -> Path:
    """The path, or its nearest existing parent."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())
