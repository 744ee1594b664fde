"""What the exporter costs: reading a long journal, a scrape, memory, and a round of a run that is watched."""

import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
import timeit
import urllib.request
from functools import partial

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from client.ingest.reasons import ScanReason
from client.privacy.approvals import ApprovalFolder
from client.privacy.records.audit_log import log_of
from client.telemetry.embed_record import watched
from client.telemetry.endpoint import SiteMetrics
from client.telemetry.endpoint import serving as site_serving
from client.telemetry.seen import WorkerActivity
from client.worker import make_service
from mmare.study.study import load_study
from mmare.wire.messages import Request, Task, decode
from server.monitoring.exporter import Exporter, serving
from server.run.request import RunRequest
from simulation.run import run_federation
from sites.config import load_site
from tests.bench.printed import report
from tests.federations import run_nodes, tiny_federation, tiny_study
from tests.server.journals import a_round, called, started, validated, write

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

ROUNDS = 10_000
BLOCKS = {f"adapter.m{number}": 4000 for number in range(10)}
READER = """
import json, pathlib, sys, time
from prometheus_client import CollectorRegistry, generate_latest
from server.monitoring.exporter import Exporter

def memory(kind):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024

before = memory("VmRSS")
exporter, registry = Exporter(pathlib.Path(sys.argv[1])), CollectorRegistry()
began = time.perf_counter()
while exporter.read_on():
    pass
read = time.perf_counter() - began
registry.register(exporter)
scrapes = []
for _ in range(5):
    began = time.perf_counter()
    page = generate_latest(registry)
    scrapes.append(time.perf_counter() - began)
series = sum(not line.startswith(b"#") for line in page.splitlines())
began = time.perf_counter()
exporter.read_on()
idle = time.perf_counter() - began
print(json.dumps({"read": read, "scrape": min(scrapes), "idle": idle, "bytes": len(page), "series": series,
                  "memory": memory("VmHWM") - before}))
"""


def measure(folder):
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, check=True, timeout=600
    )
    return json.loads(done.stdout)


def write_rounds(folder, names, first, last):
    """Rounds as a run writes them, made once and numbered anew."""
    scores = dict.fromkeys(names, (20, 0.7))
    lines = [*a_round(0, names, **BLOCKS), validated(0, 0.7, **scores)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with (folder / "rounds.jsonl").open("a") as file:
        for number in range(first, last + 1):
            file.write(text.replace('"round": 0', f'"round": {number}'))


@pytest.mark.parametrize("sites", [3, 300])
def test_exporter_over_a_long_journal(sites, tmp_path):
    names = [f"site{number:03d}" for number in range(sites)]
    write(tmp_path, [started(), *(called(name) for name in names)])
    write_rounds(tmp_path, names, 1, ROUNDS // 100)
    short = measure(tmp_path)
    write_rounds(tmp_path, names, ROUNDS // 100 + 1, ROUNDS)
    size = (tmp_path / "rounds.jsonl").stat().st_size
    found = measure(tmp_path)
    report(
        f"exporter, {sites} sites, {ROUNDS} rounds",
        MB=f"{size / 1e6:.0f}",
        read_s=f"{found['read']:.1f}",
        scrape_ms=f"{found['scrape'] * 1e3:.1f}",
        idle_look_ms=f"{found['idle'] * 1e3:.2f}",
        series=found["series"],
        page_kB=f"{found['bytes'] / 1e3:.0f}",
        memory_MB=f"{found['memory'] / 1e6:.1f}",
        memory_MB_of_1_percent=f"{short['memory'] / 1e6:.1f}",
    )
    assert found["series"] == short["series"]
    (tmp_path / "rounds.jsonl").unlink()


def test_cost_of_metrics_to_a_round(tmp_path):
    federation = tiny_federation(tmp_path / "federation", tiny_study(training={"rounds": 60}))

    def seconds(out):
        return run_federation(RunRequest(federation, out))["seconds"]["rounds"] / 60

    seconds(tmp_path / "warm")
    plain, watched = [], []
    for turn in range(3):
        plain.append(seconds(tmp_path / f"plain{turn}"))
        with serving(Exporter(tmp_path), 0, "127.0.0.1") as port:
            watched.append(_scraped(port, partial(seconds, tmp_path / f"watched{turn}")))
    report(
        "one round of 3 tiny sites",
        plain_ms=f"{min(plain) * 1e3:.1f}",
        with_exporter_and_a_scrape_a_second_ms=f"{min(watched) * 1e3:.1f}",
        ratio=f"{min(watched) / min(plain):.4f}",
    )


# The site worker

LINES = 100_000  # of an audit log: hundreds of runs
FILES = 20_000  # in the cache
SITE_READER = """
import json, pathlib, sys, time
from prometheus_client import CollectorRegistry, generate_latest
from client.privacy.approvals import ApprovalFolder
from client.privacy.records.audit_log import log_of
from sites.config import load_site

def memory(kind):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024

site = load_site(pathlib.Path(sys.argv[1]))
before = memory("VmRSS")
from client.telemetry.endpoint import SiteMetrics
from client.telemetry.seen import WorkerActivity
registry = CollectorRegistry()
metrics = SiteMetrics(site, ApprovalFolder(site.folder), log_of(site), WorkerActivity())
registry.register(metrics)
began = time.perf_counter()
metrics.cache_size.measure()
size = time.perf_counter() - began
scrapes = []
for _ in range(20):
    began = time.perf_counter()
    page = generate_latest(registry)
    scrapes.append(time.perf_counter() - began)
series = sum(not line.startswith(b"#") for line in page.splitlines())
print(json.dumps({"first": scrapes[0], "scrape": sorted(scrapes)[10], "size": size, "bytes": len(page),
                  "series": series, "memory": memory("VmHWM") - before}))
"""


def measure_site(site):
    done = subprocess.run(
        [sys.executable, "-c", SITE_READER, str(site)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return json.loads(done.stdout)


def test_exporter_of_a_site(tmp_path):
    federation = tiny_federation(tmp_path / "federation", sites=("ash",))
    site = load_site(federation / "ash" / "site.toml")
    study = load_study(federation / "study.toml")
    ApprovalFolder(site.folder).record(study, 2 * LINES)
    with watched(site.cache, {"ct": 600}, frozenset({"ct"})) as watch:
        for number in range(600):
            refused = ScanReason.EMPTY_FILE if number % 20 == 0 else None
            watch.observe("ct", cached=False, refused=refused)
    short = measure_site(site.folder / "site.toml")
    line = json.dumps(
        {
            "time": "2999-01-01T00:00:00.000+00:00",
            "event": "released",
            "task": "train",
            "study": study.hash,
            "run": "tiny-0123abcd",
            "round": 7,
            "what": ["blocks", "exposures", "metrics"],
            "bytes": 5_600_000,
            "sha256": "0" * 64,
        }
    )
    (site.folder / "audit.jsonl").write_text(f"{line}\n" * LINES)
    for number in range(FILES):
        path = site.cache / "embeddings" / f"{number % 256:02x}" / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = measure_site(site.folder / "site.toml")
    report(
        f"exporter of a site, {LINES} lines of audit log, {FILES} files in the cache",
        log_MB=f"{(site.folder / 'audit.jsonl').stat().st_size / 1e6:.0f}",
        first_scrape_s=f"{found['first']:.2f}",
        scrape_ms=f"{found['scrape'] * 1e3:.1f}",
        cache_look_s=f"{found['size']:.2f}",
        series=found["series"],
        page_kB=f"{found['bytes'] / 1e3:.0f}",
        memory_MB=f"{found['memory'] / 1e6:.1f}",
        memory_MB_of_an_empty_log=f"{short['memory'] / 1e6:.1f}",
    )
    assert found["series"] == short["series"]


WIDTH, TURN_ROUNDS, PAIRS = 512, 6, 16


def test_cost_of_metrics_to_a_round_at_a_site(tmp_path):
    """One hospital with a model of the thesis's size; turns alternate, so that what else runs is in both."""
    study = tiny_study(
        model={"width": WIDTH},
        training={"rounds": TURN_ROUNDS, "batch_size": 64},
        federation={"min_sites": 1},
    )
    federation = tiny_federation(tmp_path / "federation", study, sites=("ash",), patients=600)
    site = load_site(federation / "ash" / "site.toml")
    approvals = ApprovalFolder(site.folder)
    approvals.record(study, 10**6)
    metrics = SiteMetrics(site, approvals, log_of(site), WorkerActivity())
    answers = []

    def observe(*answer):
        answers.append(answer)
        metrics.observe(*answer)

    services = {
        "plain": make_service(site, approvals, log_of(site)),
        "watched": make_service(site, approvals, log_of(site), observe),
    }
    turns = itertools.count()

    def turn(name):
        """Median of the seconds of a round."""
        seconds = []

        def instead(_site, header, payload):
            began = time.perf_counter()
            answer = services[name](header, payload)
            if decode(Request, header).task is Task.TRAIN:
                seconds.append(time.perf_counter() - began)
            return answer

        run_nodes(federation, tmp_path / f"run{next(turns)}", faults={0: instead})
        return statistics.median(seconds)

    with site_serving(metrics, 0, "127.0.0.1") as port:
        found = [(turn("plain"), _scraped(port, lambda: turn("watched"))) for _ in range(PAIRS + 1)][1:]
    round_s = statistics.median(plain for plain, _ in found)
    hook_s = min(timeit.repeat(lambda: metrics.observe(*answers[-2]), number=1000, repeat=5)) / 1000
    registry = CollectorRegistry()
    registry.register(metrics)
    before = time.process_time()
    for _ in range(100):
        generate_latest(registry)
    scrape_s = (time.process_time() - before) / 100
    report(
        f"one round of a site, {PAIRS} pairs of {TURN_ROUNDS} rounds",
        plain_ms=f"{round_s * 1e3:.1f}",
        with_metrics_and_a_scrape_a_second_ms=f"{statistics.median(each for _, each in found) * 1e3:.1f}",
        ratio=f"{statistics.median(watched / plain for plain, watched in found):.4f}",
        hook_us=f"{hook_s * 1e6:.1f}",
        processor_ms_of_a_scrape=f"{scrape_s * 1e3:.2f}",
        share_of_a_round_at_a_scrape_in_15_s=f"{hook_s / round_s + scrape_s / 15:.5f}",
    )


def _scraped(port, work):
    """What some work gives while the page is read every second."""
    stop = threading.Event()

    def scrape():
        while not stop.wait(1.0):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        return work()
    finally:
        stop.set()
        scraper.join()
