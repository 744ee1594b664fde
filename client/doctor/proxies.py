"""The proxy of a connection, as selected by httpx, the HTTP client of Flower's SuperNode.

Browsers, curl and httpx interpret ``NO_PROXY`` differently; only the SuperNode's choice matters here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.request import getproxies

import httpx
from httpx._utils import URLPattern, get_environment_proxies  # the choice is not in its public API

from client.doctor.findings import Obstacle

__all__ = ["Proxy", "proxy_for", "unread_ranges"]

_PORTS: Final = {"http": 80, "https": 443}
_RANGE: Final = re.compile(r"[0-9a-fA-F.:]+/\d+")  # such as 10.0.0.0/8


@dataclass(frozen=True)
class Proxy:
    """A proxy; its text never contains the password."""

    variable: str  # environment variable that names it
    url: httpx.URL  # with user name and password, if any

    @property
    def host(self) -> str:
        """Host name or address."""
        return self.url.host

    @property
    def port(self) -> int:
        """Port, by default that of the scheme."""
        return self.url.port or _PORTS[self.url.scheme]

    def __str__(self) -> str:
        login = ", with a user name" if self.url.username else ""
        return f"{self.variable}: {self.host}:{self.port}{login}"


def proxy_for(scheme: str, host: str, port: int) -> Proxy | None:
    """The proxy for a connection by the environment of this process, if any; ``scheme`` is http or https.

    Raises:
        Obstacle: If httpx cannot use a variable.
    """
    found = get_environment_proxies()
    target = httpx.URL(scheme=scheme, host=host, port=port)
    try:
        patterns = sorted(map(URLPattern, found))
    except httpx.InvalidURL as error:
        advice = "Flower's SuperNode does not start with it: remove or correct the entry"
        raise Obstacle(f"NO_PROXY holds an invalid host or address ({error})", advice) from None
    pattern = next((each for each in patterns if each.matches(target)), None)
    address = None if pattern is None else found[pattern.pattern]
    if pattern is None or address is None:
        return None
    return _proxy(f"{pattern.scheme or 'all'}_proxy".upper(), address)


def unread_ranges() -> list[str]:
    """Ranges of addresses in ``NO_PROXY``, which httpx ignores; empty without a proxy."""
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
        raise Obstacle(f"{variable} names a proxy of type {url.scheme}, which cannot be used", advice)
    return Proxy(variable, url)
