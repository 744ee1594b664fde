"""The site worker over a real socket in this process, and what its relay does with one that is not there."""

import grp
import os
import socket as sockets
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
import torch
from typer.testing import CliRunner

from client.cli import app
from client.data.dataset import load_data
from client.privacy.approvals import ApprovalFolder
from client.privacy.records.audit_log import AuditLog, Entry, Event
from client.relay.app import app as client_app
from client.relay.worker_link import WorkerLink, address_of
from client.status import status_text
from client.worker import SiteStatus, Worker, make_service, run_worker, serve
from client.worker_pb.site_worker_pb2 import Answer, Question, StatusAnswer, StudyTally
from client.worker_pb.site_worker_pb2_grpc import SiteWorkerServicer, add_SiteWorkerServicer_to_server
from mmare.errors import DataError, InputError, RunError, SiteCode
from mmare.study.study import load_study
from mmare.wire.messages import Refusal, Request, RollCall, Task, decode, encode
from server.rounds.flower_fleet import GridFleet
from simulation.engine import InProcessGrid
from sites.config import WorkerConfig, load_site
from tests.federations import tiny_federation, tiny_study

ROOT = Path(__file__).parents[2]
STUDY = tiny_study()
RUNNER = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})


def echo(header, payload):
    return header.upper(), payload[::-1]


def code_of(answer):
    assert answer[1] == b""
    return decode(Refusal, answer[0]).code


def asking(deadline_s=30.0):
    study = tiny_study(federation={"min_sites": 1, "deadline_s": deadline_s})
    return encode(Request(Task.DESCRIBE, "run", study.to_dict()))


@pytest.fixture
def short_path():
    """A folder whose path leaves room for a socket, which pytest's own may not."""
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        yield Path(folder)


@pytest.fixture
def config(short_path):
    return WorkerConfig(short_path / "run" / "worker.sock", grace_s=5)


@contextmanager
def serving(worker, config):
    """A worker on its socket in this process; signals are for the main thread, so an event stands for one."""
    stop, ready, ended = threading.Event(), threading.Event(), []
    thread = threading.Thread(
        target=lambda: ended.append(serve(worker, config, ready.set, stop)), daemon=True
    )
    thread.start()
    assert ready.wait(10)
    try:
        yield ended
    finally:
        stop.set()
        thread.join(config.grace_s + 5)


def test_header_and_tensors_go_through_unchanged(config):
    with serving(Worker(echo), config):
        link = WorkerLink(config.socket)
        assert link("header", b"12345") == ("HEADER", b"54321")
        assert link("again", b"") == ("AGAIN", b"")


@pytest.mark.parametrize("size", [8_000_000, pytest.param(200_000_000, marks=pytest.mark.slow)])
def test_messages_larger_than_grpc_s_own_limit_pass(config, size):
    with serving(Worker(lambda header, payload: (header, payload)), config):
        payload = bytes(size)
        answer, back = WorkerLink(config.socket)("big", payload)
    assert (answer, len(back)) == ("big", size)


def test_only_the_owner_can_reach_the_socket(config):
    with serving(Worker(echo), config):
        assert stat.S_IMODE(config.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(config.socket.parent.stat().st_mode) == 0o700
    assert not config.socket.exists()


def test_a_group_can_be_given_access(config):
    name = grp.getgrgid(os.getegid()).gr_name
    with serving(Worker(echo), WorkerConfig(config.socket, group=name)):
        assert stat.S_IMODE(config.socket.stat().st_mode) == 0o660
        assert stat.S_IMODE(config.socket.parent.stat().st_mode) == 0o710
        assert config.socket.stat().st_gid == os.getegid()
        assert WorkerLink(config.socket)("x", b"")[0] == "X"


@pytest.mark.parametrize("mode", [0o755, 0o701, 0o750, 0o777])
def test_a_folder_that_others_can_enter_is_refused(config, mode):
    config.socket.parent.mkdir()
    config.socket.parent.chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o} .* expected one of your own"):
        serve(Worker(echo), config, stop=threading.Event())


def test_a_second_worker_is_refused_and_the_first_continues(config):
    with serving(Worker(echo), config):
        with pytest.raises(RunError, match="a site worker is running there already"):
            serve(Worker(echo), config, stop=threading.Event())
        assert WorkerLink(config.socket)("x", b"")[0] == "X"


def test_the_socket_of_a_dead_worker_is_replaced(config):
    config.socket.parent.mkdir(mode=0o700)
    with sockets.socket(sockets.AF_UNIX) as stale:
        stale.bind(str(config.socket))
    assert code_of(WorkerLink(config.socket)(asking(), b"")) is SiteCode.WORKER
    with serving(Worker(echo), config):
        assert WorkerLink(config.socket)("x", b"")[0] == "X"


def test_a_file_that_is_not_a_socket_is_kept(config):
    config.socket.parent.mkdir(mode=0o700)
    config.socket.write_text("precious")
    with pytest.raises(InputError, match="exists but is not a socket"):
        serve(Worker(echo), config, stop=threading.Event())
    assert config.socket.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_refused(tmp_path):
    config = WorkerConfig(tmp_path / ("x" * 108))
    with pytest.raises(InputError, match="a socket's path has at most 107"):
        serve(Worker(echo), config, stop=threading.Event())


def test_an_unknown_group_is_refused(config):
    with pytest.raises(InputError, match="which this machine does not have"):
        serve(Worker(echo), WorkerConfig(config.socket, group="no-such-group"), stop=threading.Event())


def test_any_exception_of_the_service_becomes_a_code(config):
    errors = [FileNotFoundError(2, "TCGA-07-1234", "/data/oncology/patients.csv"), SystemExit("TCGA-07-1234")]

    def raising(_header, _payload):
        raise errors.pop()

    with serving(Worker(raising), config):
        for _ in range(2):
            assert code_of(WorkerLink(config.socket)(asking(), b"")) is SiteCode.INTERNAL


def test_a_missing_worker_is_a_code(config):
    assert code_of(WorkerLink(config.socket)(asking(), b"")) is SiteCode.WORKER
    assert WorkerLink(config.socket).status() is None


@contextmanager
def other_server(folder, ask):
    """A server on a socket that is not ours; ``ask`` answers."""
    from concurrent.futures import ThreadPoolExecutor

    class Other(SiteWorkerServicer):
        def Ask(self, request, context):  # noqa: N802
            return ask(request, context)

    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    add_SiteWorkerServicer_to_server(Other(), server)
    server.add_insecure_port(address_of(folder / "other.sock"))
    server.start()
    try:
        yield WorkerLink(folder / "other.sock")
    finally:
        server.stop(0).wait(5)


def test_a_worker_that_dies_is_a_code_without_detail(short_path):
    def breaking(_request, context):
        context.abort(grpc.StatusCode.UNKNOWN, "/data/oncology: patient TCGA-07-1234")

    with other_server(short_path, breaking) as link:
        answer = link(asking(), b"")
        assert link.status() is None  # it knows no such call
    assert code_of(answer) is SiteCode.WORKER
    assert "TCGA" not in answer[0]


def test_a_worker_that_hangs_times_out_at_the_study_s_deadline(config):
    go_on, calls = threading.Event(), []

    def hanging(header, _payload):
        calls.append(header)
        go_on.wait(20)
        return "late", b""

    with serving(Worker(hanging), config):
        link = WorkerLink(config.socket)
        began = time.monotonic()
        assert code_of(link(asking(0.4), b"")) is SiteCode.LATE
        assert code_of(link(asking(0.4), b"")) is SiteCode.LATE  # it waits for the first, then gives up
        assert time.monotonic() - began < 5
        assert WorkerLink(config.socket).status().busy_s > 0.4  # a status is answered beside it
        go_on.set()
        assert link(asking(), b"") == ("late", b"")
    assert len(calls) == 2  # for whom nobody waited, nothing was done


def test_one_message_at_a_time(config):
    busy, seen = threading.Lock(), []

    def alone(header, _payload):
        seen.append(busy.acquire(blocking=False))
        time.sleep(0.05)
        busy.release()
        return header, b""

    with serving(Worker(alone), config):
        link = WorkerLink(config.socket)
        threads = [threading.Thread(target=link, args=(asking(), b"")) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [True] * 4


@pytest.mark.parametrize(("takes_s", "grace_s", "finished"), [(0.6, 5, True), (3.0, 0, False)])
def test_the_current_message_is_finished_or_abandoned(config, takes_s, grace_s, finished):
    started, answers = threading.Event(), []

    def slow(_header, _payload):
        started.set()
        time.sleep(takes_s)
        return "done", b""

    config = WorkerConfig(config.socket, grace_s=grace_s)
    with serving(Worker(slow), config) as ended:
        asker = threading.Thread(
            target=lambda: answers.append(WorkerLink(config.socket)(asking(), b"")), daemon=True
        )
        asker.start()
        assert started.wait(10)
    asker.join(10)
    assert ended == [finished]
    assert answers[0] == ("done", b"") if finished else code_of(answers[0]) is SiteCode.WORKER


# The service behind it


@pytest.fixture
def site(short_path):
    federation = tiny_federation(short_path / "federation", sites=("ash", "birch"), patients=16)
    return load_site(federation / "ash" / "site.toml")


def describe(study):
    return encode(Request(Task.DESCRIBE, "run", study.to_dict()))


def test_a_worker_answers_approved_studies_only_and_logs_both(site):
    study = load_study(site.folder.parent / "study.toml")
    approvals, log = ApprovalFolder(site.folder), AuditLog(site.folder / "audit.jsonl")
    with serving(Worker(make_service(site, approvals, log)), site.worker):
        link = WorkerLink(site.worker.socket)
        assert code_of(link(describe(study), b"")) is SiteCode.STUDY
        approvals.record(study, 2)
        assert decode(RollCall, link(describe(study), b"")[0]).site == "ash"
        changed = study.override(["training.learning_rate=0.5"])
        assert code_of(link(describe(changed), b"")) is SiteCode.STUDY
        link(describe(study), b"")
        assert code_of(link(describe(study), b"")) is SiteCode.RELEASES
    events = [(line["event"], line["study"], line.get("code")) for line in log.lines()]
    assert events == [
        ("refused", study.hash, "S102"),
        ("released", study.hash, None),
        ("refused", changed.hash, "S102"),
        ("released", study.hash, None),
        ("refused", study.hash, "S303"),
    ]


def test_a_worker_uses_the_threads_of_its_site(site, monkeypatch):
    study = load_study(site.folder.parent / "study.toml")
    approvals, log = ApprovalFolder(site.folder), AuditLog(site.folder / "audit.jsonl")
    approvals.record(study, None)
    found = []

    def load(config, wanted, _split_seed):
        found.append(torch.get_num_threads())
        return load_data(config, wanted)

    monkeypatch.setattr("client.worker.load_data", load)
    with serving(Worker(make_service(replace(site, threads=3), approvals, log)), site.worker):
        assert decode(RollCall, WorkerLink(site.worker.socket)(describe(study), b"")[0]).site == "ash"
    assert found == [3]


def test_the_relay_finds_the_worker_by_the_node_s_socket(site):
    study = load_study(site.folder.parent / "study.toml")
    approvals, log = ApprovalFolder(site.folder), AuditLog(site.folder / "audit.jsonl")
    approvals.record(study, None)
    grid = InProcessGrid(client_app, [{"socket": str(site.worker.socket)}], {})
    fleet = GridFleet(grid, poll_s=0.0)
    (node,) = fleet.nodes(1, 1.0)
    with serving(Worker(make_service(site, approvals, log)), site.worker):
        (answer,) = fleet.ask({node: describe(study)}, b"", 10.0)
        assert decode(RollCall, answer.header).study_hash == study.hash
    (answer,) = fleet.ask({node: describe(study)}, b"", 10.0)
    assert decode(Refusal, answer.header).code is SiteCode.WORKER


def test_the_link_imports_neither_torch_nor_a_reader_of_data():
    program = (
        "import sys, client.relay.app, client.relay.worker_link; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'monai', 'pandas', 'numpy.ma', 'sites', 'pydicom'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Status


def test_the_status_counts_from_the_approval_and_names_studies(site):
    study = load_study(site.folder.parent / "study.toml")
    approvals, log = ApprovalFolder(site.folder), AuditLog(site.folder / "audit.jsonl")
    log.append(Entry(Event.RELEASED, study=study.hash, bytes=10))
    time.sleep(0.002)
    approvals.record(study, 1020)
    log.append(Entry(Event.RELEASED, study=study.hash, bytes=2_500_000))
    log.append(Entry(Event.REFUSED, study="f" * 64, code="S102"))
    log.append(Entry(Event.REFUSED, code="S101"))
    with serving(Worker(echo, SiteStatus("ash", approvals, log)), site.worker):
        before = WorkerLink(site.worker.socket).status()
        WorkerLink(site.worker.socket)("x", b"")
        found = WorkerLink(site.worker.socket).status()
        shown = RUNNER.invoke(app, ["status", str(site.folder / "site.toml")])
    assert not before.HasField("last_contact")
    assert (found.site, found.messages, found.HasField("busy_s")) == ("ash", 1, False)
    assert [(each.study_hash[:4], each.approved, each.released, each.refused) for each in found.studies] == [
        (study.hash[:4], True, 1, 0),
        ("", False, 0, 1),
        ("ffff", False, 0, 1),
    ]
    assert shown.exit_code == 0
    for words in (
        "site ash, running for 0:00:0",
        "messages since the start: 1",
        f"approved: tiny {study.hash[:12]}\n  released since the approval: 1 answers of 1,020 (2.5 MB)",
        "not approved: messages that name no study\n  released: 0 answers (0.0 MB); refused: 1",
        "not approved: a study ffffffffffff",
    ):
        assert words in shown.stdout


def test_the_status_names_times_and_durations():
    now = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
    status = StatusAnswer(site="ash", uptime_s=3661, busy_s=75.2, last_contact=now.timestamp() - 90)
    status.studies.append(StudyTally(study_hash="a" * 64, name="vital", approved=True))
    text = status_text(status, now)
    assert "running for 1:01:01" in text
    assert "last contact: 2026-05-01 11:58:30 UTC, 0:01:30 ago" in text
    assert "at work for 0:01:15" in text
    assert "no study is approved" in status_text(StatusAnswer(), now)


def test_the_status_of_no_worker_is_a_failure(site):
    result = RUNNER.invoke(app, ["status", str(site.folder / "site.toml")])
    assert (result.exit_code, result.stdout) == (1, "not running\n")


@pytest.mark.parametrize("command", ["start", "status"])
def test_help_has_an_example(command):
    result = RUNNER.invoke(app, [command, "--help"])
    assert f"Example: mmare-site {command} hospital/site.toml" in " ".join(result.stdout.split())


def test_a_worker_starts_even_if_its_data_are_unreadable(site, caplog):
    ApprovalFolder(site.folder).record(load_study(site.folder.parent / "study.toml"), None)
    site.manifest.unlink()
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: run_worker(site, ready.set, stop))
    thread.start()
    assert ready.wait(10)
    end = time.monotonic() + 10
    while "not ready for the study" not in caplog.text and time.monotonic() < end:
        time.sleep(0.01)
    stop.set()
    thread.join(10)
    assert "not ready for the study that was approved last" in caplog.text


def test_two_sites_in_one_folder_are_refused(site):
    """They would share log, approvals and kept state; their sockets do not tell."""
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: run_worker(site, ready.set, stop))
    thread.start()
    assert ready.wait(10)
    other = replace(site, worker=replace(site.worker, socket=site.worker.socket.with_name("other.sock")))
    with pytest.raises(RunError, match="a site worker runs with this folder already; expected a folder for"):
        run_worker(other, stop=threading.Event())
    stop.set()
    thread.join(10)


# Settings and generated code


def settings(tmp_path, text):
    path = tmp_path / "site.toml"
    path.write_text(
        f'[site]\nid = "ash"\n[data]\nmanifest = "p.csv"\n[modality.ct]\nfile = "ct.npz"\n{text}\n'
    )
    return load_site(path)


def test_policy_and_worker_are_read(tmp_path):
    found = settings(
        tmp_path,
        "[policy]\nmax_norm = 3\nmax_releases = 7\n"
        "[worker]\nsocket = '/run/m/w.sock'\ngroup = 'm'\ngrace_s = 2",
    )
    assert (found.max_norm, found.max_releases) == (3.0, 7)
    assert found.worker == WorkerConfig(Path("/run/m/w.sock"), "m", 2)
    bare = settings(tmp_path, "")
    assert (bare.max_norm, bare.max_releases) == (None, None)
    assert bare.worker == WorkerConfig(tmp_path / "run" / "worker.sock")


@pytest.mark.parametrize(
    "text",
    [
        "[policy]\nmax_norm = 0",
        "[policy]\nmax_norm = true",
        "[policy]\nmax_releases = 0",
        "[policy]\nmax_releases = 1.5",
        "[worker]\nsocket = 3",
        "[worker]\ngrace_s = -1",
        "[worker]\nport = 9",
    ],
)
def test_invalid_settings_are_refused(tmp_path, text):
    with pytest.raises(DataError):
        settings(tmp_path, text)


def test_the_generated_code_is_what_the_tools_make(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    outputs = (f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python"))
    arguments = ["-I", ".", *outputs, "client/worker_pb/site_worker.proto"]
    done = subprocess.run(
        [sys.executable, "-m", protoc.__name__, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in (tmp_path / "client" / "worker_pb").iterdir()}
    kept = {path.name: path.read_bytes() for path in (ROOT / "client" / "worker_pb").glob("site_worker_pb2*")}
    assert made == kept


def test_messages_name_header_and_payload_only():
    for message in (Question, Answer):
        assert [field.name for field in message.DESCRIPTOR.fields] == ["header", "payload"]
