"""The way from a hospital to the coordinator, one step at a time, each with its own reasons to fail.

::

    name ─► TCP (or a proxy's CONNECT) ─► TLS with the federation's authority ─► one HTTP request
"""

from __future__ import annotations

import errno
import http.client
import re
import socket
import ssl
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from client.doctor.background import in_background
from client.doctor.certificates import Certificate, read_authority, read_certificate, why_refused
from client.doctor.findings import Obstacle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from client.doctor.proxies import Proxy

__all__ = ["Allowance", "Answer", "Secured", "Way", "addresses_of", "no_connection", "no_tunnel", "reached"]

TOTAL_S: Final = 20.0  # that all steps together may take
STEP_S: Final = 5.0  # that one step may take
ADDRESSES_S: Final = 10.0  # that all addresses of a name may take
MOST_BYTES: Final = 1 << 16  # of an answer that is read
_PROTOBUF: Final = {"content-type": "application/protobuf", "accept": "application/protobuf"}
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")


class Allowance:
    """How long all steps together may take.

    Args:
        total_s: From now on.
    """

    def __init__(self, total_s: float) -> None:
        self._end = time.monotonic() + total_s

    def step_s(self, most_s: float | None = None) -> float:
        """For the next step.

        Args:
            most_s: That it may take; by default what one step may.

        Raises:
            TimeoutError: If nothing is left.
        """
        left = min(self._end - time.monotonic(), STEP_S if most_s is None else most_s)
        if left <= 0:
            raise TimeoutError
        return left


@dataclass(frozen=True)
class Answer:
    """An HTTP answer.

    Args:
        status: Its number.
        headers: By name in lower case.
        body: Its beginning.
        sent: When the request went out, by this machine's clock, seconds since 1970.
        received: When the answer came.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent: float
    received: float


@dataclass(frozen=True)
class Secured:
    """A connection whose other end is the coordinator.

    Args:
        socket: TLS.
        certificate: Of the coordinator.
    """

    socket: ssl.SSLSocket
    certificate: Certificate

    def request(self, method: str, path: str, target: str) -> Answer:
        """Ask once, with an empty body.

        Args:
            method: Of HTTP.
            path: On the coordinator.
            target: Its host and port.

        Raises:
            OSError: If the connection breaks or no answer comes.
            http.client.HTTPException: If the answer is not HTTP.
        """
        headers = {"host": target, "connection": "close", "content-length": "0", **_PROTOBUF}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        sent = time.time()
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        with http.client.HTTPResponse(self.socket, method=method) as response:
            response.begin()
            received = time.time()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read(MOST_BYTES), sent, received)


@dataclass(frozen=True)
class Way:
    """To one coordinator.

    Args:
        host: Its name or address.
        port: Its port.
        ca: PEM file of the federation's authority.
        proxy: That connections go through, if any.
        address: Of the proxy where there is one, else of the coordinator; none to look it up.
        allowance: For all steps together.
    """

    host: str
    port: int
    ca: Path
    proxy: Proxy | None = None
    address: str | None = None
    allowance: Allowance = field(default_factory=lambda: Allowance(TOTAL_S))

    @property
    def first(self) -> tuple[str, int]:
        """Whom this machine connects to: the proxy where there is one."""
        return (self.host, self.port) if self.proxy is None else (self.proxy.host, self.proxy.port)

    @property
    def target(self) -> str:
        """The coordinator as HTTP names it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """A TCP connection, through the proxy where there is one.

        Raises:
            Obstacle: If there is none to be had.
        """
        host, port = self.first
        address = (self.address or host, port)
        try:
            link = socket.create_connection(address, timeout=self.allowance.step_s())
        except OSError as error:
            raise no_connection(error, host, port, proxied=self.proxy is not None) from None
        with link:
            if self.proxy is not None:
                self._tunnel(link, self.proxy)
            yield link

    @contextmanager
    def secured(self) -> Iterator[Secured]:
        """A TLS connection to the coordinator.

        Raises:
            Obstacle: If there is none to be had, or the other end is not the coordinator.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as Flower's client makes it
        try:
            context.load_verify_locations(cafile=self.ca)
        except OSError:
            raise Obstacle(
                f"{self.ca} holds no certificate that the coordinator's could be compared with",
                "install the coordinator's bundle again with mmare-site kit install",
            ) from None
        with self.connected() as link:
            try:
                link.settimeout(self.allowance.step_s())
                wrapped = context.wrap_socket(link, server_hostname=self.host)
            except ssl.SSLCertVerificationError as error:
                raise why_refused(error, self._shown(), read_authority(self.ca), self.host) from None
            except OSError as error:
                raise _no_handshake(error, self.host) from None
            with wrapped:
                yield Secured(wrapped, read_certificate(wrapped.getpeercert(binary_form=True) or b""))

    def _shown(self) -> Certificate:
        """The certificate that the other end shows; nothing is sent to it."""
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE
        with self.connected() as link:
            try:
                link.settimeout(self.allowance.step_s())
                with blind.wrap_socket(link, server_hostname=self.host) as wrapped:
                    return read_certificate(wrapped.getpeercert(binary_form=True) or b"")
            except (OSError, ValueError) as error:
                raise Obstacle(
                    f"the certificate is not accepted, and cannot be read either ({error})",
                    "ask who runs the firewall of this hospital what answers on that address",
                ) from None

    def _tunnel(self, link: socket.socket, proxy: Proxy) -> None:
        """Have the proxy connect to the coordinator.

        Raises:
            Obstacle: If it does not.
        """
        if proxy.scheme != "http":
            raise Obstacle(
                f"{proxy} is reached over TLS, which is not tried here",
                f"if the proxy also takes plain connections, set {proxy.variable} to http://…",
            )
        target = self.target
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        try:
            link.settimeout(self.allowance.step_s())
            link.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            head = _read_head(link)
        except OSError as error:
            raise Obstacle(
                f"{proxy} accepts the connection but does not answer ({_reason(error)})",
                "ask who runs the proxy whether this machine may use it",
            ) from None
        found = _STATUS_LINE.match(head)
        if found is None:
            raise Obstacle(f"{proxy} does not answer as a proxy", f"check the address in {proxy.variable}")
        status = int(found[1])
        if status != http.client.OK:
            raise no_tunnel(status, head.decode("latin-1").lower(), proxy, target)


def addresses_of(host: str, allowance: Allowance) -> list[str]:
    """Addresses of a name, in the order in which they are tried.

    Raises:
        Obstacle: If the name has none, or nobody answers.
    """
    asked = in_background(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    try:
        return list(dict.fromkeys(str(entry[4][0]) for entry in asked.result(timeout=allowance.step_s())))
    except TimeoutError:
        raise Obstacle(
            f"no name server answers for {host}", "check the name servers of this machine (/etc/resolv.conf)"
        ) from None
    except (OSError, UnicodeError) as error:
        raise Obstacle(
            f"{host} has no address ({_reason(error)})",
            "check the name with the coordinator, and whether the name servers here know outside names",
        ) from None


def reached(way: Way, addresses: list[str]) -> dict[str, Obstacle | None]:
    """What becomes of a TCP connection to each address.

    Args:
        way: To the coordinator; of a proxy only the connection to itself is tried.
        addresses: Of the first host on it.
    """
    host, port = way.first
    each_s = min(STEP_S, ADDRESSES_S / len(addresses))
    found: dict[str, Obstacle | None] = {}
    for address in addresses:
        try:
            socket.create_connection((address, port), timeout=way.allowance.step_s(each_s)).close()
            found[address] = None
        except OSError as error:
            found[address] = no_connection(error, host, port, proxied=way.proxy is not None)
    return found


def no_connection(error: OSError, host: str, port: int, *, proxied: bool) -> Obstacle:
    """Why there is no TCP connection, in words."""
    ask = f"ask who runs this hospital's firewall to let this machine out to {host}, TCP port {port}"
    if isinstance(error, TimeoutError):
        return Obstacle(f"no answer from {host}:{port}: what is sent there vanishes", ask)
    if isinstance(error, ConnectionRefusedError):
        whose = f"check the port of the proxy with who runs it, or {ask}"
        return Obstacle(
            f"{host}:{port} refuses the connection",
            whose
            if proxied
            else f"ask the coordinator whether mmare-server start is running; if it is, {ask}",
        )
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM):
        return Obstacle(f"there is no way from here to {host}:{port} ({_reason(error)})", ask)
    return Obstacle(f"no connection to {host}:{port} ({_reason(error)})", ask)


def no_tunnel(status: int, head: str, proxy: Proxy, target: str) -> Obstacle:
    """Why a proxy did not connect, in words."""
    if status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        offered = re.findall(r"proxy-authenticate:\s*([\w-]+)", head)
        if offered and "basic" not in offered:
            return Obstacle(
                f"{proxy} answers 407: it wants a login by {', '.join(offered)}, which Flower cannot do",
                f"ask who runs the proxy to let this machine through to {target} without a login",
            )
        if proxy.user is None:
            return Obstacle(
                f"{proxy} answers 407: it asks for a user name and a password",
                f"put them into {proxy.variable}, as http://USER:PASSWORD@{proxy.host}:{proxy.port}",
            )
        return Obstacle(
            f"{proxy} answers 407: it does not accept the user name and password",
            f"correct them in {proxy.variable}; signs such as @ and : in them are written as %40 and %3A",
        )
    if status in (http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE, http.client.GATEWAY_TIMEOUT):
        return Obstacle(
            f"{proxy} answers {status}: it does not reach {target} itself",
            f"check the address with the coordinator, and ask who runs the proxy whether {target} is allowed",
        )
    return Obstacle(
        f"{proxy} answers {status}: it does not connect to {target}",
        f"ask who runs the proxy to allow CONNECT to {target}",
    )


def _no_handshake(error: OSError, host: str) -> Obstacle:
    firewall = f"ask who runs this hospital's firewall whether it inspects TLS, and to leave {host} alone"
    if isinstance(error, TimeoutError):
        return Obstacle("the connection opens, but TLS gets no answer", firewall)
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return Obstacle(
            "what answers there does not speak TLS",
            "check address and port with the coordinator; a firewall may also answer in its place",
        )
    return Obstacle(f"TLS breaks off ({_reason(error)})", firewall)


def _read_head(link: socket.socket) -> bytes:
    """The head of a proxy's answer.

    Raises:
        OSError: If it does not come.
    """
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MOST_BYTES:
        chunk = link.recv(4096)
        if not chunk:
            break
        head += chunk
    if not head:
        raise ConnectionResetError(errno.ECONNRESET, "it closes the connection")
    return head


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
