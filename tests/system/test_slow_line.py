"""A hospital behind 1 Mbit/s: what its relay measures, over a line that the kernel shapes."""

import subprocess
import sys

import pytest

from client.relay.line import MODULE, read_line
from client.relay.programs import RelayFolder
from mmare.host.supervised import ProcessSupervisor, Program
from server.deployment.proxy import nginx_command, write_proxy
from tests.federations import tiny_federation
from tests.system.deployment import Coordinator, Hospital, free_ports, needs_nginx, until
from tests.system.network import COORDINATOR, PUBLIC_PORT, needs_namespaces, network

pytestmark = [pytest.mark.system, needs_nginx]

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
