"""Which doors a site's programs have opened on this machine: there should be none to the outside."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.doctor.findings import fine, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.doctor.findings import Finding
    from sites.config import SiteConfig

__all__ = ["Listening", "listening", "look_at_doors"]

PROC: Final = Path("/proc")
PROGRAMS: Final = ("mmare-site", "flower-supernode", "flower-superexec", "flwr-clientapp")
RELAY: Final = "client.relay.patched"  # a module; its role comes next on the command line
_LISTENS: Final = "0A"  # state of a TCP socket in /proc/net/tcp


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
    holders = dict(_holders())
    found = []
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (PROC / "net" / name).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS:
                    address, _, port = fields[1].partition(":")
                    found.append(Listening(_address(address), int(port, 16), holders.get(fields[9], "")))
    return sorted(found, key=lambda each: (each.port, str(each.address)))


def _address(text: str) -> IPv4Address | IPv6Address:
    """An address as the kernel writes it: hexadecimal, in words of the machine's byte order.

    Example:
        >>> _address("0100007F")
        IPv4Address('127.0.0.1')
    """
    words = (text[start : start + 8] for start in range(0, len(text), 8))
    return ip_address(b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words))


def _holders() -> Iterator[tuple[str, str]]:
    """Inode of every socket of our programs that this user may see, and the program."""
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            program = _program((process / "cmdline").read_bytes())
            if program:
                for link in (process / "fd").iterdir():
                    with suppress(OSError):
                        target = str(link.readlink())
                        if target.startswith("socket:["):
                            yield target[len("socket:[") : -1], program


def _program(command: bytes) -> str:
    """Which of our programs a command line is of, if any; the interpreter may stand before it."""
    words = command.decode("utf-8", "replace").split("\0")
    if RELAY in words[:-2]:
        return words[words.index(RELAY) + 1]
    return next((name for name in (word.rpartition("/")[2] for word in words[:2]) if name in PROGRAMS), "")


def _loopback(address: str) -> bool:
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False
