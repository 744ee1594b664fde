"""What ``mmare-server start`` checks, prepares and leaves, with real processes that are not Flower's.

The whole of it, with Flower, nginx and three hospitals, is in ``tests/system/test_coordinator.py``.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path

import pytest
import tomli_w
from rich.console import Console

from mmare.errors import Ending, InputError, RunError
from mmare.host.supervised import ProcessSupervisor, Program
from server.deployment import programs as deployment
from server.deployment import proxy, services, start
from server.deployment import run_supervisor as supervision
from server.deployment.flower_runs import FlowerRun, app_files, write_app
from server.deployment.programs import (
    RUN_VARIABLE,
    check_ports,
    end_leftovers,
    programs,
    recorded,
    server_apps,
    started_at,
    write_record,
)
from server.deployment.retry_policy import BAD_INPUT, Limits
from server.deployment.run_records import runs_under_way
from server.deployment.run_supervisor import AbortedError, Supervision
from server.deployment.services import Services
from server.deployment.start import StartSettings, start_run
from server.deployment.start_view import StartView
from server.deployment.superexec import start_without_token
from server.membership.kit import init_kit, renew
from server.membership.records import Admitted, save
from server.run.request import RunRequest
from tests.federations import tiny_study
from tests.server.deployment.test_proxy import admit as admit_with_key
from tests.strange_servers import free_port
from tests.system.deployment import needs_nginx

NAP = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
WAIT_S = 20


@pytest.fixture
def kit(tmp_path):
    return init_kit(tmp_path / "kit", "localhost", free_port(), superlink_port=free_port())


def admit(kit, *names):
    for name in names:
        save(kit, Admitted(name, f"ecdsa {name}", f"SHA256:{name}", "2026-01-01T00:00:00+00:00", "0.1.0"))


def until(found, what):
    end = time.monotonic() + WAIT_S
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.02)


# What is refused before anything runs


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(tiny_study().to_dict()))
    return path


def refused(kit, study, **settings):
    with pytest.raises(InputError) as found:
        start_run(StartSettings(kit.folder, study, **settings), Console())
    return str(found.value)


def test_too_few_sites_are_said_at_once(kit, study):
    admit(kit, "ash")
    assert "1 sites are admitted, but federation.min_sites is 2; mmare-server kit admit" in refused(
        kit, study
    )


def test_a_mode_that_hospitals_cannot_have_is_refused(kit, study):
    assert "--mode must be one of federated, local, found 'centralised'" in refused(
        kit, study, mode="centralised"
    )


def test_a_setting_that_would_be_read_as_two_is_refused(kit, study):
    assert "--set 'study.name=a;b': a value must not hold a semicolon" in refused(
        kit, study, assignments=("study.name=a;b",)
    )


def test_a_study_that_is_not_there_is_named(kit, tmp_path):
    assert "absent.toml" in refused(kit, tmp_path / "absent.toml")


@pytest.mark.slow
def test_what_the_run_itself_would_refuse_is_refused_before(kit, study, tmp_path):
    admit(kit, "ash", "birch")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    assert "holds 'letter.txt' and no run" in refused(kit, study, out=tmp_path / "out")
    assert not (kit.app / "pyproject.toml").exists()


def test_a_kit_serves_one_start_at_a_time(kit, study):
    admit(kit, "ash", "birch")
    with start._alone(kit):
        assert f"runs with this kit already (process {os.getpid()})" in refused(kit, study)


def test_a_port_that_somebody_has_is_named(kit):
    check_ports(kit)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", kit.superlink_port))
        taken.listen()
        with pytest.raises(
            InputError, match=rf"port {kit.superlink_port} is not available.*superlink_port in"
        ):
            check_ports(kit)
    with socket.socket() as taken:
        taken.bind(("", kit.port))
        taken.listen()
        with pytest.raises(InputError, match=rf"port {kit.port} is not available.*set another port in"):
            check_ports(kit)
        check_ports(kit, proxy=False)


# The app that travels


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # of Flower's
def test_the_bundle_holds_no_logic(kit):
    from flwr.cli.build import build_fab_from_disk

    write_app(kit)
    bundle = build_fab_from_disk(kit.app)
    assert len(bundle) < 3000
    with zipfile.ZipFile(BytesIO(bundle)) as found:
        names = set(found.namelist())
        assert names == {"pyproject.toml", "coordinator_app.py", "relay_app.py", ".info/CONTENT"}
        relay = found.read("relay_app.py").decode()
    assert relay == "from client.relay.app import app as installed\n\napp = installed\n"
    write_app(kit)
    assert build_fab_from_disk(kit.app) == bundle


def test_it_takes_the_same_settings_as_the_project_s_own_app():
    own = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    travels = tomllib.loads(app_files()["pyproject.toml"])
    assert travels["tool"]["flwr"]["app"]["config"] == own["tool"]["flwr"]["app"]["config"]


def test_superlink_is_closed_to_the_outside_and_takes_known_keys_only(kit, monkeypatch):
    monkeypatch.setattr(proxy, "nginx_program", lambda: "/usr/sbin/nginx")  # which may not be installed
    superlink, superexec, door = programs(kit)
    words = " ".join(superlink.command)
    for part in (
        "--host 127.0.0.1",
        "--enable-supernode-auth",
        "--isolation process",
        f"--database {kit.database}",
    ):
        assert part in words
    assert "--superexec-auth-secret-file" in words
    assert "--superexec-auth-secret-file" in " ".join(superexec.command)
    assert "--insecure" not in words + " ".join(superexec.command)
    assert door.command[0] == "/usr/sbin/nginx"
    assert [program.name for program in programs(kit, proxy=False)] == ["superlink", "superexec"]
    assert superlink.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert superlink.environment["FLWR_HOME"] == str(kit.flwr_home)


def test_a_token_is_not_in_the_list_of_processes():
    look = "import pathlib, sys; print(sys.argv, pathlib.Path(sys.argv[2]).read_text())"
    command = [sys.executable, "-S", "-c", look, "--token", "s3cret", "--root-certificates", "ca"]
    found, _ = start_without_token(command, stdout=subprocess.PIPE).communicate(timeout=WAIT_S)
    words = found.decode().split()
    assert words[-1] == "s3cret"
    assert "".join(words[:-1]).count("s3cret") == 0
    assert "'--token-file'" in found.decode()


@needs_nginx
def test_an_own_nginx_stands_in_front(kit):
    superlink, superexec, door = programs(kit)
    assert door.command[0].endswith("nginx")
    assert [superlink.name, superexec.name] == ["superlink", "superexec"]


# Processes


def test_what_a_killed_predecessor_left_is_ended_with_all_it_started(kit):
    script = f"import subprocess; subprocess.Popen({NAP!r}).wait()"
    one, two = (
        subprocess.Popen([sys.executable, "-S", "-c", script], start_new_session=True) for _ in range(2)
    )
    stranger = subprocess.Popen(NAP, start_new_session=True)

    def group(pid):
        return deployment._group(pid, started_at(pid) or "")

    until(lambda: len(group(one.pid)) == 2 and len(group(two.pid)) == 2, "children")
    members = [*group(one.pid), *group(two.pid)]
    write_record(kit, {"superlink": one.pid, "proxy": two.pid, "superexec": stranger.pid})
    record = json.loads((kit.state / "processes.json").read_text())
    record["superexec"]["started"] = "1"  # the number went to somebody else since
    (kit.state / "processes.json").write_text(json.dumps(record))
    two.kill()  # its child stays behind
    two.wait()
    assert recorded(kit) == {"superlink": one.pid}
    assert end_leftovers(kit) == ["proxy", "superlink"]
    one.wait(WAIT_S)
    assert [pid for pid in members if started_at(pid) is not None] == []
    assert stranger.poll() is None
    assert end_leftovers(kit) == []
    stranger.kill()
    stranger.wait()


def test_a_start_is_the_kernel_s_own_number():
    """Ticks since boot, field 22 of proc(5), as older records hold it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert started_at(os.getpid()) == fields[19]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"superlink": 3}',
        '{"superlink": {"pid": "x", "started": "1"}}',
        '{"proxy": {"pid": -5, "started": "1"}}',
        "{",
    ],
)
def test_a_damaged_record_is_no_record(kit, text):
    (kit.state / "processes.json").write_text(text)
    assert recorded(kit) == {}
    assert end_leftovers(kit) == []


def test_the_server_app_is_found_among_the_children_and_not_once_it_is_dead(tmp_path):
    script = tmp_path / "flwr-serverapp"
    script.write_text("import time; time.sleep(600)")
    assert server_apps(os.getpid()) == {}
    assert server_apps(None) == {}
    command = [sys.executable, str(script), "--token", "x"]
    child = subprocess.Popen(command, env={**os.environ, RUN_VARIABLE: "7"})
    until(lambda: server_apps(os.getpid()) == {child.pid: 7}, "found")
    child.kill()
    until(lambda: started_at(child.pid) is None, "a zombie is none")
    assert server_apps(os.getpid()) == {}
    child.wait()


# Programs that are kept answering


class Kept:
    """Services of naps instead of Flower, with answers that a test decides on."""

    def __init__(self, kit, monkeypatch, command=NAP):
        self.answers = {"superlink": True, "proxy": True}
        self.said = []
        monkeypatch.setattr(
            services,
            "programs",
            lambda _kit, *, proxy: tuple(
                Program(name, command, kit.logs / f"{name}.log", first_pause_s=0.01, stop_s=2.0)
                for name in ("superlink", "superexec", *(("proxy",) * proxy))
            ),
        )
        monkeypatch.setattr(services, "superlink_answers", lambda _: self.answers["superlink"])
        monkeypatch.setattr(services, "proxy_answers", lambda _: self.answers["proxy"])
        monkeypatch.setattr(services, "HEALTH_S", 0.02)
        self.processes = ProcessSupervisor()
        self.services = Services(kit, self.processes, self.said.append)

    def until(self, found, what):
        def look():
            self.services.poll()
            return found()

        until(look, f"{what}: {self.said}")


@pytest.fixture
def kept(kit, monkeypatch):
    found = Kept(kit, monkeypatch)
    with found.processes:
        yield found


def test_programs_run_once_they_answer_and_are_on_record(kit, kept):
    assert kept.services.begin(threading.Event())
    assert set(kept.processes.running()) == {"superlink", "superexec", "proxy"}
    assert recorded(kit) == kept.processes.running()
    assert kept.said == []


def test_sites_are_registered_before_the_door_opens(kept):
    """A site that was let in before its key is known would be told that it is not admitted."""
    seen = []
    assert kept.services.begin(threading.Event(), lambda: seen.append(set(kept.processes.running())))
    assert seen == [{"superlink", "superexec"}]


def test_a_site_that_is_admitted_during_the_start_is_let_in(kit, kept):
    """The proxy does not run yet, and takes the list when it does."""
    admit_with_key(kit, "ash")
    kept.services.poll()
    assert kept.services.begin(threading.Event())
    assert (kit.nginx / "admitted.map").read_text().endswith(" 0;\n")


def test_lines_have_the_time_in_utc():
    console = Console(file=StringIO())
    StartView(console).say("up")
    before = time.strftime("%H", time.gmtime())
    assert console.file.getvalue()[:2] in (before, time.strftime("%H", time.gmtime()))
    assert console.file.getvalue()[8:] == "Z up\n"


def test_a_program_that_ends_is_reported_and_restarted(kit, kept):
    kept.services.begin(threading.Event())
    pid = kept.processes.pid("superexec")
    os.kill(pid, signal.SIGKILL)
    kept.until(lambda: kept.processes.pid("superexec") not in (None, pid), "back")
    assert kept.said[0].startswith("superexec ended by signal 9 and restarts in")
    assert kept.said[1] == "superexec restarted"
    assert recorded(kit)["superexec"] == kept.processes.pid("superexec")
    assert kept.services.restarted_at == 0.0
    os.kill(kept.processes.pid("superlink"), signal.SIGKILL)
    kept.until(lambda: kept.services.restarted_at > 0.0, "a message may be lost")


@pytest.mark.parametrize("name", ["superlink", "proxy"])
def test_a_program_that_does_not_answer_is_restarted(kept, monkeypatch, name):
    monkeypatch.setattr(services, "UNANSWERED_S", 0.2)
    kept.services.begin(threading.Event())
    before = kept.processes.running()
    kept.answers[name] = False
    kept.until(lambda: kept.processes.pid(name) not in (None, before[name]), "anew")
    kept.answers[name] = True
    assert f"{name} has not answered for 0 s: restarting" in kept.said
    others = {other: pid for other, pid in before.items() if other != name}
    assert others.items() <= kept.processes.running().items()


@pytest.mark.slow
def test_a_renewed_certificate_restarts_the_programs_that_use_it(kit, kept):
    kept.services.begin(threading.Event())
    before = kept.processes.running()
    renew(kit, new_key=True)
    kept.until(
        lambda: (
            {"superlink", "proxy"}
            <= {name for name, pid in kept.processes.running().items() if pid != before[name]}
        ),
        "anew",
    )
    assert kept.processes.pid("superexec") == before["superexec"]
    assert kept.said[0] == "superlink needs the kit's new certificate: restarting"
    seen = kept.processes.running()
    for _ in range(20):
        kept.services.poll()
        time.sleep(0.01)
    assert kept.processes.running() == seen  # once


def test_a_program_that_does_not_start_is_reported_with_its_last_error(kit, monkeypatch):
    command = (sys.executable, "-S", "-c", "print('no room on this machine'); raise SystemExit(3)")
    kept = Kept(kit, monkeypatch, command)
    kept.answers["superlink"] = False
    with kept.processes, pytest.raises(RunError) as found:
        kept.services.begin(threading.Event())
    assert str(found.value).startswith("superlink does not start: ")
    assert str(found.value).endswith("superlink.log says 'no room on this machine'")


def test_a_stop_during_the_start_is_obeyed(kept):
    kept.answers["superlink"] = False
    stopped = threading.Event()
    threading.Timer(0.3, stopped.set).start()
    assert not kept.services.begin(stopped)


@pytest.mark.slow
def test_a_server_app_that_lingers_is_ended(kept, monkeypatch, tmp_path):
    kept.services.begin(threading.Event())
    script = tmp_path / "flwr-serverapp"
    script.write_text(
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path)!r} + '/' + os.environ[{RUN_VARIABLE!r}], 'w').close(); time.sleep(600)"
    )
    monkeypatch.setattr(services, "APP_S", 0.5)
    monkeypatch.setattr(services, "server_apps", lambda _: server_apps(os.getpid()))
    apps = {
        run: subprocess.Popen([sys.executable, str(script)], env={**os.environ, RUN_VARIABLE: str(run)})
        for run in (1, 2, 3)
    }
    for run, child in apps.items():
        until(lambda: (tmp_path / str(run)).exists() and kept.services.app(run) == child.pid, "seen")  # noqa: B023 - called at once
    kept.services.end_app(1)
    assert apps[1].wait(WAIT_S) == -signal.SIGKILL
    assert kept.services.app(1) is None
    kept.services.end_app(1)
    kept.services.runs.add(2)
    kept.services.end_strays()  # of an attempt that nobody supervises
    assert apps[3].wait(WAIT_S) == -signal.SIGKILL
    assert kept.services.app(2) == apps[2].pid
    kept.services.end_app(2)
    assert apps[2].wait(WAIT_S) == -signal.SIGKILL


# A run to its end: real journal and decisions; Flower and the processes say what a test wants


class Coordinator:
    """Stands for Flower and for the programs: each attempt is a function of it."""

    def __init__(self, kit, out, monkeypatch, *attempts, tries=3):
        self.kit, self.out, self.attempts = kit, out, list(attempts)
        self.requests, self.stopped_runs, self.swept, self.ended = [], [], [], False
        self.alive, self.restarted_at, self.runs = False, 0.0, set()
        self.state = FlowerRun("running")
        self.stopped = threading.Event()
        self.console = Console(record=True, width=200, file=StringIO())
        monkeypatch.setattr(supervision, "POLL_S", 0.01)
        monkeypatch.setattr(supervision, "submit_run", self.submit)
        monkeypatch.setattr(supervision, "flower_status", lambda _kit, _run: self.state)
        monkeypatch.setattr(supervision, "stop_run", self.stop)
        monkeypatch.setattr(supervision, "stop_runs", self.sweep)
        monkeypatch.setattr(supervision, "run_log", lambda _kit, run: f"log of {run}")
        study = kit.folder / "study.toml"
        study.write_text(tomli_w.dumps(tiny_study().to_dict()))
        request = RunRequest(study, out, overwrite=True)
        view = StartView(self.console).run()
        self.supervision = Supervision(kit, request, Limits(1.0, tries=tries), self, view, self.stopped)

    # As `Services`

    def poll(self):
        if self.alive and self.attempts:
            self.attempts.pop(0)(self)

    def answering(self):
        return True

    def app(self, run):
        assert self.runs == {run}
        return 1 if self.alive else None

    def end_app(self, run):
        assert run == len(self.requests)
        self.alive = False

    def end_strays(self):
        assert self.runs == set()

    def stop_runs(self):
        self.ended, self.alive = True, False

    # As Flower

    def sweep(self, _kit, keep):
        assert keep == set()
        self.swept.append(len(self.requests))

    def submit(self, _kit, request):
        self.requests.append(request)
        self.alive, self.state = True, FlowerRun("running")
        return len(self.requests)

    def stop(self, _kit, run):
        self.stopped_runs.append(run)
        return not self.state.status.startswith("finished")

    # What an attempt does

    def write(self, *events):
        self.out.mkdir(exist_ok=True)
        with (self.out / "rounds.jsonl").open("a") as file:
            for event, more in events:
                entry = {"event": event, "time": "2026-01-01T00:00:00+00:00", "run": "r", **more}
                file.write(json.dumps(entry) + "\n")

    def said(self):
        return self.console.export_text()


STARTED = ("run_started", {})
FINISHED = ("run_finished", {"rounds_run": 3, "best_round": 2})


def checkpoint(number):
    return ("checkpoint", {"round": number})


def alone(_coordinator):
    time.sleep(0.05)  # the ServerApp has been seen


def finishes(coordinator):
    coordinator.write(STARTED, checkpoint(3), FINISHED)
    (coordinator.out / "result.json").write_text("{}")
    coordinator.alive, coordinator.state = False, FlowerRun("finished:completed")


def killed(*events):
    def attempt(coordinator):
        coordinator.write(*events)
        coordinator.alive = False

    return attempt


def fails(details, *events):
    def attempt(coordinator):
        coordinator.write(*events)
        coordinator.alive, coordinator.state = False, FlowerRun("finished:failed", details)

    return attempt


@pytest.fixture
def coordinator(kit, tmp_path, monkeypatch):
    return lambda *attempts, **more: Coordinator(kit, tmp_path / "run", monkeypatch, *attempts, **more)


def test_a_run_that_finishes_is_submitted_once(kit, coordinator):
    place = coordinator(alone, finishes)
    place.supervision.run()
    assert [request.overwrite for request in place.requests] == [True]
    assert place.stopped_runs == []
    assert runs_under_way(kit) == {}
    assert place.runs == set()
    assert "finished after 3 rounds" in place.said()


def test_a_killed_one_is_taken_up_at_once_and_never_overwritten_again(coordinator):
    place = coordinator(
        alone, killed(STARTED, checkpoint(1)), alone, killed(STARTED, checkpoint(2)), alone, finishes
    )
    began = time.monotonic()
    place.supervision.run()
    assert time.monotonic() - began < 1.0  # attempts with a new checkpoint do not wait
    assert [request.overwrite for request in place.requests] == [True, False, False]
    assert place.stopped_runs == [1, 2]
    assert place.swept == [0]  # at the beginning, of what an earlier start may have left
    assert "attempt 1 ended: its ServerApp is gone" in place.said()


def test_one_that_never_gets_on_is_given_up_with_the_last_reason(kit, coordinator, monkeypatch):
    monkeypatch.setattr(supervision.RetryCounter, "pause_s", 0.0)
    failing = fails(
        "ServerApp failed with exception: 1 sites answered", STARTED, ("run_failed", {"reason": "1 sites"})
    )
    place = coordinator(*[step for _ in range(3) for step in (alone, failing)])
    with pytest.raises(RunError) as found:
        place.supervision.run()
    assert str(found.value) == (
        f"{place.out}: gave up after 3 attempts without a new checkpoint, the last one: 1 sites; "
        "the same command resumes the run"
    )
    assert len(place.requests) == 3
    assert not place.alive
    assert (kit.logs / "serverapp.log").read_text().count("log of") == 3


QUORUM = ("run_failed", {"reason": "1 sites took part", "code": "quorum"})


def refuses(site, code):
    return ("roll_call", {"site": site, "accepted": False, "reason": f"refused: {code}", "code": code})


def test_what_hospitals_have_not_approved_is_not_tried_again(kit, coordinator):
    admit(kit, "ash", "birch", "cedar")
    lacks = fails("x", STARTED, refuses("ash", "S102"), refuses("birch", "S102"), QUORUM)
    place = coordinator(alone, lacks, tries=5)
    with pytest.raises(RunError) as found:
        place.supervision.run()
    assert found.value.ending is Ending.QUORUM
    assert "1 sites took part: ash: refused: S102; birch: refused: S102; cedar: not connected;" in str(
        found.value
    )
    assert len(place.requests) == 1


def test_sites_that_are_away_are_waited_for_unless_others_wait(kit, coordinator, monkeypatch):
    monkeypatch.setattr(supervision.RetryCounter, "pause_s", 0.0)
    admit(kit, "ash", "birch", "cedar")
    lacks = fails("x", STARTED, refuses("ash", "S401"), QUORUM)
    place = coordinator(alone, lacks, alone, finishes)
    place.supervision.run()
    assert len(place.requests) == 2
    place = coordinator(alone, lacks, alone, finishes)
    place.supervision._limits = replace(place.supervision._limits, yields=True)
    with pytest.raises(RunError, match="ash: refused: S401; birch: not connected"):
        place.supervision.run()
    assert len(place.requests) == 1


def test_aborted_it_ends_and_the_programs_stay(coordinator):
    place = coordinator(alone, lambda place: place.write(STARTED, checkpoint(1)), alone, alone)
    place.supervision._aborted = (place.out / "rounds.jsonl").exists
    with pytest.raises(AbortedError):
        place.supervision.run()
    assert place.stopped_runs == [1]
    assert (place.alive, place.ended) == (False, False)
    assert json.loads((place.out / "rounds.jsonl").read_text().splitlines()[-1])["reason"] == "aborted"


def test_given_up_on_a_full_disk_the_disk_is_named(coordinator, monkeypatch):
    monkeypatch.setattr(supervision, "LITTLE_BYTES", 1 << 60)
    place = coordinator(alone, killed(STARTED), tries=1)
    with pytest.raises(RunError, match=r"the disk of .*run has \d+ MiB left: free some space first"):
        place.supervision.run()
    last = json.loads((place.out / "rounds.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "run_failed"
    assert "its ServerApp is gone" in last["reason"]


def test_what_cannot_be_run_is_bad_input_and_not_tried_again(coordinator):
    place = coordinator(alone, fails(f"ServerApp failed with exception: {BAD_INPUT}width is 0"), finishes)
    with pytest.raises(InputError, match=r"^width is 0$"):
        place.supervision.run()
    assert len(place.requests) == 1


def test_one_that_finished_without_a_word_counts_as_finished(coordinator):
    """Killed between its result and the last line of its journal, the next attempt finds it finished."""

    def silent(place):
        (place.out / "result.json").write_text("{}")
        place.alive, place.state = False, FlowerRun("finished:completed")

    place = coordinator(alone, killed(STARTED, checkpoint(3)), alone, silent)
    place.supervision.run()
    assert len(place.requests) == 2


@pytest.mark.slow
def test_one_that_hangs_is_ended_and_taken_up(coordinator):
    def hangs(place):
        if len(place.requests) == 1:
            place.attempts.insert(0, hangs)

    place = coordinator(lambda place: place.write(STARTED, checkpoint(1)), hangs, finishes)
    place.supervision.run()
    assert "nothing was written to the journal for 1 s" in place.said()
    assert len(place.requests) == 2


def test_one_that_lost_a_message_to_a_killed_superlink_does_not_wait_for_the_deadline(coordinator):
    round_ = ("aggregated", {"round": 1, "seconds": {"wait": 0.01}})

    def superlink_dies(place):
        place.restarted_at = time.monotonic()

    def waits(place):
        if len(place.requests) == 1:
            place.attempts.insert(0, waits)

    place = coordinator(
        lambda place: place.write(STARTED, round_, checkpoint(1), ("round_started", {"round": 2})),
        *(alone, superlink_dies, waits, finishes),
    )
    place.supervision._limits = replace(place.supervision._limits, silent_s=60.0, restart_s=0.3)
    place.supervision.run()
    assert "a message was lost when SuperLink or nginx restarted" in place.said()
    assert len(place.requests) == 2


def test_what_superlink_does_not_take_is_tried_again(coordinator, monkeypatch):
    monkeypatch.setattr(supervision.RetryCounter, "pause_s", 0.0)
    place = coordinator(alone, finishes)
    submit, calls = place.submit, []

    def first_refused(kit, request):
        calls.append(request)
        if len(calls) == 1:
            raise RunError("flwr run: no answer after 60 s")
        return submit(kit, request)

    monkeypatch.setattr(supervision, "submit_run", first_refused)
    place.supervision.run()
    assert "attempt 1 ended: flwr run: no answer after 60 s" in place.said()
    assert place.swept == [0, 0]  # it may have taken it after all


def test_told_to_stop_it_lets_go_in_order_and_the_journal_says_so(kit, coordinator):
    place = coordinator(
        alone, lambda place: place.write(STARTED, checkpoint(1)), lambda place: place.stopped.set()
    )
    with pytest.raises(RunError, match="stopped; the same command resumes the run"):
        place.supervision.run()
    assert place.ended
    assert place.stopped_runs == [1]
    last = json.loads((place.out / "rounds.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["reason"], last["run"]) == ("run_failed", "interrupted", "r")
    assert runs_under_way(kit) == {place.out: 1}
