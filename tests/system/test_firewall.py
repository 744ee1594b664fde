"""The coordinator's firewall rules in a real kernel: who may call SuperLink, and who may hold the door."""

import os
import pwd
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest

from mmare.errors import InputError, RunError
from server.deployment.firewall import MOST, apply_firewall, firewall_rules
from server.membership.kit import init_kit
from tests.system.deployment import command, until
from tests.system.network import needs_namespaces, network

pytestmark = pytest.mark.system

PORT, SUPERLINK_PORT = 8443, 9095
SERVE = """
import selectors, socket, sys
found = selectors.DefaultSelector()
servers = [socket.create_server(("", int(port)), backlog=4096) for port in sys.argv[1:]]
for server in servers:
    found.register(server, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in found.select():
        if key.fileobj in servers:
            found.register(key.fileobj.accept()[0], selectors.EVENT_READ)
        else:  # its other end has closed
            found.unregister(key.fileobj)
            key.fileobj.close()
"""
# Connects as often as told and says how often it could; holds what it has until its input ends.
CONNECT = """
import socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = []
for _ in range(count):
    try:
        held.append(socket.create_connection((host, port), timeout=2))
    except OSError:
        pass
print(len(held), flush=True)
sys.stdin.read()
"""


@contextmanager
def connected(host, address, port, count, user=None):
    """Connections from a host, held meanwhile; yields how many of them were let in."""
    words = [*host.inside(sys.executable, "-S", "-c", CONNECT, address, str(port), str(count))]
    if user is not None:
        words = [*host.inside("setpriv", f"--reuid={user}", "--clear-groups", *words[len(host.inside()) :])]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())
        process.stdin.close()


@contextmanager
def coordinator_with(kit, users=()):
    """Hosts, the coordinator's with the rules and two ports that listen."""
    needs_namespaces()
    with network(2) as found, ExitStack() as stack:
        place = found.coordinator
        words = place.inside(sys.executable, "-S", "-c", SERVE, str(PORT), str(SUPERLINK_PORT))
        server = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        stack.callback(server.kill)
        assert server.stdout.readline() == "ready\n"
        rules = firewall_rules(kit, users)
        for _ in range(2):  # applied again, it replaces itself
            subprocess.run(place.inside("nft", "-f", "-"), input=rules, text=True, check=True, timeout=20)
        for host in found.hospitals:
            host.run("nft", "add", "rule", "inet", "mmare", "output", "tcp", "dport", str(PORT), "accept")
        yield found


@pytest.fixture
def kit(tmp_path):
    return init_kit(tmp_path / "kit", "localhost", PORT, superlink_port=SUPERLINK_PORT)


def test_other_users_of_the_machine_cannot_call_superlink(kit):
    nobody, other = pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("www-data").pw_uid
    os.chown(kit.folder, other, -1)  # who runs the coordinator
    with coordinator_with(kit) as found:
        calls = {}
        for user in (None, other, nobody):
            with connected(found.coordinator, "127.0.0.1", SUPERLINK_PORT, 2, user) as count:
                calls[user] = count
            with connected(found.coordinator, "127.0.0.1", PORT, 1, user) as count:
                assert count == 1  # the door is for all
    assert calls == {None: 2, other: 2, nobody: 0}


def test_a_user_that_is_named_may_too(kit):
    nobody = pwd.getpwnam("nobody").pw_uid
    with (
        coordinator_with(kit, ["nobody"]) as found,
        connected(found.coordinator, "127.0.0.1", SUPERLINK_PORT, 1, nobody) as count,
    ):
        assert count == 1


def test_one_address_cannot_hold_the_door_and_another_still_gets_in(kit):
    with coordinator_with(kit) as found:
        stranger, hospital = found.hospitals
        with connected(stranger, found.coordinator.address, PORT, 3 * MOST) as count:
            assert count == MOST
            with connected(hospital, found.coordinator.address, PORT, 3) as others:
                assert others == 3

        def free_again():
            with connected(stranger, found.coordinator.address, PORT, 1) as count:
                return count == 1

        until(free_again, "its connections have ended", 30)


def test_the_command_prints_what_is_applied_and_bad_input_is_one_sentence(kit):
    assert command("mmare-server", "kit", "firewall", "--kit", kit.folder) == firewall_rules(kit)
    said = command("mmare-server", "kit", "firewall", "--kit", kit.folder, "--user", "nobody-here", expect=2)
    assert "--user is 'nobody-here', which this machine does not have" in said
    with pytest.raises(InputError, match="--user is"):
        firewall_rules(kit, ["x" * 99])


def test_rules_that_nft_does_not_take_are_an_error():
    needs_namespaces()
    with pytest.raises(RunError, match="nft does not take the rules"):
        apply_firewall("table inet {")
