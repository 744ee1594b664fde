"""Which doors a site's programs have opened on this machine: there should be none to the outside."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

import psutil

from client.doctor.findings import fine, problem, warning

if TYPE_CHECKING:
    from client.doctor.findings import Finding
    from sites.config import SiteConfig

__all__ = ["Listening", "listening", "look_at_doors"]

PROGRAMS: Final = ("mmare-site", "flower-supernode", "flower-superexec", "flwr-clientapp")
RELAY: Final = "client.relay.patched"  # a module; its role comes next on the command line


@dataclass(frozen=True)
class Listening:
    """A TCP socket that waits for others.

    Args:
        address: Of this machine.
        port: See above.
        program: Of ours, that holds it; empty where it is another's or cannot be seen.
    """

    address: IPv4Address | IPv6Address
    port: int
    program: str = ""

    @property
    def inside(self) -> bool:
        """Whether only this machine reaches it."""
        mapped = getattr(self.address, "ipv4_mapped", None)
        return (mapped or self.address).is_loopback

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)  # noqa: PLR2004 - IPv6
        return f"{host}:{self.port}" + (f" ({self.program})" if self.program else "")


def look_at_doors(site: SiteConfig) -> list[Finding]:
    """Whether anything of ours listens where other machines could reach it.

    Args:
        site: Says which ports are its own.
    """
    findings = []
    ports = {site.coordinator.runtime_port, site.metrics.port}
    ours = [each for each in listening() if each.program or each.port in ports]
    outside = [each for each in ours if not each.inside]
    watched = [each for each in outside if each.port == site.metrics.port]
    opened = [each for each in outside if each.port != site.metrics.port]
    if opened:
        findings.append(
            problem(
                "doors",
                f"open to other machines: {', '.join(map(str, opened))}",
                "stop what listens there; mmare-site start opens ports on 127.0.0.1 alone",
            )
        )
    else:
        inside = ", ".join(str(each) for each in ours if each.inside)
        said = "nothing of ours waits for other machines"
        findings.append(fine("doors", f"{said}; for this one alone: {inside}" if inside else said))
    if site.metrics.port is not None and (watched or not _loopback(site.metrics.address)):
        findings.append(
            warning(
                "doors",
                f"[metrics] address is {site.metrics.address}: others can read port {site.metrics.port}",
                "leave it at 127.0.0.1 unless this hospital's Prometheus runs elsewhere and the firewall "
                "lets only that in",
            )
        )
    return findings


def listening() -> list[Listening]:
    """TCP sockets of this machine (of this network namespace) that wait for others."""
    found = [
        Listening(ip_address(each.laddr.ip), each.laddr.port, _program(each.pid))
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr
    ]
    return sorted(found, key=lambda each: (each.port, str(each.address)))


def _program(pid: int | None) -> str:
    """Which of our programs a process runs, if this user may see it; the interpreter may stand first."""
    words: list[str] = []
    with suppress(psutil.Error):
        words = psutil.Process(pid).cmdline() if pid is not None else []
    if RELAY in words[:-1]:
        return words[words.index(RELAY) + 1]
    return next((name for name in (word.rpartition("/")[2] for word in words[:2]) if name in PROGRAMS), "")


def _loopback(address: str) -> bool:
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False
