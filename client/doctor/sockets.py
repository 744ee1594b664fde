"""Check that a site's programs listen on no port that other machines can reach."""

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

__all__ = ["Listening", "check_ports", "listening"]

PROGRAMS: Final = ("mmare-site", "flower-supernode", "flower-superexec", "flwr-clientapp")
RELAY: Final = "client.relay.patched"  # module; the next argument is its role


@dataclass(frozen=True)
class Listening:
    """A listening TCP socket."""

    address: IPv4Address | IPv6Address
    port: int
    program: str = ""  # of ours; empty if it is another or not visible

    @property
    def inside(self) -> bool:
        """Whether only this machine can reach it."""
        mapped = getattr(self.address, "ipv4_mapped", None)
        return (mapped or self.address).is_loopback

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)  # noqa: PLR2004 - IPv6
        return f"{host}:{self.port}" + (f" ({self.program})" if self.program else "")


def check_ports(site: SiteConfig) -> list[Finding]:
    """Check which of the site's ports and programs other machines can reach."""
    findings = []
    ports = {site.coordinator.runtime_port, site.metrics.port}
    ours = [each for each in listening() if each.program or each.port in ports]
    outside = [each for each in ours if not each.inside]
    watched = [each for each in outside if each.port == site.metrics.port]
    opened = [each for each in outside if each.port != site.metrics.port]
    if opened:
        found = f"open to other machines: {', '.join(map(str, opened))}"
        advice = "stop what listens there; mmare-site start opens ports on 127.0.0.1 only"
        findings.append(problem("ports", found, advice))
    else:
        inside = ", ".join(str(each) for each in ours if each.inside)
        found = "none of our programs listens for other machines"
        findings.append(fine("ports", f"{found}; only for this one: {inside}" if inside else found))
    if site.metrics.port is not None and (watched or not _loopback(site.metrics.address)):
        found = f"[metrics] address is {site.metrics.address}: others can read port {site.metrics.port}"
        advice = (
            "use 127.0.0.1 unless this hospital's Prometheus runs elsewhere and the firewall admits only it"
        )
        findings.append(warning("ports", found, advice))
    return findings


def listening() -> list[Listening]:
    """Listening TCP sockets of this machine (this network namespace)."""
    found = [
        Listening(ip_address(each.laddr.ip), each.laddr.port, _program(each.pid))
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr
    ]
    return sorted(found, key=lambda each: (each.port, str(each.address)))


def _program(pid: int | None) -> str:
    """Which of our programs a process runs, directly or by an interpreter; empty if not visible."""
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
