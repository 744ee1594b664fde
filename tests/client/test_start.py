import dataclasses
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from client import start
from client.cli import Part
from client.relay.exit_reasons import MOST_BYTES, exit_reason, log_tail
from client.relay.programs import (
    SUPEREXEC,
    SUPERNODE,
    RelayFolder,
    no_proxy_value,
    relay_environment,
    relay_programs,
)
from client.relay.status_file import ProgramState, RelayState, last_contact, read_state, write_state
from client.start import has_joined, keep_site, worker_program
from client.status import relay_text
from client.worker_pb.site_worker_pb2 import StatusAnswer
from mmare.errors import InputError, RunError
from mmare.host.locks import is_held
from mmare.host.supervised import ProcessSupervisor, Program
from mmare.wire.joining import SiteKit
from sites.config import load_site
from tests.kits import free_port, site_config

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
JOINED = 'federation = "mmist"\nhost = "join.example.org"\nport = 443\nsite = "ash"\n'


def joined(folder: Path, more: str = "", port: int | None = None):
    """A site whose kit is complete, with files that nothing here reads."""
    site = site_config(folder, "ash", f"[coordinator]\nruntime_port = {port or free_port()}\n{more}")
    kit = SiteKit(site.coordinator.kit)
    kit.folder.mkdir(mode=0o700)
    for path in (kit.key, kit.ca, kit.secret):
        path.write_text("x")
    kit.joined.write_text(JOINED)
    return site


def option(program, name: str) -> str:
    return program.command[program.command.index(name) + 1]


def test_the_programs_get_the_kit_s_settings(tmp_path):
    site = joined(tmp_path / "a hospital", port=(port := free_port()))
    kit = SiteKit(site.coordinator.kit)
    supernode, superexec = relay_programs(site)
    assert (supernode.name, superexec.name) == (SUPERNODE, SUPEREXEC)
    assert supernode.command[1:5] == ("-P", "-m", "client.relay.patched", "supernode")
    assert superexec.command[1:6] == ("-P", "-m", "client.relay.patched", "superexec", "--insecure")
    assert option(supernode, "--superlink") == "join.example.org:443"
    assert option(supernode, "--root-certificates") == str(kit.ca)
    assert option(supernode, "--auth-supernode-private-key") == str(kit.key)
    assert option(supernode, "--isolation") == "process"
    assert option(supernode, "--port") == str(port)
    assert option(superexec, "--runtime-api-address") == f"127.0.0.1:{port}"
    assert "--insecure" not in supernode.command  # towards the coordinator
    for program in (supernode, superexec):
        assert option(program, "--superexec-auth-secret-file") == str(kit.secret)
        assert program.log.parent == RelayFolder.of(site).folder
    told = parse_config_args([option(supernode, "--node-config")])  # as Flower reads it
    assert told == {"socket": str(site.worker.socket.absolute())}
    assert " " in told["socket"]


def test_a_spool_takes_the_place_of_the_socket(tmp_path):
    site = joined(tmp_path, '[worker]\nspool = "spool"\n')
    supernode, _ = relay_programs(site)
    assert parse_config_args([option(supernode, "--node-config")]) == {"spool": str(tmp_path / "spool")}
    site.worker.spool.mkdir(mode=0o755)
    with pytest.raises(InputError, match=r"spool is .*, of mode 0755 and owner"):
        keep_site(site, tmp_path / "site.toml", worker=False)


def test_the_worker_is_started_by_this_command(tmp_path):
    program = worker_program(joined(tmp_path), tmp_path / "site.toml")
    assert program.command[-2:] == ("--part", "worker")
    assert program.command[1:6] == ("-P", "-m", "client.cli", "start", str(tmp_path / "site.toml"))
    assert program.log == tmp_path / "worker.log"
    assert program.stop_s > load_site(tmp_path / "site.toml").worker.grace_s


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda kit: kit.joined.unlink(), "kit request", id="no bundle"),
        pytest.param(
            lambda kit: kit.joined.write_text(JOINED.replace("ash", "birch")),
            "of the site 'birch', expected 'ash'",
            id="another site's bundle",
        ),
        pytest.param(lambda kit: kit.key.unlink(), "node.key: not there", id="no key"),
        pytest.param(lambda kit: kit.ca.unlink(), "ca.crt: not there", id="no authority"),
        pytest.param(
            lambda kit: (kit.secret.unlink(), kit.secret.mkdir()),
            "superexec.secret: cannot be read (IsADirectoryError)",
            id="secret is a folder",
        ),
    ],
)
def test_an_incomplete_kit_is_an_error(spoil, said, tmp_path):
    site = joined(tmp_path)
    spoil(SiteKit(site.coordinator.kit))
    with pytest.raises(InputError) as error:
        relay_programs(site)
    assert said in str(error.value)


def test_a_port_in_use_is_an_error(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        site = joined(tmp_path, port=port)
        with pytest.raises(InputError, match=f"runtime_port is {port}, where another program listens"):
            relay_programs(site)


def test_a_socket_path_that_flower_cannot_express_is_an_error(tmp_path):
    site = joined(tmp_path / "St. James's")
    with pytest.raises(InputError, match="without quotation marks"):
        relay_programs(site)


def test_the_environment_allows_only_the_connection_to_the_coordinator(tmp_path):
    around = {"PATH": "/usr/bin", "HTTPS_PROXY": "http://proxy:3128", "HTTP_PROXY": "http://proxy:3128"}
    found = relay_environment(RelayFolder(tmp_path), around)
    assert found["PATH"].split(os.pathsep)[-1] == "/usr/bin"
    assert Path(found["PATH"].split(os.pathsep)[0], "flwr-clientapp").exists()
    assert found["NO_PROXY"] == found["no_proxy"] == "127.0.0.1,localhost"
    assert "HTTPS_PROXY" not in found  # it stays as it is
    assert found["FLWR_HOME"] == str(tmp_path / "flwr-home")
    assert {
        found[f"FLWR_{name}"] for name in ("DISABLE_UPDATE_CHECK", "DISABLE_RUNTIME_DEPENDENCY_INSTALLATION")
    } == {"1"}
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert int(found["FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"]) < 16 << 20  # the coordinator's limit


@pytest.mark.parametrize(
    ("around", "expected"),
    [
        pytest.param({}, "127.0.0.1,localhost", id="none"),
        pytest.param({"NO_PROXY": ""}, "127.0.0.1,localhost", id="empty"),
        pytest.param({"NO_PROXY": "a , b"}, "a,b,127.0.0.1,localhost", id="upper"),
        pytest.param({"no_proxy": "a"}, "a,127.0.0.1,localhost", id="lower"),
        pytest.param({"NO_PROXY": "a,b", "no_proxy": "b,c"}, "a,b,c,127.0.0.1,localhost", id="both"),
        pytest.param({"NO_PROXY": "localhost,127.0.0.1"}, "localhost,127.0.0.1", id="there already"),
    ],
)
def test_this_machine_is_reached_without_a_proxy(around, expected):
    assert no_proxy_value(around) == expected


REFUSED = "Exit Code: 305\nFailed to initialize\n[code: 2004] Failed to activate SuperNode.\n"


@pytest.mark.parametrize(
    ("name", "code", "said", "contact_s", "expected"),
    [
        pytest.param("supernode", 1, REFUSED, 8.0, "still holds our last connection", id="too soon"),
        pytest.param("supernode", 1, REFUSED, 500.0, "not admitted yet, or revoked", id="revoked"),
        pytest.param("supernode", 1, REFUSED, None, "not admitted yet, or revoked", id="never there"),
        pytest.param("supernode", -9, REFUSED, 8.0, "ended by signal 9", id="killed"),
        pytest.param(
            "supernode",
            1,
            "SSL/TLS handshake error detected.\n[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
            "unable to get local issuer certificate",
            None,
            "certificate that is not the coordinator's",
            id="another authority",
        ),
        pytest.param(
            "supernode",
            1,
            "CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1006)",
            None,
            "has expired",
            id="expired",
        ),
        pytest.param(
            "supernode",
            0,
            "SuperNode terminated gracefully.",
            1.0,
            "not admitted yet, or revoked",
            id="turned away",
        ),
        pytest.param("superexec", 0, "SuperExec terminated gracefully.", 1.0, "exit code 0", id="superexec"),
        pytest.param(
            "superexec",
            1,
            "The process of a message ended without an answer (-9).",
            1.0,
            "ended before its reply",
            id="message",
        ),
        pytest.param("supernode", 1, "Exit Code: 999\nsomething", None, "Flower's exit code 999", id="other"),
        pytest.param("worker", 2, "", None, "ended with exit code 2", id="worker"),
    ],
)
def test_the_reason_of_an_exit_is_explained(name, code, said, contact_s, expected):
    assert expected in exit_reason(name, code, said, contact_s)


def test_the_tail_of_a_log_begins_at_the_start_and_is_bounded(tmp_path):
    log = tmp_path / "x.log"
    assert log_tail(log) == ""
    log.write_text("old\nnew\n")
    assert log_tail(log, 4) == "new\n"
    assert log_tail(log, 400) == "old\nnew\n"  # a log that began anew
    log.write_text("a" * (2 * MOST_BYTES) + "end")
    assert log_tail(log).endswith("end")
    assert len(log_tail(log)) == MOST_BYTES


# Status


def state_of(folder: RelayFolder, *programs: ProgramState) -> None:
    folder.make()
    write_state(folder.state, RelayState(1, 0.0, "mmist", "join.example.org:443", programs))


def held(lock: Path):
    import fcntl

    number = os.open(lock, os.O_CREAT | os.O_RDWR)
    fcntl.flock(number, fcntl.LOCK_EX)
    return number


def test_a_site_that_has_joined_no_federation_has_no_relay(tmp_path):
    site = site_config(tmp_path)
    assert not has_joined(site)
    assert relay_text(site, NOW) == relay_text(site, NOW).__class__()


def test_the_status_covers_every_program(tmp_path):
    site = joined(tmp_path)
    folder = RelayFolder.of(site)
    since = (NOW - timedelta(minutes=5)).timestamp()
    state_of(
        folder,
        ProgramState("supernode", 3, since, 12, "the coordinator still holds our last connection"),
        ProgramState("superexec", 1, since, None, "ended by signal 9"),
    )
    text = relay_text(site, NOW)
    assert "relay: not running" in text.lines  # nobody holds the lock: the file was left behind
    assert not text.runs
    number = held(folder.lock)
    try:
        folder.contact.touch()
        os.utime(folder.contact, (since, since))
        text = relay_text(site, NOW)
        assert "join.example.org:443, federation mmist" in text.lines
        assert "11:55:00 UTC, 0:05:00 ago; the coordinator may be unreachable" in text.lines
        assert (
            "supernode: running for 0:05:00 (process 12), started 3 times; before that: the coor"
            in text.lines
        )
        assert "superexec: not running; ended by signal 9" in text.lines
        assert not text.runs
        state_of(folder, ProgramState("supernode", 1, since, 12))
        assert relay_text(site, NOW).runs
        assert last_contact(folder) == NOW - timedelta(minutes=5)
        os.utime(folder.contact, (NOW.timestamp(), NOW.timestamp()))
        quiet, asked = StatusAnswer(), StatusAnswer(last_contact=NOW.timestamp() - 60)
        assert "connected, no study under way" in relay_text(site, NOW, quiet).lines
        assert "connected, a study under way" in relay_text(site, NOW, asked).lines
        folder.state.write_text("{")
        assert read_state(folder) is None
    finally:
        os.close(number)
    assert not is_held(folder.lock)


# Supervision, with a worker that runs separately


def test_a_second_start_of_a_site_is_refused(tmp_path):
    site = joined(tmp_path)
    folder = RelayFolder.of(site)
    folder.make()
    number = held(folder.lock)
    try:
        with pytest.raises(RunError, match="running already"):
            keep_site(site, tmp_path / "site.toml", worker=False, stop=threading.Event())
    finally:
        os.close(number)


@pytest.mark.slow
def test_a_worker_that_runs_already_is_not_started_twice(tmp_path):
    site = joined(tmp_path)
    site.worker.socket.parent.mkdir()
    number = held(Path(f"{site.worker.socket}.lock"))
    try:
        with pytest.raises(RunError, match="a site worker is running there already"):
            keep_site(site, tmp_path / "site.toml", stop=threading.Event())
    finally:
        os.close(number)
    assert not is_held(RelayFolder.of(site).lock)


@pytest.mark.slow
def test_the_relay_waits_for_the_worker_and_is_restarted(tmp_path):
    """Without a coordinator: the key is none, so Flower's SuperNode ends at once, with its own code."""
    with tempfile.TemporaryDirectory(prefix="mmare-") as short:
        site = joined(tmp_path)
        site = dataclasses.replace(site, worker=dataclasses.replace(site.worker, socket=Path(short) / "w"))
        folder, stop = RelayFolder.of(site), threading.Event()
        finished = []

        def keep() -> None:
            finished.append(keep_site(site, tmp_path / "site.toml", worker=False, stop=stop))

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            end = time.monotonic() + 60
            while (state := read_state(folder)) is None:  # until Flower is checked
                assert time.monotonic() < end
                time.sleep(0.1)
            time.sleep(0.5)
            assert {program.starts for program in state.programs} == {0}
            with socket.socket(socket.AF_UNIX) as worker:
                worker.bind(str(site.worker.socket))
                worker.listen()
                end = time.monotonic() + 60
                while not any(
                    each.name == SUPERNODE and each.starts > 1 for each in read_state(folder).programs
                ):
                    assert time.monotonic() < end, read_state(folder)
                    time.sleep(0.1)
            by_name = {each.name: each for each in read_state(folder).programs}
            assert "the site's key cannot be read" in str(by_name[SUPERNODE].ended)
            os.kill(by_name[SUPEREXEC].pid, signal.SIGKILL)
            while {each.name: each for each in read_state(folder).programs}[SUPEREXEC].starts < 2:
                assert time.monotonic() < end, read_state(folder)
                time.sleep(0.1)
        finally:
            stop.set()
            thread.join(60)
        assert finished == [True]
        assert not folder.state.exists()
        assert not is_held(folder.lock)


@pytest.fixture
def keeper(tmp_path):
    """Of naps instead of Flower's programs, after their start; waits for what a test looks for."""
    with tempfile.TemporaryDirectory(prefix="mmare-") as short, socket.socket(socket.AF_UNIX) as worker:
        site = joined(tmp_path)
        site = dataclasses.replace(site, worker=dataclasses.replace(site.worker, socket=Path(short) / "w"))
        worker.bind(str(site.worker.socket))
        worker.listen()
        RelayFolder.of(site).make()
        nap = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
        naps = [Program(name, nap, tmp_path / f"{name}.log", stop_s=1.0) for name in (SUPERNODE, SUPEREXEC)]
        with ProcessSupervisor() as processes:
            found = start._Keeper(site, site.folder / "site.toml", processes, [], naps)

            def until(wanted):
                end = time.monotonic() + 20
                while not wanted():
                    assert time.monotonic() < end
                    found.poll()
                    time.sleep(0.02)

            until(lambda: set(processes.running()) == {SUPERNODE, SUPEREXEC})
            yield RelayFolder.of(site), processes, until
            found._line.close()


def test_a_node_that_reaches_nobody_for_long_is_restarted(keeper, monkeypatch):
    folder, processes, until = keeper
    before = processes.running()
    folder.contact.touch()
    monkeypatch.setattr(start, "SILENT_S", 0.3)
    until(lambda: processes.pid(SUPERNODE) not in (None, before[SUPERNODE]))
    assert processes.pid(SUPEREXEC) == before[SUPEREXEC]


def test_the_status_is_true_again_as_soon_as_it_can_be_written(keeper, monkeypatch, caplog):
    folder, processes, until = keeper
    real, tries = start.write_state, []

    def full(path, state):
        tries.append(state)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        real(path, state)

    monkeypatch.setattr(start, "write_state", full)
    monkeypatch.setattr(start, "REWRITE_S", 0.01)
    folder.state.unlink()
    os.kill(processes.pid(SUPERNODE), signal.SIGKILL)
    until(folder.state.exists)
    assert [record for record in caplog.messages if "No space left on device" in record][1:] == []


def test_the_parts_are_those_of_the_command():
    assert list(Part) == ["all", "worker", "relay"]
