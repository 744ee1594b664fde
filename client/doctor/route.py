"""The connection from a hospital to the coordinator, step by step, with an explanation of each failure.

::

    name ─► TCP (or a proxy's CONNECT) ─► TLS with the federation's authority ─► one HTTP request

Uses httpx, as Flower's SuperNode does; its request extension ``trace`` reports the step that failed.
"""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpcore
import httpx

from client.doctor.background import in_background
from client.doctor.certificates import Certificate, certificate_obstacle, read_authority, read_certificate
from client.doctor.findings import Obstacle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from client.doctor.proxies import Proxy
    from mmare.wire.joining import Coordinator

__all__ = ["NOT_REACHED", "TOTAL_S", "Answer", "Route", "Trace", "resolve", "try_addresses"]

TOTAL_S: Final = 20.0  # for all steps together
STEP_S: Final = 5.0  # for one step
ADDRESSES_S: Final = 10.0  # for all addresses of a name
MOST_BYTES: Final = 1 << 16  # read of an answer
NOT_REACHED: Final = (  # of a proxy that does not reach the program behind it
    http.client.BAD_GATEWAY,
    http.client.SERVICE_UNAVAILABLE,
    http.client.GATEWAY_TIMEOUT,
)
KEY_HEADER: Final = "flwr-public-key"
_HEADERS: Final = {
    "accept": "application/protobuf",
    "accept-encoding": "identity",
    "connection": "close",
    "content-type": "application/protobuf",
}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes  # up to MOST_BYTES
    sent: float  # Unix time of the request
    received: float


class _Enough(Exception):  # noqa: N818 - ends a request after the handshake
    pass


class Trace:
    """Progress of a request; httpx calls it for each event.

    Args:
        handshake_only: Stop with `_Enough` after the TLS handshake, before anything is sent.
    """

    tls: str  # version; like the certificate, set after the handshake
    certificate: bytes  # of the server, DER
    head: tuple[int, Sequence[tuple[bytes, bytes]]] | None = None  # status and headers of the last answer
    cause: BaseException | None = None  # of the failure
    sent: float
    received: float

    def __init__(self, *, handshake_only: bool = False) -> None:
        self.at = "connection"  # current step; then tunnel (through a proxy), TLS, coordinator
        self._handshake_only = handshake_only

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """Record an event of httpcore, named ``part.step.started``, ``.complete`` or ``.failed``."""
        if "exception" in info:
            self.cause = info["exception"].__cause__ or info["exception"]  # httpcore drops the cause later
        match event.partition(".")[2]:
            case "connect_tcp.complete":
                self.at = "tunnel"
            case "start_tls.started":
                self.at = "TLS"
            case "start_tls.complete":
                link = info["return_value"].get_extra_info("socket")
                self.tls, self.certificate = link.version(), link.getpeercert(binary_form=True)
                self.at = "coordinator"
                if self._handshake_only:
                    link.close()
                    raise _Enough
            case "send_request_headers.started":
                self.sent = time.time()
            case "receive_response_headers.complete":
                self.received = time.time()
                _, status, _, headers = info["return_value"]
                self.head = status, headers


@dataclass(frozen=True)
class Route:
    """A route to a coordinator."""

    coordinator: Coordinator
    ca: Path  # PEM file of the federation's authority
    proxy: Proxy | None = None
    address: str | None = None  # of the first hop, None to look it up
    key: str = ""  # of the site, as its SuperNode names it; without one the coordinator reads no body
    end: float = field(default_factory=lambda: time.monotonic() + TOTAL_S)  # deadline, by time.monotonic

    @property
    def first(self) -> tuple[str, int]:
        """First hop, host and port: the proxy or else the coordinator."""
        there = self.coordinator if self.proxy is None else self.proxy
        return there.host, there.port

    def ask(self, method: str, path: str, trace: Trace, content: bytes = b"") -> Answer:
        """Send one request on a new connection; ``trace`` records its progress.

        Raises:
            Obstacle: If there is no answer or the server is not the coordinator.
        """
        if self.proxy is not None and self.proxy.url.scheme != "http":
            trace.at = "tunnel"
            raise Obstacle(
                f"{self.proxy} is reached over TLS, which this check does not support",
                f"if the proxy also accepts plain connections, set {self.proxy.variable} to http://…",
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as Flower's client makes it
        try:
            context.load_verify_locations(cafile=self.ca)
        except OSError:
            trace.at = "TLS"
            raise Obstacle(
                f"{self.ca} holds no certificate to verify the coordinator's with",
                "install the coordinator's bundle again with mmare-site kit install",
            ) from None
        try:
            return self._send(method, path, context, trace, content)
        except httpx.TransportError:
            raise self._obstacle(trace, f"{method} {path}") from None

    def _send(
        self, method: str, path: str, context: ssl.SSLContext, trace: Trace, content: bytes = b""
    ) -> Answer:
        host, proxy = self.coordinator.host, None
        if self.proxy is not None:
            proxy = httpx.Proxy(self.proxy.url.copy_with(host=self.address or self.proxy.host))
        elif self.address is not None:
            host = self.address
        url = httpx.URL(scheme="https", host=host, port=self.coordinator.port, path=path)
        headers = {"host": self.coordinator.address, **_HEADERS}
        if self.key:
            headers[KEY_HEADER] = self.key
        extensions = {"trace": trace, "sni_hostname": self.coordinator.host}
        timeout = left_s(self.end, STEP_S)
        with (
            httpx.Client(verify=context, proxy=proxy, timeout=timeout, trust_env=False) as client,
            client.stream(method, url, content=content, headers=headers, extensions=extensions) as response,
        ):
            body = next(response.iter_raw(MOST_BYTES), b"")
            return Answer(response.status_code, dict(response.headers), body, trace.sent, trace.received)

    def _obstacle(self, trace: Trace, question: str) -> Obstacle:
        """Why a request failed."""
        cause = trace.cause
        if trace.at == "connection" and isinstance(cause, OSError):
            return no_connection(cause, *self.first, proxied=self.proxy is not None)
        if trace.at == "tunnel" and self.proxy is not None:
            return _no_tunnel(trace, self.proxy, self.coordinator.address)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return certificate_obstacle(cause, self._shown(), read_authority(self.ca), self.coordinator.host)
        if trace.at == "TLS":
            return _no_handshake(cause, self.coordinator.host)
        return Obstacle(
            f"TLS works, but {question} gets no answer ({type(cause).__name__})",
            "ask the coordinator whether mmare-server start is running, and to check its logs",
        )

    def _shown(self) -> Certificate:
        """The server's certificate, unverified; no request is sent."""
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        trace = Trace(handshake_only=True)
        try:
            with suppress(_Enough):
                self._send("GET", "/", unverified, trace)
            return read_certificate(trace.certificate)
        except (httpx.TransportError, ValueError) as error:
            raise Obstacle(
                f"the certificate is rejected and cannot be read ({error})",
                "ask this hospital's firewall administrator what answers at that address",
            ) from None


def left_s(end: float, most_s: float) -> float:
    """Time for the next step, at most ``most_s``, before the deadline ``end`` of `time.monotonic`."""
    return max(0.001, min(end - time.monotonic(), most_s))


def resolve(host: str, end: float) -> list[str]:
    """Addresses of a host name, in the order of connection attempts; raises `Obstacle` if there are none."""
    lookup = in_background(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    try:
        return list(dict.fromkeys(str(entry[4][0]) for entry in lookup.result(timeout=left_s(end, STEP_S))))
    except TimeoutError:
        raise Obstacle(
            f"no name server answers for {host}", "check the name servers of this machine (/etc/resolv.conf)"
        ) from None
    except (OSError, UnicodeError) as error:
        raise Obstacle(
            f"{host} has no address ({_reason(error)})",
            "check the name with the coordinator, and whether the name servers here resolve external names",
        ) from None


def try_addresses(route: Route, addresses: list[str]) -> dict[str, Obstacle | None]:
    """Try a TCP connection to each address of the first hop; None for those that answer."""
    host, port = route.first
    each_s = min(STEP_S, ADDRESSES_S / len(addresses))
    found: dict[str, Obstacle | None] = {}
    for address in addresses:
        try:
            socket.create_connection((address, port), timeout=left_s(route.end, each_s)).close()
            found[address] = None
        except OSError as error:
            found[address] = no_connection(error, host, port, proxied=route.proxy is not None)
    return found


def no_connection(error: OSError, host: str, port: int, *, proxied: bool) -> Obstacle:
    """Why a TCP connection failed."""
    ask = f"ask this hospital's firewall administrator to allow this machine to reach {host}, TCP port {port}"
    if isinstance(error, TimeoutError):
        return Obstacle(f"no answer from {host}:{port}: packets are dropped", ask)
    if isinstance(error, ConnectionRefusedError):
        advice = f"ask the coordinator whether mmare-server start is running; if it is, {ask}"
        if proxied:
            advice = f"check the port of the proxy with its administrator, or {ask}"
        return Obstacle(f"{host}:{port} refuses the connection", advice)
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM):
        return Obstacle(f"no route to {host}:{port} ({_reason(error)})", ask)
    return Obstacle(f"no connection to {host}:{port} ({_reason(error)})", ask)


def _no_tunnel(trace: Trace, proxy: Proxy, target: str) -> Obstacle:
    """Why a proxy did not open a tunnel."""
    cause = trace.cause
    if trace.head is not None:
        return _refused(*trace.head, proxy, target)
    if isinstance(cause, OSError | httpcore.RemoteProtocolError):  # the latter: closed without an answer
        return Obstacle(
            f"{proxy} accepts the connection but does not answer ({_reason(cause)})",
            "ask the proxy's administrator whether this machine may use it",
        )
    return Obstacle(f"{proxy} does not answer as a proxy", f"check the address in {proxy.variable}")


def _refused(status: int, headers: Sequence[tuple[bytes, bytes]], proxy: Proxy, target: str) -> Obstacle:
    """Explain a proxy's answer to CONNECT."""
    if status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        values = [value.decode("latin-1") for name, value in headers if name.lower() == b"proxy-authenticate"]
        offered = [value.split()[0].lower() for value in values if value.strip()]
        if offered and "basic" not in offered:
            return Obstacle(
                f"{proxy} answers 407: it requires a login by {', '.join(offered)}, unsupported by Flower",
                f"ask the proxy's administrator to allow this machine to reach {target} without a login",
            )
        if not proxy.url.username:
            return Obstacle(
                f"{proxy} answers 407: it asks for a user name and a password",
                f"set them in {proxy.variable}, as http://USER:PASSWORD@{proxy.host}:{proxy.port}",
            )
        return Obstacle(
            f"{proxy} answers 407: it does not accept the user name and password",
            f"correct them in {proxy.variable}; write characters such as @ and : as %40 and %3A",
        )
    if status in NOT_REACHED:
        return Obstacle(
            f"{proxy} answers {status}: it does not reach {target} itself",
            "check the address with the coordinator, and with the proxy's administrator whether "
            f"{target} is allowed",
        )
    return Obstacle(
        f"{proxy} answers {status}: it does not connect to {target}",
        f"ask the proxy's administrator to allow CONNECT to {target}",
    )


def _no_handshake(error: BaseException | None, host: str) -> Obstacle:
    firewall = f"ask this hospital's firewall administrator whether it inspects TLS, and to exempt {host}"
    if isinstance(error, TimeoutError):
        return Obstacle("the connection opens, but the TLS handshake gets no answer", firewall)
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return Obstacle(
            "the program that answers does not speak TLS",
            "check address and port with the coordinator; a firewall may also answer in its place",
        )
    return Obstacle(f"the TLS handshake fails ({_reason(error)})", firewall)


def _reason(error: BaseException | None) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
