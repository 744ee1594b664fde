"""Which proxy a connection goes through, decided as Flower's HTTP client (httpx) decides it.

A browser, curl and httpx read ``NO_PROXY`` in three ways; what counts here is what the SuperNode will do.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from client.doctor.findings import Obstacle

__all__ = ["Proxy", "Surroundings", "surroundings"]

HTTPS_PORT: Final = 443
_PORTS: Final = {"http": 80, "https": HTTPS_PORT}
_RANGE: Final = re.compile(r"[0-9a-fA-F.:]+/\d+")  # such as 10.0.0.0/8


@dataclass(frozen=True)
class Proxy:
    """What stands between this machine and the way out. Its text never holds the password.

    Args:
        variable: That names it.
        scheme: Of the connection to it.
        host: Its name or address.
        port: Its port.
        user: To log in with; none where it asks for none.
        password: See above.
    """

    variable: str
    scheme: str
    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        login = ", with a user name" if self.user is not None else ""
        return f"{self.variable}: {self.host}:{self.port}{login}"

    @property
    def authorization(self) -> str | None:
        """The header ``Proxy-Authorization``, as httpx sends it."""
        if self.user is None:
            return None
        pair = f"{self.user}:{self.password or ''}".encode()
        return f"Basic {base64.b64encode(pair).decode('ascii')}"


@dataclass(frozen=True)
class Surroundings:
    """What the environment says of proxies.

    Args:
        proxies: Address by scheme: ``http``, ``https``, ``all``.
        exempt: Entries of ``NO_PROXY``.
    """

    proxies: Mapping[str, str]
    exempt: tuple[str, ...] = ()

    def choose(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy that a connection goes through, or none.

        Args:
            scheme: ``http`` or ``https``.
            host: To reach.
            port: To reach.

        Raises:
            Obstacle: If the variable that decides holds no address of a proxy.

        Example:
            >>> around = Surroundings({"https": "http://proxy:3128"}, (".lan", "127.0.0.1"))
            >>> print(around.choose("https", "fed.example.org", 443))
            HTTPS_PROXY: proxy:3128
            >>> around.choose("https", "fed.lan", 443), around.choose("http", "fed.example.org", 80)
            (None, None)
        """
        named = scheme if self.proxies.get(scheme) else "all"
        address = self.proxies.get(named)
        if not address or "*" in self.exempt:
            return None
        if any(_covers(entry, scheme, host, port) for entry in self.exempt):
            return None
        return _proxy(f"{named.upper()}_PROXY", address)

    @property
    def ranges(self) -> tuple[str, ...]:
        """Entries of ``NO_PROXY`` that are ranges of addresses, which Flower's client does not read."""
        return tuple(entry for entry in self.exempt if _RANGE.fullmatch(entry))


def surroundings() -> Surroundings:
    """What the environment of this process says."""
    found = getproxies()
    exempt = tuple(entry for each in found.pop("no", "").split(",") if (entry := each.strip()))
    return Surroundings(
        {scheme: found[scheme] for scheme in ("http", "https", "all") if scheme in found}, exempt
    )


def _covers(entry: str, scheme: str, host: str, port: int) -> bool:
    """Whether one entry of ``NO_PROXY`` is about a host."""
    entry, host = entry.lower(), host.lower()
    if "://" in entry:
        parts = urlsplit(entry)
        same = parts.scheme in (scheme, "all") and parts.hostname in (host, None)
        return same and parts.port in (None, port)
    if _RANGE.fullmatch(entry) or _is_address(entry) or entry == "localhost":
        return entry.partition("/")[0] == host
    name, _, wanted = entry.partition(":")
    if wanted and (wanted != str(port) or port == _PORTS[scheme]):  # httpx forgets a scheme's own port
        return False
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _proxy(variable: str, address: str) -> Proxy:
    """What a variable names.

    Raises:
        Obstacle: If Flower's client could not use it.
    """
    advice = f"set {variable} to the address of an HTTP proxy, such as http://proxy.example.org:3128"
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise Obstacle(f"{variable} does not hold an address", advice) from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise Obstacle(f"{variable} names a proxy of the kind {parts.scheme}, which cannot be used", advice)
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return Proxy(variable, parts.scheme, parts.hostname, port, user, password)
