"""A coordinator and hospitals behind firewalls as hosts of one machine: network namespaces and nftables.

::

    coordinator 10.77.0.1 ── bridge ─┬─ hospital 1, 10.77.0.11   input: dropped, but for answers
                                     ├─ hospital 2, 10.77.0.12   output: TCP 443 only
                                     └─ …

Everything is inside the namespaces; deleting them takes it away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

COORDINATOR = "10.77.0.1"
PUBLIC_PORT = 443

FIREWALL = """
table inet mmare {
  chain cut_in { }
  chain cut_out { }
  chain input {
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    jump cut_in
    ct state established,related accept
  }
  chain output {
    type filter hook output priority 0; policy drop;
    oifname "lo" accept
    jump cut_out
    ct state established,related accept
    ip daddr 10.77.0.1 tcp dport 443 accept
  }
}
"""


def needs_namespaces() -> None:
    """Skip, with the reason, where hosts cannot be made."""
    missing = [program for program in ("ip", "nft") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs the programs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if _call("ip", "netns", "add", name := f"mmare-{os.getpid()}-try").returncode:
        pytest.skip("this machine does not let network namespaces be made")
    _call("ip", "netns", "del", name)


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str
    address: str

    def inside(self, *command: str) -> tuple[str, ...]:
        """A command as it runs on this host."""
        return ("ip", "netns", "exec", self.name, *command)

    def run(self, *command: str) -> str:
        """What a command on this host prints; it must succeed."""
        done = _call(*self.inside(*command))
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def cut(self) -> None:
        """Drop every packet from and to other hosts, connections that stand included."""
        for chain in ("cut_in", "cut_out"):
            self.run("nft", "add", "rule", "inet", "mmare", chain, "drop")

    def mend(self) -> None:
        """Let packets through again."""
        for chain in ("cut_in", "cut_out"):
            self.run("nft", "flush", "chain", "inet", "mmare", chain)


@dataclass(frozen=True)
class Network:
    """Who is there."""

    coordinator: Host
    hospitals: tuple[Host, ...]


@contextmanager
def network(hospitals: int) -> Iterator[Network]:
    """Hosts that can reach one another as their firewalls allow."""
    prefix = f"mmare-{os.getpid()}"
    coordinator = Host(f"{prefix}-c", COORDINATOR)
    others = tuple(Host(f"{prefix}-h{index}", f"10.77.0.{10 + index}") for index in range(1, hospitals + 1))
    try:
        for host in (coordinator, *others):
            _made("ip", "netns", "add", host.name)
            host.run("ip", "link", "set", "lo", "up")
        coordinator.run("ip", "link", "add", "street", "type", "bridge")
        coordinator.run("ip", "address", "add", f"{COORDINATOR}/24", "dev", "street")
        coordinator.run("ip", "link", "set", "street", "up")
        for index, host in enumerate(others, start=1):
            port = f"door{index}"
            coordinator.run(
                "ip", "link", "add", port, "type", "veth", "peer", "name", "way", "netns", host.name
            )
            coordinator.run("ip", "link", "set", port, "master", "street", "up")
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "way")
            host.run("ip", "link", "set", "way", "up")
            subprocess.run(host.inside("nft", "-f", "-"), input=FIREWALL, text=True, check=True, timeout=10)
        yield Network(coordinator, others)
    finally:
        for host in (coordinator, *others):
            _call("ip", "netns", "del", host.name)


def _made(*command: str) -> None:
    done = _call(*command)
    assert done.returncode == 0, done.stderr


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def open_ports(host: Host, of: Host, ports: Sequence[int], timeout_s: float = 0.3) -> list[int]:
    """TCP ports of one host that answer another, be it by a refusal."""
    script = (
        "import socket, sys\n"
        "for port in map(int, sys.argv[2].split(',')):\n"
        "    try:\n"
        f"        socket.create_connection((sys.argv[1], port), timeout={timeout_s}).close()\n"
        "    except TimeoutError:\n"
        "        continue\n"
        "    except OSError as error:\n"
        "        if error.errno == 113: continue\n"
        "    print(port)\n"
    )
    return [
        int(line) for line in host.run("python3", "-c", script, of.address, ",".join(map(str, ports))).split()
    ]
