"""Which proxy a connection goes through, chosen by httpx, the HTTP client that Flower's SuperNode uses.

A browser, curl and httpx read ``NO_PROXY`` in three ways; what counts here is what the SuperNode will do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.request import getproxies

import httpx
from httpx._utils import URLPattern, get_environment_proxies  # its public functions do not tell what it chose

from client.doctor.findings import Obstacle

__all__ = ["Proxy", "proxy_for", "unread_ranges"]

_PORTS: Final = {"http": 80, "https": 443}
_RANGE: Final = re.compile(r"[0-9a-fA-F.:]+/\d+")  # such as 10.0.0.0/8


@dataclass(frozen=True)
class Proxy:
    """What stands between this machine and the coordinator. Its text never holds the password.

    Args:
        variable: That names it.
        url: Its scheme, host and port, and user name and password if it wants them.
    """

    variable: str
    url: httpx.URL

    @property
    def host(self) -> str:
        """Its name or address."""
        return self.url.host

    @property
    def port(self) -> int:
        """The port it listens on, named or by default."""
        return self.url.port or _PORTS[self.url.scheme]

    def __str__(self) -> str:
        login = ", with a user name" if self.url.username else ""
        return f"{self.variable}: {self.host}:{self.port}{login}"


def proxy_for(scheme: str, host: str, port: int) -> Proxy | None:
    """The proxy that a connection goes through by the variables of this process, or none.

    Args:
        scheme: ``http`` or ``https``.
        host: To reach.
        port: To reach.

    Raises:
        Obstacle: If a variable holds what httpx cannot use.
    """
    found = get_environment_proxies()
    target = httpx.URL(scheme=scheme, host=host, port=port)
    try:
        patterns = sorted(map(URLPattern, found))
    except httpx.InvalidURL as error:
        advice = "Flower's SuperNode does not start with it: take the entry out, or correct it"
        raise Obstacle(f"NO_PROXY holds what is no host or address ({error})", advice) from None
    pattern = next((each for each in patterns if each.matches(target)), None)
    address = None if pattern is None else found[pattern.pattern]
    if pattern is None or address is None:
        return None
    return _proxy(f"{pattern.scheme or 'all'}_proxy".upper(), address)


def unread_ranges() -> list[str]:
    """Ranges of addresses in ``NO_PROXY``, which httpx does not read; none where there is no proxy."""
    found = getproxies()
    entries = [entry.strip() for entry in found.pop("no", "").split(",")]
    return [entry for entry in entries if _RANGE.fullmatch(entry)] if found.keys() & {*_PORTS, "all"} else []


def _proxy(variable: str, address: str) -> Proxy:
    advice = f"set {variable} to the address of an HTTP proxy, such as http://proxy.example.org:3128"
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        raise Obstacle(f"{variable} does not hold an address", advice) from None
    if url.scheme not in _PORTS or not url.host:
        raise Obstacle(f"{variable} names a proxy of the kind {url.scheme}, which cannot be used", advice)
    return Proxy(variable, url)
