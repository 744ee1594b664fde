"""A hospital behind 1 Mbit/s: what its relay measures, and whole runs, over a line that the kernel shapes."""

import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
import tomli_w

from client.relay.line import MODULE, read_line
from client.relay.programs import RelayFolder
from mmare.host.supervised import ProcessSupervisor, Program
from server.deployment.proxy import nginx_command, write_proxy
from server.deployment.queue import QueueState, find
from tests.federations import all_events, run_nodes, tiny_federation, tiny_study, weights
from tests.system.deployment import Coordinator, Hospital, command, free_ports, needs_nginx, until
from tests.system.network import COORDINATOR, PUBLIC_PORT, needs_namespaces, network

pytestmark = [pytest.mark.system, needs_nginx]

LONG_S = 300
SHAPE = ("root", "tbf", "rate", "1mbit", "burst", "32kbit", "latency", "400ms")


def test_a_line_is_measured_through_the_real_door(tmp_path):
    """nginx alone: what it does not pass on, for want of a SuperLink, has come over the line all the same."""
    needs_namespaces()
    federation = tiny_federation(tmp_path / "fed", sites=["ash"])
    with network(1) as hosts, ProcessSupervisor() as processes:
        coordinator = Coordinator(tmp_path / "kit", COORDINATOR, PUBLIC_PORT)
        hospital = Hospital(federation / "ash", *free_ports(1))
        hospital.join(coordinator)
        write_proxy(coordinator.kit)
        door = hosts.coordinator.inside(*nginx_command(coordinator.kit))
        processes.keep(Program("nginx", door, tmp_path / "nginx.log"))
        processes.poll()
        folder = RelayFolder.of(hospital.site)
        folder.make()
        found = {}
        for name, shape in (("quick", False), ("slow", True)):
            if shape:
                hosts.hospitals[0].run("tc", "qdisc", "add", "dev", "way", *SHAPE)
            measure = hosts.hospitals[0].inside(sys.executable, "-P", "-m", MODULE, str(hospital.file))

            def measured(measure=measure):
                return subprocess.run(measure, timeout=60, check=False).returncode == 0

            until(measured, name, 60)
            found[name] = 8 * read_line(folder.folder).bytes_per_s
    assert found["quick"] > 20e6
    assert 0.5e6 < found["slow"] < 1.5e6


@contextmanager
def deployed(folder, hosts, study, lines):
    """A coordinator that stays, and hospitals of which the first has a slow line both ways."""
    federation = tiny_federation(folder / "fed", study, sites=("ash", "birch"))
    coordinator = Coordinator(folder / "kit", COORDINATOR, PUBLIC_PORT, hosts.coordinator.inside())
    ports = free_ports(2)
    for name, port, host in zip(("ash", "birch"), ports, hosts.hospitals, strict=True):
        coordinator.hospitals.append(Hospital(federation / name, port, host.inside()))
    for host, device in lines:
        host.run("tc", "qdisc", "add", "dev", device, *SHAPE)
    for hospital in coordinator.hospitals:
        hospital.join(coordinator)
        hospital.start()
    coordinator.stay()
    try:
        yield coordinator
    finally:
        coordinator.close()
        for hospital in coordinator.hospitals:
            hospital.stop()


@pytest.mark.long
def test_a_run_over_a_slow_line_ends_whole_and_one_that_it_cannot_carry_does_not_wait_for_it(tmp_path):
    """0.5 MB there and back within 60 s are carried; 4.4 MB within 10 s are not, and the other goes on."""
    needs_namespaces()
    small = tiny_study(
        model={"name": "mmare", "width": 128},
        training={"rounds": 3, "patience": 3},
        federation={"min_sites": 2, "deadline_s": 60},
    )
    large = small.override(
        ["study.name=large", "model.width=384", "federation.min_sites=1", "federation.deadline_s=10"]
    )
    with tempfile.TemporaryDirectory(prefix="mmare-") as place, network(2) as hosts:
        lines = ((hosts.hospitals[0], "way"), (hosts.coordinator, "door1"))
        with deployed(Path(place), hosts, small, lines) as coordinator:
            slow = coordinator.hospitals[0]
            folder = RelayFolder.of(slow.site).folder
            until(lambda: read_line(folder) is not None, "its line is measured", LONG_S, coordinator.logs)
            runs = {}
            for study in (small, large):
                file = Path(place) / f"{study.name}.toml"
                file.write_text(tomli_w.dumps(study.to_dict()))
                for hospital in coordinator.hospitals:
                    hospital.approve(file)
                command("mmare-server", "submit", file, "--kit", coordinator.folder, "--name", study.name)
                until(
                    lambda name=study.name: find(coordinator.kit, name).state is QueueState.FINISHED,
                    f"{study.name} ends",
                    LONG_S,
                    coordinator.logs,
                )
                runs[study.name] = all_events(coordinator.kit.runs / study.name)
            assert "cannot take part in large" in command("mmare-site", "status", slow.file)
        sent = [event["bytes_up"] for event in runs["tiny"] if event["event"] == "site_update"]
        sys.stderr.write(f"{max(sent)} bytes a round each way: {seconds(runs['tiny'])} s a round\n")
        assert [event for event in runs["tiny"] if event["event"] == "site_left_out"] == []
        run_nodes(Path(place) / "fed", tmp_path / "plain")
        assert weights(Path(place) / "kit" / "runs" / "tiny") == weights(tmp_path / "plain")
    called = {event["site"]: event for event in runs["large"] if event["event"] == "roll_call"}
    assert called["birch"]["accepted"]
    assert "S404" in called["ash"]["reason"]
    assert max(seconds(runs["large"])) < large.federation.deadline_s


def seconds(events):
    """Of each round, from the start to the mean."""
    begun = {event["round"]: moment(event) for event in events if event["event"] == "round_started"}
    ended = {event["round"]: moment(event) for event in events if event["event"] == "aggregated"}
    return [round(ended[number] - begun[number], 1) for number in sorted(ended)]


def moment(event):
    return datetime.fromisoformat(event["time"]).timestamp()
