"""``mmare-server export``: a process that outlives the runs and exports their journals to Prometheus."""

from __future__ import annotations

import platform
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from mmare.errors import InputError
from mmare.host.metric_families import Kind, Sample
from mmare.host.metric_labels import Names, safe
from server.monitoring.followed_run import FollowedRun
from server.monitoring.kit_metrics import KitReader
from server.monitoring.run_metrics import METRICS, run_samples
from server.monitoring.run_state import RunState
from server.monitoring.tally import BUCKETS, Tally
from server.store.journal import JOURNAL

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client.metrics_core import Metric as Family

__all__ = ["INTERVAL_S", "MIN_COUNT", "Exporter", "serving"]

INTERVAL_S: Final = 2.0  # between polls of the journals
MIN_COUNT: Final = 5  # as the hospitals' default
YIELD_S: Final = 0.001  # between two chunks, to let a scrape take the lock
MOST_STUDIES: Final = 100
SHOWN_RUNS: Final = 10  # whose gauges are exported: active ones first, then the latest
DEPTH: Final = 3  # of run folders below the folder of runs, at most; 0 is the folder itself


class Exporter(Collector):
    """Follows every run in a folder, for scrapes by Prometheus.

    Counters cover all runs; gauges cover the active and the latest ones.

    Args:
        runs: Folder of run folders, or a run folder.
        min_count: Smaller numbers of patients are not disclosed.
        kit: The coordinator's folder, if there is a deployment.
    """

    def __init__(self, runs: Path, min_count: int = MIN_COUNT, kit: Path | None = None) -> None:
        self._runs = runs
        self._kit = None if kit is None else KitReader(kit)
        self._lock = threading.Lock()
        self._tally = Tally()
        self._new_state = partial(RunState, min_count, self._tally, studies=Names(MOST_STUDIES))
        self._followed: dict[Path, FollowedRun] = {}
        self._last_read = 0.0
        self._behind = False
        self._deleted = {"taken": 0, "skipped": 0}  # lines in folders that were deleted

    def read_on(self) -> bool:
        """Find new runs and read the next chunk of every journal; returns whether there is more to read."""
        found = set(_run_folders(self._runs, DEPTH))
        with self._lock:
            for folder in [folder for folder in self._followed if folder not in found]:
                followed = self._followed.pop(folder)
                self._deleted["taken"] += followed.taken
                self._deleted["skipped"] += followed.skipped
            for folder in sorted(found - set(self._followed)):
                self._followed[folder] = FollowedRun(folder, self._new_state)
            todo = list(self._followed.values())
        more = False
        for followed in todo:
            with self._lock:
                waiting = followed.read_on()
            if waiting:
                more = True
                time.sleep(YIELD_S)
        self._behind, self._last_read = more, time.time()
        return more

    def follow(self, stop: threading.Event, interval_s: float = INTERVAL_S) -> None:
        """Read on until ``stop`` is set."""
        while not stop.is_set():
            if not self.read_on():
                stop.wait(interval_s)

    def collect(self) -> Iterator[Family]:
        """All metrics, as far as the journals have been read."""
        if not self._behind:
            self.read_on()
        with self._lock:
            samples = list(self._samples())
            durations = {
                name: {labels: (list(each.counts), each.total) for labels, each in table.items()}
                for name, table in self._tally.durations.items()
            }
        values: dict[str, list[Sample]] = {metric.name: [] for metric in METRICS}
        for sample in samples:
            values[sample.metric].append(sample)
        for metric in METRICS:
            if metric.kind is Kind.HISTOGRAM:
                histogram = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
                for labels, (counts, total) in durations.get(metric.name, {}).items():
                    histogram.add_metric(labels, _cumulative(counts), sum_value=total)
                yield histogram
                continue
            make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = make(metric.name, metric.text, labels=metric.labels)
            for sample in values[metric.name]:
                family.add_metric(sample.labels, sample.value)
            yield family

    def _samples(self) -> Iterator[Sample]:
        for name, table in self._tally.counts.items():
            for labels, value in table.items():
                yield Sample(name, labels, value)
        shown: dict[tuple[str, str], RunState] = {}
        for state in self._shown():
            shown.setdefault((state.study, state.run), state)  # the latest of copied folders
        for state in shown.values():
            yield from run_samples(state)
        if self._kit is not None:
            yield from self._kit.samples()
        yield from self._own_samples()

    def _shown(self) -> list[RunState]:
        states = [followed.state for followed in self._followed.values() if followed.state.first is not None]
        states.sort(key=lambda state: (state.active, state.last_event), reverse=True)
        return states[:SHOWN_RUNS]

    def _own_samples(self) -> Iterator[Sample]:
        followed = self._followed.values()
        versions = (safe(version("federated-mmare")), safe(platform.python_version()))
        yield Sample("mmare_exporter_info", versions, 1.0)
        numbers = {
            "mmare_exporter_last_read_timestamp_seconds": self._last_read,
            "mmare_exporter_backlog_bytes": sum(each.backlog for each in followed),
            "mmare_exporter_runs": len(followed),
            "mmare_exporter_events_total": self._deleted["taken"] + sum(each.taken for each in followed),
            "mmare_exporter_skipped_lines_total": self._deleted["skipped"]
            + sum(each.skipped for each in followed),
        }
        for name, value in numbers.items():
            yield Sample(name, (), float(value))
        try:
            disk = shutil.disk_usage(self._runs)
        except OSError:
            return
        yield Sample("mmare_disk_free_bytes", (), float(disk.free))
        yield Sample("mmare_disk_size_bytes", (), float(disk.total))


@contextmanager
def serving(exporter: Exporter, port: int, address: str, interval_s: float = INTERVAL_S) -> Iterator[int]:
    """Serve an exporter's metrics while the block runs; yields the port.

    Raises:
        InputError: If the port is not available.
    """
    registry = CollectorRegistry(auto_describe=False)
    exporter.read_on()
    registry.register(exporter)
    try:
        server, answers = start_http_server(port, address, registry)
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} of {address} cannot be served: {error}") from None
    stop = threading.Event()
    reads = threading.Thread(target=exporter.follow, args=(stop, interval_s), daemon=True)
    reads.start()
    try:
        yield server.server_port
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        answers.join()
        reads.join()
        exporter.read_on()


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a journal, down to a depth; run folders are not searched."""
    try:
        if (folder / JOURNAL).is_file():
            yield folder
            return
        inside = sorted(path for path in folder.iterdir() if path.is_dir()) if depth else []
    except OSError:
        return
    for path in inside:
        yield from _run_folders(path, depth - 1)


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative counts per bucket, as Prometheus expects them."""
    bounds = (*(str(bound) for bound in BUCKETS), "+Inf")
    return [(bound, float(sum(counts[: place + 1]))) for place, bound in enumerate(bounds)]
