"""Both ends of a spool in one process, on one disk; `tests.system.test_slurm` has them on two machines."""

import grp
import os
import stat
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from client.cli import app as site_app
from client.doctor.findings import Verdict
from client.doctor.running import check_worker
from client.relay.app import app as client_app
from client.relay.spool import AWAY_S, GONE_S, MOST_WAITING, Spool, SpoolLink, open_spool
from client.relay.status_file import worker_status
from client.status import worker_text
from client.worker import Worker, run_worker, serve_spool
from client.worker_pb.site_worker_pb2 import Answer, Question
from mmare.errors import InputError, RunError, SiteCode
from mmare.study.study import load_study
from mmare.wire.messages import Refusal, Request, RollCall, Task, decode, encode
from server.rounds.flower_fleet import GridFleet
from simulation.engine import InProcessGrid
from sites.config import WorkerConfig, load_site
from tests.federations import tiny_federation, tiny_study

STUDY = tiny_study()


def echo(header, payload):
    return header.upper(), payload[::-1]


def asking(deadline_s=30.0):
    study = tiny_study(federation={"min_sites": 1, "deadline_s": deadline_s})
    return encode(Request(Task.DESCRIBE, "run", study.to_dict()))


def code_of(answer):
    assert answer[1] == b""
    return decode(Refusal, answer[0]).code


@pytest.fixture
def config(tmp_path):
    return WorkerConfig(tmp_path / "worker.sock", grace_s=5, spool=tmp_path / "spool")


@contextmanager
def serving(config, endpoint=echo):
    stop, ended = threading.Event(), []
    thread = threading.Thread(
        target=lambda: ended.append(serve_spool(Worker(endpoint), config, stop=stop)), daemon=True
    )
    thread.start()
    seen(lambda: worker_status(config) is not None)
    try:
        yield ended
    finally:
        stop.set()
        thread.join(config.grace_s + 5)


def seen(found):
    end = time.monotonic() + 10
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


def silent(config, seconds):
    """The worker's last sign was so long ago."""
    then = time.time() - seconds
    os.utime(config.spool / "worker", (then, then))


def files(config):
    return {path.name for path in config.spool.iterdir()} - {"worker", "lock"}


def asked(config, header="h", deadline_s=30.0):
    """A message whose asker was killed; its name."""
    name = f"{time.time() + deadline_s:.3f}-{os.urandom(4).hex()}"
    Spool(config.spool).put(f"{name}.question", Question(header=header).SerializeToString())
    return name


def test_messages_and_answers_go_through_and_nothing_is_left(config):
    with serving(config):
        link = SpoolLink(config.spool)
        assert link("header", b"12345") == ("HEADER", b"54321")
        assert link("again", bytes(8_000_000)) == ("AGAIN", bytes(8_000_000))
        assert worker_status(config).messages == 0  # of its last sign, at the start
    assert files(config) == set()


def test_only_the_owner_can_read_it(config):
    with serving(config):
        asked(config, deadline_s=30)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in config.spool.iterdir()}
        assert modes == {0o600}
        assert stat.S_IMODE(config.spool.stat().st_mode) == 0o700


def test_a_group_can_be_given_access(config):
    config = WorkerConfig(config.socket, group=grp.getgrgid(os.getegid()).gr_name, spool=config.spool)
    with serving(config):
        assert stat.S_IMODE(config.spool.stat().st_mode) == 0o2770
        assert stat.S_IMODE((config.spool / "worker").stat().st_mode) == 0o660
        assert SpoolLink(config.spool)("x", b"")[0] == "X"


@pytest.mark.parametrize("mode", [0o755, 0o701, 0o750, 0o777])
def test_a_folder_that_others_can_enter_is_refused(config, mode):
    config.spool.mkdir()
    config.spool.chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o} .* others cannot enter, your own, such as 0700"):
        open_spool(config)


def test_a_path_that_cannot_be_a_folder_is_refused(config):
    config.spool.write_text("precious")
    with pytest.raises(InputError, match=r"\[worker\] spool is .*, which cannot be used \(File exists\)"):
        open_spool(config)


def test_a_second_worker_is_refused_and_the_first_continues(config):
    with serving(config):
        with pytest.raises(RunError, match="a site worker serves this spool already"):
            serve_spool(Worker(echo), config, stop=threading.Event())
        assert SpoolLink(config.spool)("x", b"")[0] == "X"


def test_the_next_worker_answers_what_the_last_one_left(config):
    """A job that ends in the middle of a message, and the one that follows it from the queue."""
    open_spool(config)
    answers = []
    with serving(config):
        pass
    asker = threading.Thread(target=lambda: answers.append(SpoolLink(config.spool)("kept", b"1")))
    asker.start()
    seen(lambda: files(config))
    time.sleep(0.2)
    assert not answers
    with serving(config):
        asker.join(10)
    assert answers == [("KEPT", b"1")]


@pytest.mark.parametrize("signs", [0, 1], ids=["never", "gone"])
def test_a_worker_that_is_away_for_long_is_not_waited_for(config, signs):
    open_spool(config)
    if signs:
        with serving(config):
            pass
        silent(config, AWAY_S + 5)
    assert code_of(SpoolLink(config.spool)(asking(), b"")) is SiteCode.WORKER
    assert files(config) == set()


def test_an_answer_after_the_deadline_is_none(config):
    go_on = threading.Event()

    def hanging(_header, _payload):
        go_on.wait(20)
        return "late", b""

    with serving(config, hanging):
        assert code_of(SpoolLink(config.spool)(asking(0.3), b"")) is SiteCode.LATE
        assert files(config) == set()
        go_on.set()
        assert SpoolLink(config.spool)(asking(), b"") == ("late", b"")
    assert files(config) == set()


def test_a_full_spool_takes_no_more(config):
    with serving(config):
        pass
    for _ in range(MOST_WAITING):
        asked(config)
    assert code_of(SpoolLink(config.spool)(asking(), b"")) is SiteCode.WORKER
    assert f"{MOST_WAITING} messages of at most {MOST_WAITING} wait" in text_after(config, GONE_S + 1)
    for path in config.spool.glob("*.question"):  # their askers give up
        path.rename(path.with_name(f"1.000-{path.name.partition('-')[2]}"))
    with serving(config):
        assert SpoolLink(config.spool)("x", b"")[0] == "X"
    assert files(config) == set()


def text_after(config, seconds):
    silent(config, seconds)
    assert worker_status(config) is None
    return worker_text(config, None, datetime.now(UTC))


def test_a_damaged_message_is_a_code_and_the_next_is_answered(config):
    with serving(config):
        stem = f"{time.time() + 30:.3f}-ab"
        Spool(config.spool).put(f"{stem}.question", b"\xff not a message")
        seen(lambda: f"{stem}.answer" in files(config))
        answer = Answer.FromString(Spool(config.spool).read(f"{stem}.answer"))
        assert decode(Refusal, answer.header).code is SiteCode.MESSAGE
        assert SpoolLink(config.spool)("x", b"")[0] == "X"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_leads_nowhere_and_stops_nothing(config, tmp_path, kind):
    secret = tmp_path / "patients.csv"
    secret.write_text("TCGA-07-1234")
    with serving(config):
        stem = f"{time.time() + 30:.3f}-ab"
        path = config.spool / f"{stem}.question"
        make = {
            "link": lambda: path.symlink_to(secret),
            "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir,
        }
        make[kind]()
        seen(lambda: f"{stem}.answer" in files(config))
        assert b"TCGA" not in Spool(config.spool).read(f"{stem}.answer")
        path.rename(config.spool / "1.000-ab.question")  # a folder cannot be removed like a file
        assert SpoolLink(config.spool)("x", b"")[0] == "X"


def test_what_nobody_waits_for_is_removed(config):
    open_spool(config)
    old, new = (config.spool / f".{word}" for word in ("abc", "def"))
    for path in (old, new, config.spool / "9999999999.000-ab.answer", config.spool / "1.000-cd.question"):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    assert Spool(config.spool).names() == []
    assert files(config) == {".def"}


def test_a_full_disk_is_over_once_there_is_room(config, monkeypatch, caplog):
    """The worker does its work once; its answer follows when it can be written."""
    full, calls = threading.Event(), []
    put = Spool.put

    def maybe(self, name, content):
        if full.is_set() and name.endswith(".answer"):
            raise OSError(28, "No space left on device")
        put(self, name, content)

    def counted(header, payload):
        calls.append(header)
        return echo(header, payload)

    monkeypatch.setattr(Spool, "put", maybe)
    full.set()
    with serving(config, counted):
        answers = []
        asker = threading.Thread(target=lambda: answers.append(SpoolLink(config.spool)("x", b"")))
        asker.start()
        seen(lambda: "No space left on device; trying again" in caplog.text)
        full.clear()
        asker.join(10)
    assert answers == [("X", b"")]
    assert calls == ["x"]


@pytest.mark.parametrize(("takes_s", "grace_s", "finished"), [(0.5, 5, True), (2.0, 0, False)])
def test_the_current_message_is_finished_or_left_to_the_next_worker(config, takes_s, grace_s, finished):
    started, answers = threading.Event(), []

    def slow(_header, _payload):
        started.set()
        time.sleep(takes_s)
        return "done", b""

    config = WorkerConfig(config.socket, grace_s=grace_s, spool=config.spool)
    asker = threading.Thread(target=lambda: answers.append(SpoolLink(config.spool)(asking(), b"")))
    with serving(config, slow) as ended:
        asker.start()
        assert started.wait(10)
    assert ended == [finished]
    asker.join(10)
    assert answers == [("done", b"")]


# What people see, and the service behind it


@pytest.fixture
def site(tmp_path):
    federation = tiny_federation(tmp_path / "federation", sites=("ash", "birch"), patients=16)
    with (federation / "ash" / "site.toml").open("a") as file:
        file.write('\n[worker]\nspool = "../spool-of-ash"\n')
    return load_site(federation / "ash" / "site.toml")


def status(site):
    result = CliRunner().invoke(site_app, ["status", str(site.folder / "site.toml")])
    return result.exit_code, result.stdout


def test_the_status_says_how_long_there_has_been_no_worker(site):
    for _ in range(2):
        code, said = status(site)
        assert (code, "yet; is its job in the queue" in said) == (1, True)
        open_spool(site.worker)
    assert check_worker(site)[0].verdict is Verdict.WARNING
    with serving(site.worker):
        code, said = status(site)
        assert (code, "messages since the start: 0" in said) == (0, True)
    assert "no worker for 0:00:0" in status(site)[1]  # it has just ended
    silent(site.worker, 1500)
    asked(site.worker)
    code, said = status(site)
    assert code == 1
    assert "no worker for 0:25:00; is its job in the queue (squeue)? 1 message of at most 8 wait" in said
    assert "refused (S401) after 0:10:00 without it" in said
    assert "no worker for 0:25:0" in check_worker(site)[0].found


def test_a_real_worker_answers_its_relay_by_the_spool(site):
    from client.privacy.approvals import ApprovalFolder

    study = load_study(site.folder.parent / "study.toml")
    ApprovalFolder(site.folder).record(study, None)
    grid = InProcessGrid(client_app, [{"spool": str(site.worker.spool)}], {})
    fleet = GridFleet(grid, poll_s=0.0)
    (node,) = fleet.nodes(1, 1.0)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=run_worker, args=(site, ready.set, stop), daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        seen(lambda: worker_status(site.worker) is not None)
        (answer,) = fleet.ask({node: encode(Request(Task.DESCRIBE, "run", study.to_dict()))}, b"", 10.0)
        assert decode(RollCall, answer.header).study_hash == study.hash
    finally:
        stop.set()
        thread.join(20)
    assert not site.worker.socket.exists()
