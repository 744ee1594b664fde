"""What a site worker tells Prometheus: of a real run, of odd records and logs, and never a small number."""

import fcntl
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from client.ingest.reasons import ScanReason
from client.privacy.approvals import ApprovalFolder
from client.privacy.records.audit_log import Entry, Event, log_of
from client.relay.programs import RelayFolder
from client.relay.status_file import ProgramState, RelayState, write_state
from client.relay.worker_link import WorkerLink
from client.telemetry.catalogue import SITE_METRICS
from client.telemetry.embed_record import ScanCounts
from client.telemetry.endpoint import SiteMetrics, serving
from client.telemetry.seen import WorkerActivity
from client.worker import make_service, run_worker
from mmare.errors import InputError, SiteCode
from mmare.host.metric_families import Kind
from mmare.models.registry import build_model
from mmare.study.study import load_study
from mmare.wire.messages import Request, Task, encode
from mmare.wire.tensors import global_tensors, layout_of, pack
from sites.config import MetricsConfig, load_site
from tests.federations import run_nodes, tiny_federation, tiny_study
from tests.properties import examples

PREFIX = "mmare_site_worker_"
SITE, PARTITION = "birch", 1


class Watched:
    """The site of a federation as a hospital has it: approvals, limits, audit log, metrics, service."""

    def __init__(self, federation, min_count=5, **changes):
        self.study = load_study(federation / "study.toml")
        changes["min_count"] = min_count
        self.site = replace(load_site(federation / SITE / "site.toml"), **changes)
        self.approvals = ApprovalFolder(self.site.folder)
        self.audit = log_of(self.site)
        self.seen = WorkerActivity()
        self.metrics = SiteMetrics(self.site, self.approvals, self.audit, self.seen)
        self.service = make_service(self.site, self.approvals, self.audit, self.metrics.observe)

    def found(self):
        return values(page(self.metrics))


def page(metrics):
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry).decode()


def values(text):
    """Per sample name without the prefix: labels less the site, as a sorted tuple of pairs, to value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "site"}
            found.setdefault(sample.name.removeprefix(PREFIX), {})[tuple(sorted(labels.items()))] = (
                sample.value
            )
    return found


def one(**labels):
    return tuple(sorted(labels.items()))


def counted(found, name):
    return {labels: value for labels, value in found[name].items() if value}


@pytest.fixture
def federation(tmp_path):
    return tiny_federation(tmp_path / "federation")


@pytest.fixture
def watched(federation):
    return Watched(federation)


def run_with(watched, federation, out, listeners=()):
    """A run in which the watched service stands in the place of its partition."""

    def instead(_site, header, payload):
        return watched.service(header, payload)

    return run_nodes(federation, out, faults={PARTITION: instead}, listeners=listeners)


# A run


def test_a_run_is_told(watched, federation, tmp_path):
    watched.approvals.record(watched.study, 40)
    open_at = {}

    def listen(event):
        if event["event"] in {"round_started", "run_finished"}:
            open_at[event["event"]] = watched.found()["run_open"][()]

    run_with(watched, federation, tmp_path / "run", (listen,))
    found = watched.found()
    lines = list(watched.audit.lines())
    assert open_at == {"round_started": 1, "run_finished": 0}
    assert found["round_deadline_seconds"] == {(): 30}
    assert found["phase_duration_seconds_count"] == {
        one(study="tiny", phase="train"): 4,
        one(study="tiny", phase="evaluate"): 5,  # after every round, and the test
    }
    assert found["phase_duration_seconds_sum"][one(study="tiny", phase="train")] > 0
    assert 0 < found["train_loss"][one(study="tiny")] < 10
    assert counted(found, "releases_total") == {
        one(task="describe"): 1,
        one(task="statistics"): 1,
        one(task="train"): 4,
        one(task="evaluate"): 2,
    }
    assert not counted(found, "refusals_total")
    assert found["released_bytes_total"] == {(): sum(line["bytes"] for line in lines)}
    assert found["audit_log_bytes"] == {(): watched.audit.path.stat().st_size}
    assert found["approvals"] == {(): 1}
    assert found["releases_used"] == {one(study="tiny"): len(lines)}
    assert found["releases_allowed"] == {one(study="tiny"): 40}
    for place in ("cache", "audit"):
        assert 0 < found["disk_free_bytes"][one(place=place)] <= found["disk_size_bytes"][one(place=place)]


def test_what_left_goes_on_where_it_was_when_the_worker_is_started_again(watched, federation, tmp_path):
    watched.approvals.record(watched.study, 40)
    run_with(watched, federation, tmp_path / "run")
    before, after = watched.found(), Watched(federation).found()
    for name in ("releases_total", "refusals_total", "released_bytes_total", "releases_used"):
        assert after[name] == before[name]
    assert "train_loss" not in after


def test_a_refusal_is_told_by_its_code(watched):
    watched.service(encode(Request(Task.DESCRIBE, "run", watched.study.to_dict())), b"")
    watched.service("rubbish", b"")
    found = watched.found()
    assert counted(found, "refusals_total") == {one(code="S102"): 1, one(code="S101"): 1}
    assert set(found["refusals_total"]) == {one(code=code) for code in (*SiteCode, "other")}
    assert set(found["releases_total"]) == {one(task=task) for task in (*Task, "other")}
    assert "releases_used" not in found
    assert found["run_open"] == {(): 0}


def test_a_comparison_after_the_end_does_not_open_a_run_again(watched):
    watched.approvals.record(watched.study, 40)
    model = global_tensors(build_model(watched.study))
    roll_call = Request(Task.DESCRIBE, "one", watched.study.to_dict())
    end = replace(roll_call, task=Task.EVALUATE, final=True, layout=layout_of(model).fingerprint)
    states = []
    for request in (roll_call, end, roll_call, replace(roll_call, run="two")):
        watched.service(encode(request), pack(model).numpy().tobytes())
        states.append(watched.found()["run_open"][()])
    assert states == [1, 0, 0, 1]


def test_a_log_that_lost_lines_is_told(watched):
    watched.approvals.record(watched.study, 10)
    assert watched.found()["audit_log_intact"] == {(): 1}
    released(watched, watched.study, 2)
    assert watched.found()["audit_log_intact"] == {(): 1}
    watched.audit.path.write_bytes(watched.audit.path.read_bytes().splitlines(keepends=True)[0])
    assert watched.found()["audit_log_intact"] == {(): 0}


def released(watched, study, times):
    for _ in range(times):
        watched.audit.append(Entry(Event.RELEASED, task="train", study=study.hash, bytes=10))


def test_the_budget_is_of_the_approval_that_has_used_most_and_begins_anew(watched):
    other = tiny_study(training={"learning_rate": 0.5})
    watched.approvals.record(watched.study, 10)
    watched.approvals.record(other, 100)
    released(watched, watched.study, 6)
    released(watched, other, 7)
    found = watched.found()
    assert found["approvals"] == {(): 2}
    assert found["releases_used"] == {one(study="tiny"): 6}
    assert found["releases_allowed"] == {one(study="tiny"): 10}
    watched.approvals.record(watched.study, 10)
    found = watched.found()
    assert found["releases_used"] == {one(study="tiny"): 7}
    assert found["releases_allowed"] == {one(study="tiny"): 100}
    assert found["releases_total"][one(task="train")] == 13


def test_the_limit_of_the_site_counts_where_it_is_lower(federation):
    watched = Watched(federation, max_releases=5)
    watched.approvals.record(watched.study, 10)
    assert watched.found()["releases_allowed"] == {one(study="tiny"): 5}


def test_no_limit_is_no_budget(watched):
    watched.approvals.record(watched.study, None)
    assert "releases_allowed" not in watched.found()


def test_messages_and_time_at_work_are_told(watched):
    assert "last_contact_timestamp_seconds" not in watched.found()
    watched.seen.messages, watched.seen.last_contact = 3, 1_700_000_000.0
    before = watched.found()["busy_seconds_total"][()]
    watched.seen.begin()
    during = watched.found()["busy_seconds_total"][()]
    watched.seen.end()
    after = watched.found()
    assert before == 0 < during <= after["busy_seconds_total"][()]
    assert after["messages_total"] == {(): 3}
    assert after["last_contact_timestamp_seconds"] == {(): 1_700_000_000.0}


@contextmanager
def started(site, programs):
    """What ``mmare-site start`` leaves for others while it runs."""
    folder = RelayFolder.of(site)
    folder.folder.mkdir(parents=True)
    state = RelayState(1, 0.0, "test", "localhost:443", programs)
    write_state(folder.state, state)
    with folder.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def test_what_start_notes_of_the_relay_is_told(watched):
    programs = (
        ProgramState("worker", 2, 0.0, pid=7),
        ProgramState("supernode", 5, 0.0, ended="ended with exit code 1"),
        ProgramState("/home/PAT-0001", 1, 0.0, pid=8),
    )
    with started(watched.site, programs) as folder:
        assert "program_up" not in watched.found()  # no bundle is installed
        watched.site.coordinator.kit.joinpath("coordinator.toml").touch()
        found = watched.found()
        assert found["program_up"] == {one(program="worker"): 1, one(program="supernode"): 0}
        assert found["program_starts_total"] == {one(program="worker"): 2, one(program="supernode"): 5}
        assert "relay_contact_timestamp_seconds" not in found
        folder.contact.touch()
        os.utime(folder.contact, (1_700_000_000, 1_700_000_000))
        assert watched.found()["relay_contact_timestamp_seconds"] == {(): 1_700_000_000}
    assert "program_up" not in watched.found()  # it ended


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_relay_of_another_user_is_not_told(watched):
    with started(watched.site, (ProgramState("worker", 2, 0.0, pid=7),)):
        kit = watched.site.coordinator.kit
        kit.joinpath("coordinator.toml").touch()
        kit.joinpath("relay").chmod(0)
        found = watched.found()
        kit.joinpath("relay").chmod(0o700)
    assert "program_up" not in found


def test_a_scrape_starts_nothing_on_a_gpu(watched):
    before = torch.cuda.is_initialized()
    found = watched.found()
    assert torch.cuda.is_initialized() == before
    if not torch.cuda.is_available():
        assert not {name for name in found if name.startswith("gpu")}


# Scans


def record(watched, **modalities):
    watched.site.cache.mkdir(exist_ok=True)
    content = {
        "format": 1,
        "updated": 1_700_000_000.0,
        "active": True,
        "modalities": {name: vars(counts) for name, counts in modalities.items()},
    }
    (watched.site.cache / "embedding.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("counts", "usable", "refused"),
    [
        pytest.param(ScanCounts(40, 40), 40, {}, id="all-usable"),
        pytest.param(ScanCounts(40, 30, {"no-mask": 10}), 30, {"no-mask": 10}, id="large"),
        pytest.param(ScanCounts(40, 37, {"no-mask": 3}), None, {}, id="few-and-what-is-left"),
        pytest.param(ScanCounts(40, 33, {"no-mask": 3, "colour": 4}), 33, {}, id="few-of-several-reasons"),
        pytest.param(
            ScanCounts(40, 28, {"no-mask": 2, "colour": 10}), 28, {}, id="few-and-the-next-smallest"
        ),
        pytest.param(ScanCounts(40, 0, {"no-mask": 40}), 0, {"no-mask": 40}, id="none-usable"),
    ],
)
def test_few_scans_and_what_they_could_be_subtracted_from_are_not_told(watched, counts, usable, refused):
    record(watched, ct=replace(counts, refused_at=dict.fromkeys(counts.refused, 1_600_000_000.0)))
    found = watched.found()
    assert found["scans"] == found["scans_done"] == {one(modality="ct"): 40}
    assert found.get("scans_usable", {}) == ({} if usable is None else {one(modality="ct"): usable})
    assert found.get("scans_refused", {}) == {
        one(modality="ct", reason=reason): number for reason, number in refused.items()
    }
    assert found.get("scan_refused_timestamp_seconds", {}) == {
        one(modality="ct", reason=reason): 1_600_000_000.0 for reason in counts.refused
    }
    assert found["embedding_active"] == {(): 1}
    assert found["embedding_timestamp_seconds"] == {(): 1_700_000_000.0}


def test_numbers_that_only_grow_are_told_in_steps(watched):
    record(watched, ct=ScanCounts(40, 13, hits=23, misses=4))
    found = watched.found()
    assert found["scans_done"] == {one(modality="ct"): 10}
    assert found["cache_hits_total"] == {one(modality="ct"): 20}
    assert found["cache_misses_total"] == {one(modality="ct"): 0}


def test_of_few_scans_nothing_is_told(watched):
    record(watched, ct=ScanCounts(4, 4, hits=40), wsi=ScanCounts(5, 5))
    found = watched.found()
    for name in ("scans", "scans_done", "scans_usable", "cache_hits_total"):
        assert set(found[name]) == {one(modality="wsi")}


def test_a_site_that_sets_no_limit_is_told_all(federation):
    watched = Watched(federation, min_count=0)
    record(watched, ct=ScanCounts(4, 3, {"no-mask": 1}, hits=3, misses=1))
    found = watched.found()
    assert found["scans_usable"] == {one(modality="ct"): 3}
    assert found["scans_refused"] == {one(modality="ct", reason="no-mask"): 1}
    assert found["cache_hits_total"] == {one(modality="ct"): 3}


def test_a_study_may_ask_for_a_larger_smallest_count(federation):
    watched = Watched(federation, min_count=0)
    watched.approvals.record(tiny_study(privacy={"min_count": 50}), 10)
    record(watched, ct=ScanCounts(40, 40), wsi=ScanCounts(60, 60))
    assert set(watched.found()["scans"]) == {one(modality="wsi")}


def test_a_modality_that_the_site_does_not_name_is_not_told(watched):
    record(watched, pet=ScanCounts(40, 40))
    assert "scans" not in watched.found()


# Whatever a log, a record and a configuration hold

ODD_TEXT = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ["/home/patients/PAT-0001.nii.gz", "PAT-0001\n# TYPE x", 'a"b', "x" * 500, "no-mask", "ct"]
    ),
)
ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.integers(0, 9), ODD_TEXT)
WORDS = st.sampled_from(sorted(ScanReason))
NUMBERS = st.integers(0, 60)
NAMES = st.sampled_from(["ct", "wsi", "/data/PAT-0001"]) | ODD_TEXT


def records(number, word, moment, whole, truth):
    counts = st.fixed_dictionaries(
        {},
        optional={
            "scans": number,
            "usable": number,
            "refused": st.dictionaries(word, number, max_size=4),
            "refused_at": st.dictionaries(word, moment, max_size=2),
            "hits": number,
            "misses": number,
        },
    )
    return st.fixed_dictionaries(
        {
            "format": whole,
            "updated": moment,
            "active": truth,
            "modalities": st.dictionaries(NAMES, counts, max_size=4),
        }
    )


RECORDS = st.one_of(
    records(NUMBERS, WORDS, st.floats(0, 2e9), st.just(1), st.booleans()),
    records(NUMBERS | ODD, WORDS | ODD_TEXT, ODD, st.just(1) | ODD, st.booleans() | ODD),
)
PREDICTIONS = st.fixed_dictionaries(
    {
        **{name: st.just("10") | ODD | ODD_TEXT for name in ("model", "input", "presence", "call")},
        "distance": st.dictionaries(ODD_TEXT, ODD | st.floats(), max_size=3) | ODD,
    },
    optional={"seen": ODD, "share": ODD},
)
SCORES = st.fixed_dictionaries(
    {
        "model": st.just("10") | ODD_TEXT,
        "patients": st.integers(90, 200) | ODD,
        "fewest": st.integers(0, 50) | ODD,
        "gaps": st.dictionaries(
            ODD_TEXT, st.fixed_dictionaries({"gap": st.floats(), "error": st.floats() | ODD}), max_size=2
        )
        | ODD,
    },
    optional={"auc": st.floats() | ODD, "ece": ODD},
)
LINES = st.fixed_dictionaries(
    {
        "event": st.sampled_from(["released", "refused", "predicted", "scored"]) | ODD,
        "time": st.just("2026-01-01") | ODD,
    },
    optional={
        "task": st.just("train") | ODD,
        "code": st.just("S102") | ODD,
        "bytes": ODD,
        "study": ODD,
        "prediction": PREDICTIONS,
        "scores": SCORES,
    },
)


@pytest.fixture(scope="module")
def small_federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("small") / "federation", sites=(SITE,), patients=16)


@examples(60)
@given(
    RECORDS, st.lists(LINES, max_size=5), st.binary(max_size=30), st.lists(ODD_TEXT.filter(len), max_size=3)
)
def test_odd_records_logs_and_names_break_nothing_and_leak_nothing(
    small_federation, tmp_path_factory, told, lines, rubbish, names
):
    folder = tmp_path_factory.mktemp("odd")
    site = load_site(small_federation / SITE / "site.toml")
    modalities = {
        **site.modalities,
        **dict.fromkeys((*told["modalities"], *names), site.modalities["ct"]),
    }
    watched = Watched(
        small_federation,
        folder=folder,
        cache=folder / "cache",
        modalities=modalities,
        id=(names or [SITE])[0],
    )
    watched.approvals.record(replace(watched.study, name=(names or ["tiny"])[-1]), 10)
    watched.site.cache.mkdir()
    (watched.site.cache / "embedding.json").write_text(json.dumps(told))
    log = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    watched.audit.path.write_bytes(log + rubbish)
    check_page(page(watched.metrics))


def check_page(text):
    known = {metric.name: metric for metric in SITE_METRICS}
    plain = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-")
    closed = {
        "reason": set(ScanReason),
        "code": {*SiteCode, "other"},
        "task": {*Task, "other"},
        "phase": {"evaluate", "train"},
        "place": {"cache", "audit"},
        "program": {"worker", "supernode", "superexec"},
        "part": {"embeddings", "converted", "masks", "runs", "other"},
    }
    seen = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = next(name for name in (sample.name, sample.name.rsplit("_", 1)[0]) if name in known)
            assert set(sample.labels) - {"le"} == set(known[name].labels)
            for label, value in sample.labels.items():
                assert len(value) <= 64
                assert set(value) <= plain
                assert value in closed.get(label, {value})
            if "_scans" in name or "_cache_hits" in name or "_cache_misses" in name:
                assert sample.value == 0 or sample.value >= 5
            assert math.isfinite(sample.value)
            series = (sample.name, tuple(sorted(sample.labels.items())))
            assert series not in seen
            seen.add(series)
    for odd in ("/home", "/data", "patients", "PAT-0001"):
        assert odd not in text


def test_labels_of_modalities_are_bounded(federation, monkeypatch):
    monkeypatch.setattr("client.telemetry.endpoint.MOST_MODALITIES", 2)
    site = load_site(federation / SITE / "site.toml")
    names = [f"m{number}" for number in range(9)]
    watched = Watched(federation, modalities=dict.fromkeys(names, site.modalities["ct"]))
    record(watched, **{name: ScanCounts(40, 40) for name in names})
    assert set(watched.found()["scans"]) == {one(modality=name) for name in ("m0", "m1", "other")}


# The page


def test_every_metric_is_well_formed_for_promtool(watched, federation, tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    watched.approvals.record(watched.study, 40)
    run_with(watched, federation, tmp_path / "run")
    record(watched, ct=ScanCounts(40, 30, {"no-mask": 10}, {"no-mask": 1.0}, 10, 20))
    watched.metrics.cache_size.measure()
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=page(watched.metrics),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_types_are_those_of_the_table(watched):
    lines = [line.split() for line in page(watched.metrics).splitlines() if line.startswith("# TYPE")]
    assert {name: kind for _, _, name, kind in lines} == {
        metric.name: metric.kind.value for metric in SITE_METRICS
    }
    assert all(metric.name.endswith("_total") == (metric.kind is Kind.COUNTER) for metric in SITE_METRICS)
    assert all(metric.labels[0] == "site" for metric in SITE_METRICS)


def test_the_page_is_served_until_the_end(watched):
    with serving(watched.metrics, 0, "127.0.0.1") as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        with (
            pytest.raises(InputError, match=rf"\[metrics\] port {port} of 127.0.0.1 cannot be served"),
            serving(watched.metrics, port, "127.0.0.1"),
        ):
            pass
    assert 'mmare_site_worker_info{federated_mmare="0.1.0",' in text
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


@pytest.fixture
def short_site():
    """A site whose path leaves room for a socket, which pytest's own may not, and a free port."""
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder, socket.socket() as probe:
        tiny_federation(Path(folder) / "federation", sites=(SITE,), patients=16)
        site = load_site(Path(folder) / "federation" / SITE / "site.toml")
        probe.bind(("127.0.0.1", 0))
        yield site, probe


def test_a_worker_serves_its_page_until_it_stops(short_site):
    site, probe = short_site
    port = probe.getsockname()[1]
    probe.close()
    site = replace(site, metrics=MetricsConfig(port))
    stop, ready, ended = threading.Event(), threading.Event(), []
    thread = threading.Thread(target=lambda: ended.append(run_worker(site, ready.set, stop)), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        WorkerLink(site.worker.socket)(encode(Request(Task.DESCRIBE, "run", tiny_study().to_dict())), b"")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            found = values(answer.read().decode())
    finally:
        stop.set()
        thread.join(30)
    assert ended == [True]
    assert found["messages_total"] == {(): 1}
    assert found["busy_seconds_total"][()] > 0
    assert counted(found, "refusals_total") == {one(code="S102"): 1}
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_a_worker_whose_port_is_taken_says_so_and_ends(short_site):
    site, probe = short_site
    probe.listen()
    site = replace(site, metrics=MetricsConfig(probe.getsockname()[1]))
    with pytest.raises(InputError, match=r"\[metrics\] port .* cannot be served"):
        run_worker(site, stop=threading.Event())
    assert WorkerLink(site.worker.socket).status() is None


@pytest.mark.slow
def test_a_worker_that_nobody_watches_imports_no_prometheus():
    code = "import sys, client.worker; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
