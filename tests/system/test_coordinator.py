"""``mmare-server start`` with three hospitals: same bits as in one process, whatever is killed on the way."""

import json
import socket
import ssl
import sys
import tempfile
import time
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509
from rich.console import Console

from mmare.study.study import load_study
from server.membership.flower_nodes import registered, superlink_answers
from tests.federations import all_events, outcome, run_nodes, tiny_federation, tiny_study
from tests.server.deployment.test_proxy import CLOSED, status
from tests.system.deployment import (
    Coordinator,
    Hospital,
    command,
    free_ports,
    needs_nginx,
    until,
    whole_events,
)

pytestmark = [pytest.mark.system, needs_nginx]

ROUNDS = 5
LONG_S = 400  # for a run with faults on a busy machine; an idle one needs a tenth
STUDY = {"training": {"rounds": ROUNDS}, "federation": {"deadline_s": 40}}


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def federation(place):
    return tiny_federation(place / "fed", tiny_study(**STUDY))


@pytest.fixture(scope="module")
def expected(federation, place):
    run_nodes(federation, place / "plain")
    return outcome(place / "plain")


@pytest.fixture(scope="module")
def coordinator(place, federation):
    found = Coordinator(place / "kit")
    for site, port in zip(sorted(federation.glob("*/site.toml")), free_ports(3), strict=True):
        often = site.read_text().replace(
            "[policy]", "[policy]\nmax_releases = 1000000"
        )  # many runs of one study
        site.write_text(often)
        hospital = Hospital(site.parent, port)
        hospital.join(found, federation / "study.toml")
        found.hospitals.append(hospital)
    for hospital in found.hospitals:
        hospital.start()
    yield found
    found.close()
    for hospital in found.hospitals:
        hospital.stop()


def since(out, moment):
    """Seconds from a moment to the next finished round, if there is one."""
    return min((time - moment for time in finished_rounds(out).values() if time > moment), default=None)


def finished_rounds(out):
    """When each round was finished, by its number."""
    found = [event for event in whole_events(out) if event["event"] == "aggregated"]
    return {event["round"]: datetime.fromisoformat(event["time"]).timestamp() for event in found}


def attempts_of(out):
    return sum(event["event"] == "run_started" for event in whole_events(out))


def test_a_run_gives_the_same_bits_as_in_one_process(coordinator, federation, expected, tmp_path):
    coordinator.start(federation, tmp_path / "run")
    coordinator.finish(LONG_S)
    assert outcome(tmp_path / "run") == expected
    assert len([event for event in all_events(tmp_path / "run") if event["event"] == "run_started"]) == 1
    assert not coordinator.processes()


KILLS = {
    "serverapp": {1},
    "superexec": {1},
    "superlink": {0, 1},
    "proxy": {0},
}  # and attempts that each costs


def test_killed_in_a_round_one_after_the_other_the_run_ends_with_the_same_weights(
    coordinator, federation, place, tmp_path
):
    """After a kill of SuperLink its ServerApp asks again until it is back."""
    longer, out, attempts = ("training.rounds=16", "training.patience=16"), tmp_path / "run", []
    coordinator.start(prepared(coordinator, federation, tmp_path, longer), out)
    for name in KILLS:
        coordinator.until_round(out, max(finished_rounds(out), default=0) + 2)
        attempts.append(attempts_of(out))
        pid, killed = coordinator.pid(name), time.time()
        coordinator.kill(name)
        until(partial(is_another, coordinator, name, pid), f"{name} is back", 120, coordinator.logs)
        until(partial(since, out, killed), "a finished round", LONG_S, coordinator.logs)
        sys.stderr.write(f"{name}: {since(out, killed):.1f} s from kill to the next finished round\n")
    coordinator.finish(LONG_S)
    for (name, wanted), (before, after) in zip(
        KILLS.items(), pairwise([*attempts, attempts_of(out)]), strict=True
    ):
        assert after - before in wanted, name
    run_nodes(federation, place / "longer", settings=longer)
    assert outcome(out) == outcome(place / "longer")
    assert not coordinator.processes()


def is_another(coordinator, name, pid):
    return coordinator.pid(name) != pid


def test_killed_itself_it_leaves_nothing_and_the_same_command_resumes(
    coordinator, federation, expected, tmp_path
):
    out = tmp_path / "run"
    coordinator.start(federation, out)
    coordinator.until_round(out, 2)
    left = coordinator.processes()
    assert set(left) == {"superlink", "superexec", "proxy", "serverapp"}
    coordinator.running.kill()
    coordinator.running.wait(10)
    until(lambda: not coordinator.processes(), "everything ends with it", 30, coordinator.logs)
    coordinator.start(federation, out)
    coordinator.finish(LONG_S)
    assert outcome(out) == expected


def test_told_to_stop_it_stops_everything_and_the_same_command_resumes(
    coordinator, federation, expected, tmp_path
):
    out = tmp_path / "run"
    coordinator.start(federation, out)
    coordinator.until_round(out, 2)
    coordinator.running.process.terminate()
    assert coordinator.wait(60) == 1
    assert coordinator.says("stopped; the same command resumes the run")
    assert not coordinator.processes()
    assert all_events(out)[-1]["reason"] == "interrupted"
    coordinator.start(federation, out)
    coordinator.finish(LONG_S)
    assert outcome(out) == expected


def prepared(coordinator, federation, folder, settings):
    """The study with other settings, which every hospital approves; its file."""
    study = folder / "study.toml"
    study.write_text(tomli_w.dumps(load_study(federation / "study.toml").override(settings).to_dict()))
    for hospital in coordinator.hospitals:
        hospital.approve(study)
    return study


def run_with_a_killed_worker(coordinator, federation, folder, settings):
    """A run of the study with other settings; its folder."""
    out = folder / "run"
    coordinator.start(prepared(coordinator, federation, folder, settings), out)
    coordinator.until_round(out, 2)
    coordinator.hospitals[1].kill("worker")
    coordinator.finish(LONG_S)
    return out


def test_secure_sums_are_the_same_bits_though_a_worker_is_killed(coordinator, federation, place, tmp_path):
    settings = ["privacy.secure_sum=true", "federation.min_sites=3"]
    run_nodes(federation, place / "secure", settings=settings)
    out = run_with_a_killed_worker(coordinator, federation, tmp_path, settings)
    assert outcome(out) == outcome(place / "secure")


def test_a_private_run_is_paid_for_once_though_a_worker_is_killed(coordinator, federation, tmp_path):
    scaled = [f"modality.{name}.scaling=l2" for name in ("ct", "wsi")]
    settings = [*scaled, "training.noise_probability=0.0", "privacy.dp={epsilon = 8.0, delta = 1e-3}"]
    out = run_with_a_killed_worker(coordinator, federation, tmp_path, settings)
    assert len([each for each in all_events(out) if each["event"] == "aggregated"]) == ROUNDS
    for hospital in coordinator.hospitals:
        told = json.loads(command("mmare-site", "budget", hospital.file, "--json"))
        assert (told["spent"], len(told["studies"][0]["runs"])) == (8.0, 1)


@pytest.fixture(scope="module")
def serving(coordinator, place):
    """A coordinator in the middle of a run that does not end, of a study file alone."""
    study = place / "endless.toml"
    endless = {"rounds": 1_000_000, "patience": 1_000_000}
    study.write_text(tomli_w.dumps(tiny_study(**(STUDY | {"training": endless})).to_dict()))
    for hospital in coordinator.hospitals:
        hospital.approve(study)
    coordinator.start(study, place / "endless")
    coordinator.until_round(place / "endless", 2)
    yield coordinator
    coordinator.close()


def secured(coordinator, port):
    context = ssl.create_default_context(cafile=str(coordinator.kit.ca_certificate))
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    return context.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_from_outside_only_sites_and_health_are_let_through(serving, verb):
    answers = {path: status(serving.kit, verb, path) for path in CLOSED}
    assert set(answers.values()) <= {400, 403, 404}, answers
    assert status(serving.kit, "GET", "/health") == 200
    assert status(serving.kit, "POST", "/v1/fleet/pull-messages") in (400, 401, 415, 422)


def test_what_is_refused_outside_is_answered_inside(serving):
    for verb, path in (("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/v1/control/list-runs")):
        assert status(serving.kit, verb, path, port=serving.superlink_port) in (200, 415)


def test_the_status_is_a_screenful_of_programs_and_sites(serving):
    console = Console(width=110, record=True, file=sys.stderr)
    console.print(serving.status())
    lines = console.export_text().splitlines()
    assert len(lines) < 30
    rows = {line.split()[0]: line for line in lines if line.strip()}
    for name, pid in serving.processes().items():
        assert str(pid) in rows[name]
        assert "MiB" in rows[name]
    for name in ("ash", "birch", "cedar"):
        assert "online" in rows[name]
        assert "round" in rows[name]
    assert "396 days left" in rows["certificate"]
    assert command("mmare-server", "status", "--kit", serving.folder).count("\n") < 50


def test_a_second_start_with_the_same_kit_is_refused(serving, federation):
    said = command("mmare-server", "start", federation, "--kit", serving.folder, expect=2)
    assert f"runs with this kit already (process {serving.running.pid})" in said


def test_a_superlink_that_is_killed_knows_the_same_nodes_again(serving):
    def online():
        found = {node.site: node.node_id for node in registered(serving.kit) if node.status == "online"}
        return found if len(found) == 3 else None

    before, pid = online(), serving.pid("superlink")
    serving.kill("superlink")
    until(
        lambda: serving.pid("superlink") != pid and superlink_answers(serving.kit),
        "it is back",
        120,
        serving.logs,
    )
    until(lambda: online() == before, "all are online again", 30, serving.logs)  # they may leave for a moment


def test_a_renewed_certificate_is_taken_up_in_the_middle_of_a_run(serving, place):
    def served(port):
        with secured(serving, port) as connection:
            return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True)).serial_number

    old = served(serving.port)
    command("mmare-server", "kit", "renew", "--kit", serving.folder)
    new = x509.load_pem_x509_certificate(serving.kit.certificate.read_bytes()).serial_number
    assert new != old

    def taken_up():
        try:
            return {served(serving.port), served(serving.superlink_port)} == {new}
        except OSError:
            return False

    until(taken_up, "the new certificate", 120, serving.logs)
    rounds = [event["round"] for event in all_events(place / "endless") if event["event"] == "aggregated"]
    serving.until_round(place / "endless", max(rounds) + 2, event="aggregated")
    left_out = [event for event in all_events(place / "endless") if event["event"] == "site_left_out"]
    assert left_out == [], serving.logs()
