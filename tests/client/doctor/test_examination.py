"""The doctor: a whole site against a coordinator on loopback, then row by row what may be wrong with it."""

import fcntl
import grp
import io
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client.cli import app, main
from client.doctor import examination, machine
from client.doctor.examination import examine
from client.doctor.findings import Verdict, findings_table
from client.doctor.machine import check_device, check_disk, check_memory, check_versions
from client.doctor.running import check_relay, check_worker
from client.doctor.sockets import check_ports, listening
from client.doctor.study import check_encoders, check_study
from client.encoders.weights import PINS
from client.membership.kit import install_bundle, make_request
from client.privacy.approvals import ApprovalFolder
from client.privacy.records.audit_log import AuditLog
from client.relay.programs import RelayFolder
from client.relay.status_file import ProgramState, RelayState, write_state
from client.worker import SiteStatus, Worker
from mmare.errors import InputError, RunError
from mmare.study.study import load_study
from mmare.wire.joining import SiteKit
from server.membership.certificates import Pair
from server.membership.kit import init_kit
from server.membership.records import admit
from sites.config import CoordinatorConfig, MetricsConfig, WorkerConfig, load_site
from tests.client.test_worker import serving
from tests.federations import tiny_federation, tiny_study
from tests.strange_servers import free_port, https_server

RUNNER = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
SITE = "ash"


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A federation folder whose first site has a bundle, and the coordinator's kit."""
    folder = tmp_path_factory.mktemp("joined")
    federation = tiny_federation(folder / "federation")
    kit = init_kit(folder / "coordinator", "localhost")
    site = load_site(federation / SITE / "site.toml")
    install_bundle(admit(kit, make_request(site), federation / "study.toml"), site)
    return federation, kit


@pytest.fixture
def site(joined):
    """The site, with what a test may change put back, and a socket whose path is short enough."""
    folder = joined[0] / SITE
    found = load_site(folder / "site.toml")
    kit = SiteKit(found.coordinator.kit)
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in kit.folder.iterdir()}
    with tempfile.TemporaryDirectory(prefix="mmare-") as short:
        yield replace(found, worker=WorkerConfig(Path(short) / "worker.sock"))
    for path, (content, mode) in before.items():
        path.write_bytes(content)
        path.chmod(stat.S_IMODE(mode))
    for path in (folder / "approved").glob("*"):
        path.unlink()


@pytest.fixture
def coordinator(joined, site, tmp_path):
    """The coordinator's public endpoint, and a site that knows its port."""
    kit = joined[1]
    with https_server(tmp_path, Pair(kit.key.read_bytes(), kit.certificate.read_bytes())) as port:
        known = SiteKit(site.coordinator.kit).joined
        known.write_text(re.sub(r"port = \d+", f"port = {port}", known.read_text()))
        yield port


def texts(findings, check, verdict=None):
    return [each.found for each in findings if each.check == check and verdict in (None, each.verdict)]


def problems(findings):
    return [(each.check, each.found) for each in findings if each.verdict is Verdict.PROBLEM]


# The whole


@pytest.mark.usefixtures("coordinator")
def test_a_site_that_is_ready_has_no_problem(site):
    ApprovalFolder(site.folder).record(load_study(site.coordinator.kit / "study.toml"), 10)
    findings = examine(site)
    assert not problems(findings)
    checks = [each.check for each in findings]
    for check in ("bundle", "kit", "TLS", "clock", "fleet", "disk", "memory", "versions", "ports", "device"):
        assert check in checks
    assert texts(findings, "encoders", Verdict.OK) == ["ct: given", "wsi: given"]
    assert texts(findings, "study", Verdict.OK)[0].endswith(": approved")
    assert texts(findings, "worker", Verdict.WARNING)  # none runs


@pytest.mark.usefixtures("coordinator")
def test_every_row_that_is_not_ok_has_advice(site):
    for finding in examine(site):
        assert bool(finding.advice) == (finding.verdict is not Verdict.OK), finding


@pytest.mark.usefixtures("coordinator")
def test_the_exit_code_is_0_without_problems(site):
    result = RUNNER.invoke(app, ["check", str(site.folder / "site.toml"), "--network"])
    assert result.exit_code == 0, result.output
    assert re.search(r"^ok +TLS +TLSv1\.3", result.stdout, re.MULTILINE)
    assert re.search(r"^warning +study +.*not approved", result.stdout, re.MULTILINE)
    assert f"→ read what it computes and releases: mmare-site approve {site.coordinator.kit}" in " ".join(
        result.stdout.split()
    )


def test_the_exit_code_is_1_with_problems(site, monkeypatch, capsys):
    SiteKit(site.coordinator.kit).joined.write_text(
        f'federation = "north"\nhost = "localhost"\nport = {free_port()}\nsite = "birch"\n'
    )
    monkeypatch.setattr(sys, "argv", ["mmare-site", "check", str(site.folder / "site.toml"), "--network"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    stdout, stderr = capsys.readouterr()
    assert len(re.findall(r"^problem ", stdout, re.MULTILINE)) == 2
    assert "it admits birch, but site.toml says ash" in stdout
    assert "refuses the connection" in stdout
    assert stderr.endswith("error: 2 problems; the line below each says what to do about it\n")


def test_a_missing_bundle_is_an_error_with_advice(joined):
    other = joined[0] / "birch" / "site.toml"
    with pytest.raises(InputError, match=r"coordinator\.toml: not there; send the request .* kit install"):
        RUNNER.invoke(app, ["check", str(other), "--network"], catch_exceptions=False)
    assert InputError.exit_code == 2


def test_an_inaccessible_kit_is_an_error(site, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for any user but root
    with pytest.raises(InputError, match=r"kit: cannot be entered by the user .*; run this check as"):
        examine(site)


@pytest.mark.usefixtures("coordinator")
def test_a_check_that_hangs_is_a_row(site, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(examination, "MOST_S", 1.0)
    monkeypatch.setattr(examination, "check_device", lambda _name: released.wait(20))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    before = time.monotonic()
    findings = examine(site)
    assert time.monotonic() - before < 5
    assert problems(findings) == [("device", "no result after 1 s")]
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0.0, 0.0))
    busy = texts(examine(site), "device", Verdict.WARNING)
    released.set()
    assert busy[0].startswith("no result after 1 s: this machine is busy, 1000000 processes want its ")


@pytest.mark.usefixtures("coordinator")
def test_another_study_than_the_bundles_can_be_checked(site, tmp_path):
    path = tmp_path / "other.toml"
    path.write_text((site.coordinator.kit / "study.toml").read_text().replace('"tiny"', '"other"'))
    assert texts(examine(site, path), "study", Verdict.WARNING)[0].startswith("other, hash ")


def test_a_study_that_cannot_be_read_is_a_problem(site):
    (site.coordinator.kit / "study.toml").write_text("study = 3")
    found = [row for row in problems(examine(site)) if row[0] == "study"]
    assert len(found) == 1
    assert "study.toml" in found[0][1]


def test_no_study_in_the_bundle_is_no_problem(site):
    (site.coordinator.kit / "study.toml").unlink()
    findings = examine(site)
    assert texts(findings, "study") == ["none in the bundle: the coordinator sends it before a run"]
    assert not texts(findings, "encoders")


# Keys


@pytest.mark.parametrize("name", ["node.key", "superexec.secret"])
@pytest.mark.parametrize(("mode", "whom"), [(0o644, "every user"), (0o640, "a group of users")])
def test_a_secret_that_others_can_read_is_a_problem(site, name, mode, whom):
    path = site.coordinator.kit / name
    path.chmod(mode)
    found = [each for each in examine(site) if each.check == "kit" and each.verdict is Verdict.PROBLEM]
    assert [each.found for each in found] == [f"{path} has mode {mode:04o}, which lets {whom} use it"]
    assert found[0].advice == f"close it: chmod 0600 {path}"


def test_the_group_of_the_relay_may_read_them(site):
    group = grp.getgrgid(os.getegid()).gr_name
    site = replace(site, worker=replace(site.worker, group=group))
    (site.coordinator.kit / "node.key").chmod(0o640)
    assert not texts(examine(site), "kit", Verdict.PROBLEM)
    (site.coordinator.kit / "node.key").chmod(0o660)
    assert texts(examine(site), "kit", Verdict.PROBLEM)


@pytest.mark.parametrize("name", ["node.key", "superexec.secret"])
def test_a_secret_that_is_missing_is_one_problem(site, name):
    (site.coordinator.kit / name).unlink()
    assert texts(examine(site), "kit", Verdict.PROBLEM) == [f"{site.coordinator.kit / name} is not there"]


def test_an_invalid_key_is_a_problem(site):
    (site.coordinator.kit / "node.key").write_text("lost")
    (found,) = texts(examine(site), "kit", Verdict.PROBLEM)
    assert "not a private key in OpenSSH format" in found


def test_another_key_than_the_admitted_one_is_a_problem(site, tmp_path):
    make_request(site, tmp_path / "request.json", new_key=True)
    (found,) = texts(examine(site), "kit", Verdict.PROBLEM)
    assert re.fullmatch(r"the key is SHA256:\S+, but the coordinator has admitted SHA256:\S+", found)


def test_an_unreadable_authority_is_reported_by_kit_and_tls(site, coordinator):
    assert coordinator
    (site.coordinator.kit / "ca.crt").write_text("-----")
    assert {check for check, _ in problems(examine(site))} == {"kit", "TLS"}


# The study


def test_approval_of_another_study_is_named(site):
    other = tiny_study(training={"rounds": 9})
    ApprovalFolder(site.folder).record(other, 10)
    (found,) = texts(check_study(site, tiny_study(), Path("study.toml")), "study", Verdict.WARNING)
    assert f"approved is tiny {other.hash[:12]}, which is another study" in found


def test_a_study_of_other_modalities_is_a_problem(site):
    study = tiny_study(modality=[{"name": "mri", "kind": "features", "width": 4}])
    rows = check_study(site, study, Path("study.toml"))
    assert problems(rows) == [("study", "it learns from mri, none of which site.toml names")]


def test_missing_modalities_are_named(site):
    here = replace(site, modalities={"ct": site.modalities["ct"]})
    rows = check_study(here, tiny_study(), Path("study.toml"))
    assert "this site has ct, but not wsi" in texts(rows, "study", Verdict.OK)
    assert texts(check_encoders(here, tiny_study()), "encoders") == ["ct: given"]


def volumes(encoder):
    return tiny_study(
        modality=[{"name": "ct", "kind": "volume", "width": 512, "encoder": encoder, "scaling": "none"}]
    )


def test_weights_that_are_missing_or_changed_are_a_problem(site, tmp_path):
    study = volumes("med3d-resnet18")
    (found,) = texts(check_encoders(site, study), "encoders", Verdict.PROBLEM)
    assert "ct: encoder med3d-resnet18 needs weights" in found
    site = replace(site, weights=tmp_path)
    (found,) = texts(check_encoders(site, study), "encoders", Verdict.PROBLEM)
    assert "med3d-resnet18.safetensors: no such file" in found
    file = tmp_path / "med3d-resnet18.safetensors"
    file.write_bytes(b"weights")
    (found,) = texts(check_encoders(site, study), "encoders", Verdict.OK)
    assert "sha256:" in found
    file.write_bytes(b"other weights")
    (found,) = texts(check_encoders(site, study), "encoders", Verdict.PROBLEM)
    assert "has changed: sha256 is " in found
    assert PINS in found


def test_weights_that_this_user_may_not_read_are_a_warning(site, tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", closed)  # as for any user but root
    (row,) = check_encoders(replace(site, weights=tmp_path), volumes("med3d-resnet18"))
    assert row.verdict is Verdict.WARNING
    assert "cannot be read by this user (Permission denied)" in row.found


def test_an_encoder_of_another_version_is_a_problem(site):
    (row,) = check_encoders(site, volumes("med4d"))
    assert row.verdict is Verdict.PROBLEM
    assert "med4d" in row.found


# The machine


def test_little_disk_space_is_a_warning_and_none_a_problem(site, monkeypatch):
    assert {row.verdict for row in check_disk(site)} == {Verdict.OK}
    monkeypatch.setattr(machine, "NOTED_DISK_GIB", 1e9)
    assert [row.verdict for row in check_disk(site)] == [Verdict.WARNING]  # once for each disk
    monkeypatch.setattr(machine, "LEAST_DISK_GIB", 1e9)
    assert [row.verdict for row in check_disk(site)] == [Verdict.PROBLEM]


def test_a_folder_that_cannot_be_written_to_is_a_warning(site, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _path, mode: mode == os.R_OK)  # as for any user but root
    rows = [row for row in check_disk(site) if row.verdict is Verdict.WARNING]
    assert len(rows) == 2  # not the kit, which may be the relay's user's
    assert all("cannot be written to by this user" in row.found for row in rows)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for the relay's user
    assert not [row for row in check_disk(site) if row.verdict is Verdict.WARNING]


@pytest.mark.parametrize(("gib", "verdict"), [(0.5, "problem"), (2, "warning"), (64, "ok")])
def test_memory_is_compared_with_what_an_encoder_needs(gib, verdict):
    (row,) = check_memory(int(gib * 2**30))
    assert row.verdict.value == verdict


def test_memory_of_this_machine_is_read():
    (row,) = check_memory()
    assert 0 < float(row.found.split()[0]) < 1e5


def test_the_installed_versions_fit():
    (row,) = check_versions()
    assert row.verdict is Verdict.OK, row.found
    assert re.match(r"federated-mmare \S+, flwr 1\.4\d\.\d+, torch \S+, grpcio \S+, Python 3\.", row.found)


def test_versions_that_do_not_fit_are_named(monkeypatch):
    wanted = ["flwr<1", "no-such-thing>=2", 'never>=1; extra == "site"']
    monkeypatch.setattr(machine, "requires", lambda _name: wanted)
    monkeypatch.setattr(machine, "metadata", lambda _name: {"Requires-Python": ">=9"})
    (row,) = check_versions()
    assert row.verdict is Verdict.PROBLEM
    parts = row.found.split("; ")
    assert re.fullmatch(r"flwr is \S+, expected <1", parts[0])
    assert parts[1] == "no-such-thing is not installed, expected >=2"
    assert re.fullmatch(r"Python is \S+, expected >=9", parts[2])


def test_the_processor_is_a_device():
    (row,) = check_device("cpu")
    assert row.verdict is Verdict.OK
    assert row.found.startswith("cpu (cpu)")


@pytest.mark.parametrize("name", ["tpu-of-mars", "cuda"])
def test_a_device_that_is_not_there_is_a_problem(name):
    import torch

    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (row,) = check_device(name)
    assert row.verdict is Verdict.PROBLEM
    assert repr(name) in row.found
    assert 'device = "cpu"' in row.advice


@pytest.mark.gpu
def test_a_gpu_computes_and_one_that_is_not_there_is_a_problem():
    (row,) = check_device("auto")
    assert row.verdict is Verdict.OK
    assert re.search(r"\S, \d+\.\d of \d+\.\d GiB free$", row.found)
    (row,) = check_device("cuda:99")
    assert row.verdict is Verdict.PROBLEM
    assert row.found.startswith("cuda:99 cannot be used: ")


# Ports


@pytest.mark.parametrize(
    ("family", "address", "verdict"),
    [
        pytest.param(socket.AF_INET, "127.0.0.1", Verdict.OK, id="loopback"),
        pytest.param(socket.AF_INET, "0.0.0.0", Verdict.PROBLEM, id="every address"),  # noqa: S104 - the point
        pytest.param(socket.AF_INET6, "::1", Verdict.OK, id="loopback of IPv6"),
        pytest.param(socket.AF_INET6, "::", Verdict.PROBLEM, id="every address of IPv6"),
    ],
)
def test_a_port_that_others_can_reach_is_a_problem(site, family, address, verdict):
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        (row,) = check_ports(replace(site, coordinator=CoordinatorConfig(site.coordinator.kit, port)))
        assert port in [each.port for each in listening()]
    assert row.verdict is verdict
    assert f"{port}" in row.found
    assert port not in [each.port for each in listening()]


def test_an_open_port_names_our_program(tmp_path):
    script = tmp_path / "mmare-site"
    script.write_text(
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "input()\n"
    )
    command, pipe = [sys.executable, str(script)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as program:
        port = int(program.stdout.readline())
        found = {each.port: each.program for each in listening()}
        program.communicate("\n", timeout=10)
    assert found[port] == "mmare-site"


def test_metrics_for_others_are_a_warning(site):
    watched = replace(site, metrics=MetricsConfig(free_port(), "0.0.0.0"))  # noqa: S104 - the point
    rows = check_ports(watched)
    assert [row.verdict for row in rows] == [Verdict.OK, Verdict.WARNING]
    assert "[metrics] address is 0.0.0.0" in rows[1].found
    inside = replace(site, metrics=MetricsConfig(free_port()))
    assert [row.verdict for row in check_ports(inside)] == [Verdict.OK]


# The worker


def running(site, name=SITE):
    status = SiteStatus(name, ApprovalFolder(site.folder), AuditLog(site.cache / "audit.jsonl"))
    return serving(Worker(lambda header, payload: (header, payload), status), site.worker)


def test_a_running_worker_is_identified(site):
    with running(site):
        (row,) = check_worker(site)
    assert row.verdict is Verdict.OK
    assert f"runs for ash, process {os.getpid()}, version " in row.found


def test_a_worker_of_another_site_is_a_problem(site):
    with running(site, "birch"):
        (row,) = check_worker(site)
    assert row.verdict is Verdict.PROBLEM
    assert row.found.endswith("not for ash")


def test_an_outdated_worker_is_a_warning(site, monkeypatch):
    with running(site):
        monkeypatch.setattr("client.doctor.running.version", lambda _name: "99")
        (row,) = check_worker(site)
    assert row.verdict is Verdict.WARNING
    assert row.found.endswith("installed is 99")


def test_no_worker_is_a_warning(site):
    (row,) = check_worker(site)
    assert (row.verdict, row.found) == (Verdict.WARNING, f"does not run: {site.worker.socket} is not there")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(site.worker.socket))
    (row,) = check_worker(site)
    assert (row.verdict, row.found) == (Verdict.WARNING, f"nothing answers on {site.worker.socket}")


def test_a_socket_of_other_users_is_a_warning(site, monkeypatch):
    site.worker.socket.touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for any user but root
    (row,) = check_worker(site)
    assert row.verdict is Verdict.WARNING
    assert "[worker] group" in row.advice


def test_a_path_that_is_too_long_for_a_socket_is_a_problem(site):
    long = replace(site, worker=WorkerConfig(Path("/run") / ("x" * 120)))
    (row,) = check_worker(long)
    assert row.verdict is Verdict.PROBLEM
    assert "at most 107" in row.found


@contextmanager
def relay(site, contact_s=1.0, **supernode):
    """What a running ``mmare-site start --part relay`` leaves for others to see."""
    folder = RelayFolder.of(site)
    folder.make()
    kept = ProgramState("supernode", 1, time.time(), **{"pid": 11, **supernode})
    programs = (kept, ProgramState("superexec", 1, time.time(), pid=12))
    write_state(folder.state, RelayState(10, time.time(), "north", "localhost:443", programs))
    if contact_s is not None:
        folder.contact.touch()
        os.utime(folder.contact, (time.time() - contact_s,) * 2)
    with folder.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    shutil.rmtree(folder.folder)


def test_a_running_relay_names_its_last_contact(site):
    with relay(site, contact_s=7):
        (row,) = check_relay(site)
    assert row.verdict is Verdict.OK
    assert re.fullmatch(r"runs; the coordinator answered [78] s ago", row.found)


@pytest.mark.parametrize(
    ("contact_s", "words"), [(None, "has not reached the coordinator yet"), (400, "coordinator for 400 s")]
)
def test_a_relay_without_contact_is_a_warning(site, contact_s, words):
    with relay(site, contact_s=contact_s):
        (row,) = check_relay(site)
    assert row.verdict is Verdict.WARNING
    assert words in row.found


def test_a_relay_whose_programs_end_is_a_warning_with_their_log(site):
    with relay(site, pid=None, ended="ended with exit code 49"):
        (row,) = check_relay(site)
    assert (row.verdict, row.found) == (Verdict.WARNING, "supernode ended with exit code 49")
    assert str(RelayFolder.of(site).log("supernode")) in row.advice


def test_no_relay_is_a_warning_but_another_users_is_not(site, monkeypatch):
    (row,) = check_relay(site)
    assert (row.verdict, row.found) == (Verdict.WARNING, "does not run")

    def closed(_folder):
        raise PermissionError

    monkeypatch.setattr("client.doctor.running.read_state", closed)  # as for any user but root
    (row,) = check_relay(site)
    assert row.verdict is Verdict.OK
    assert "another user" in row.found


def test_an_unreadable_approval_is_not_guessed(site, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for the relay's user
    (row,) = check_study(site, tiny_study(), Path("study.toml"))
    assert row.verdict is Verdict.OK
    assert row.found.endswith("this user cannot see whether it is approved")


def test_long_rows_are_folded(site):
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(findings_table(check_worker(site)))
    said = console.export_text()
    assert all(len(line) <= 60 for line in said.splitlines())
    assert "".join(str(site.worker.socket).split()) in "".join(said.split())
    assert "mmare-site start" in " ".join(said.split())


def test_a_problem_is_an_error_of_the_command(site):
    SiteKit(site.coordinator.kit).joined.write_text(
        f'federation = "north"\nhost = "localhost"\nport = {free_port()}\nsite = "ash"\n'
    )
    with pytest.raises(RunError, match=r"^1 problem; the line below"):
        RUNNER.invoke(app, ["check", str(site.folder / "site.toml"), "--network"], catch_exceptions=False)
