"""Sites at a real SuperLink with TLS, node keys and a database: admitted, connected, revoked."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from client.membership.kit import install_bundle, make_request
from mmare.host.supervised import ProcessSupervisor, Program
from mmare.wire.joining import SiteKit
from server.membership.flower_cli import flower_environment
from server.membership.flower_nodes import (
    NodeChanges,
    register,
    register_admitted,
    registered,
    superlink_answers,
    unregister,
)
from server.membership.kit import Kit, init_kit, renew
from server.membership.records import admit, find, revoke, save
from tests.kits import asked, free_port

pytestmark = pytest.mark.system

PROGRAMS = Path(sys.executable).parent
WAIT_S = 60.0
REFUSED = "Exit Code: 305"


class Coordinator:
    """A kit whose SuperLink runs, or does not."""

    def __init__(self, folder: Path, processes: ProcessSupervisor):
        self.kit: Kit = init_kit(folder, "127.0.0.1", superlink_port=free_port())
        self._processes = processes

    def start(self) -> None:
        kit = self.kit
        command = [
            *(str(PROGRAMS / "flower-superlink"), "--host", "127.0.0.1", "--port", str(kit.superlink_port)),
            *("--ssl-ca-certfile", str(kit.ca_certificate), "--ssl-certfile", str(kit.certificate)),
            *("--ssl-keyfile", str(kit.key), "--enable-supernode-auth", "--isolation", "process"),
            *("--superexec-auth-secret-file", str(kit.secret), "--database", str(kit.database)),
        ]
        self._processes.keep(
            Program("superlink", tuple(command), kit.logs / "superlink.log", flower_environment(kit))
        )
        self._processes.poll()
        wait(lambda: superlink_answers(kit), "SuperLink")

    def stop(self) -> None:
        self._processes.stop(["superlink"])

    def run(self, *arguments: object) -> str:
        """What ``mmare-server kit`` says."""
        command = [str(PROGRAMS / "mmare-server"), "kit", *map(str, arguments), "--kit", str(self.kit.folder)]
        environment = {**os.environ, "COLUMNS": "200"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=WAIT_S, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self, site: str) -> str:
        return next(node.status for node in registered(self.kit) if node.site == site)


def wait(until, what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not until():
        assert time.monotonic() < end, f"{what}: not within {WAIT_S} s"
        time.sleep(0.1)


@pytest.fixture
def coordinator(tmp_path):
    with ProcessSupervisor() as processes:
        yield Coordinator(tmp_path / "coordinator", processes)


def supernode(site: SiteKit, kit: Kit, folder: Path) -> subprocess.Popen[bytes]:
    """The real one, with what the site's kit holds; it talks to SuperLink without the proxy in between."""
    command = [
        *(str(PROGRAMS / "flower-supernode"), "--root-certificates", str(site.ca)),
        *("--superlink", f"{site.coordinator().host}:{kit.superlink_port}"),
        *("--auth-supernode-private-key", str(site.key), "--port", str(free_port())),
        *("--isolation", "process", "--superexec-auth-secret-file", str(site.secret)),
    ]
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, **flower_environment(kit), "FLWR_HOME": str(folder)}
    with (folder / "supernode.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def end_of(process: subprocess.Popen[bytes], folder: Path) -> tuple[int, str]:
    try:
        code = process.wait(timeout=WAIT_S)
    finally:
        process.kill()
    return code, (folder / "supernode.log").read_text()


def test_a_site_is_admitted_connects_and_is_revoked(coordinator, tmp_path):
    coordinator.start()
    kit, home = coordinator.kit, tmp_path / "home"
    config, request = asked(tmp_path)
    said = coordinator.run("admit", request)
    assert "SuperLink: registered ash" in said
    node = find(kit, "ash").node_id
    assert [(found.node_id, found.site) for found in registered(kit)] == [(node, "ash")]
    assert "SuperLink: already up to date" in coordinator.run("admit", request)

    install_bundle(kit.bundles / "ash.zip", config)
    site = SiteKit(config.coordinator.kit)
    process = supernode(site, kit, home)
    try:
        wait(lambda: coordinator.status("ash") == "online", "the site")
        assert " online" in coordinator.run("list")
        assert f"SuperLink: unregistered node {node}" in coordinator.run("revoke", "ash")
        end_of(process, home)
    finally:
        process.kill()
    assert coordinator.status("ash") == "unregistered"
    code, log = end_of(supernode(site, kit, home), home)
    assert code != 0
    assert REFUSED in log
    assert "revoked" in coordinator.run("list")


def test_what_happened_while_superlink_was_away_is_made_up_for(coordinator, tmp_path):
    kit = coordinator.kit
    sites = {name: asked(tmp_path, name) for name in ("ash", "birch", "cedar")}
    assert "SuperLink is not running" in coordinator.run("admit", sites["ash"][1])
    admit(kit, sites["birch"][1])
    coordinator.start()
    assert register_admitted(kit).registered == ("ash", "birch")
    first = {name: find(kit, name).node_id for name in ("ash", "birch")}
    coordinator.stop()

    revoke(kit, "ash")
    admit(kit, make_request(sites["birch"][0], new_key=True), replace_key=True)
    admit(kit, sites["cedar"][1])
    renew(kit, new_key=True)
    coordinator.start()
    done = register_admitted(kit)
    assert done.registered == ("birch", "cedar")
    assert set(done.unregistered) == set(first.values())
    assert done.refused == {}
    on = {node.site: node for node in registered(kit) if node.status == "registered"}
    assert set(on) == {"birch", "cedar"}
    assert on["birch"].public_key == find(kit, "birch").public_key
    assert register_admitted(kit) == NodeChanges()


def test_records_are_the_truth(coordinator, tmp_path):
    coordinator.start()
    kit = coordinator.kit
    for name in ("ash", "birch"):
        admit(kit, asked(tmp_path, name)[1])
    ash, birch = register(kit, "ash"), register(kit, "birch")
    with kit.locked():
        save(kit, replace(find(kit, "ash"), node_id=None))  # as if killed between registering and recording
    assert register_admitted(kit) == NodeChanges(registered=("ash",))
    assert find(kit, "ash").node_id == ash
    (kit.sites / "birch.json").unlink()
    assert register_admitted(kit).unregistered == (birch,)
    unregister(kit, birch)  # is off already

    unregister(kit, ash)  # behind the kit's back: Flower takes no key twice
    refused = register_admitted(kit).refused
    assert list(refused) == ["ash"]
    assert "--new-key" in refused["ash"]

    coordinator.stop()
    kit.database.unlink()  # lost: every site is registered anew
    coordinator.start()
    assert register_admitted(kit).registered == ("ash",)
    assert find(kit, "ash").node_id not in (None, ash)
