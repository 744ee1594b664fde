"""The way from a hospital to the coordinator, one step at a time, each with its own reasons to fail.

::

    name ─► TCP (or a proxy's CONNECT) ─► TLS with the federation's authority ─► one HTTP request

httpx goes it, as in Flower's SuperNode; its request extension ``trace`` says in which step it failed.
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
from client.doctor.certificates import Certificate, read_authority, read_certificate, why_refused
from client.doctor.findings import Obstacle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from client.doctor.proxies import Proxy
    from mmare.wire.joining import Coordinator

__all__ = ["NOT_REACHED", "TOTAL_S", "Answer", "Steps", "Way", "addresses_of", "reached"]

TOTAL_S: Final = 20.0  # that all steps together may take
STEP_S: Final = 5.0  # that one step may take
ADDRESSES_S: Final = 10.0  # that all addresses of a name may take
MOST_BYTES: Final = 1 << 16  # of an answer that is read
NOT_REACHED: Final = (  # what a proxy answers that does not reach the program behind it
    http.client.BAD_GATEWAY,
    http.client.SERVICE_UNAVAILABLE,
    http.client.GATEWAY_TIMEOUT,
)
_HEADERS: Final = {
    "accept": "application/protobuf",
    "accept-encoding": "identity",
    "connection": "close",
    "content-type": "application/protobuf",
}


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


class _Enough(Exception):  # noqa: N818 - ends a request of which only the handshake was wanted
    pass


class Steps:
    """How far a request came; httpx calls it for each event of the request.

    Args:
        handshake_only: Whether to break off with `_Enough` once TLS is there, before anything is asked.
    """

    tls: str  # version; this and the next are there once TLS is
    certificate: bytes  # of the other end, DER
    head: tuple[int, Sequence[tuple[bytes, bytes]]] | None = None  # status and headers of the last answer
    cause: BaseException | None = None  # of the failure
    sent: float
    received: float

    def __init__(self, *, handshake_only: bool = False) -> None:
        self.at = "connection"  # the step under way: then way out (through a proxy), TLS, coordinator
        self._handshake_only = handshake_only

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """Note an event: httpcore's part, its step, and whether that started, is complete or failed."""
        if "exception" in info:
            self.cause = info["exception"].__cause__ or info["exception"]  # later, httpcore drops the cause
        match event.partition(".")[2]:
            case "connect_tcp.complete":
                self.at = "way out"
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
class Way:
    """To one coordinator.

    Args:
        coordinator: To reach.
        ca: PEM file of the federation's authority.
        proxy: That connections go through, if any.
        address: Of the proxy where there is one, else of the coordinator; none to look it up.
        end: When all steps must be over, by `time.monotonic`.
    """

    coordinator: Coordinator
    ca: Path
    proxy: Proxy | None = None
    address: str | None = None
    end: float = field(default_factory=lambda: time.monotonic() + TOTAL_S)

    @property
    def first(self) -> tuple[str, int]:
        """Whom this machine connects to: the proxy where there is one."""
        there = self.coordinator if self.proxy is None else self.proxy
        return there.host, there.port

    def ask(self, method: str, path: str, steps: Steps) -> Answer:
        """Ask once, with an empty body, on a connection of its own.

        Args:
            method: Of HTTP.
            path: On the coordinator.
            steps: Says afterwards how far it came.

        Raises:
            Obstacle: If no answer comes, or the other end is not the coordinator.
        """
        if self.proxy is not None and self.proxy.url.scheme != "http":
            steps.at = "way out"
            raise Obstacle(
                f"{self.proxy} is reached over TLS, which is not tried here",
                f"if the proxy also takes plain connections, set {self.proxy.variable} to http://…",
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as Flower's client makes it
        try:
            context.load_verify_locations(cafile=self.ca)
        except OSError:
            steps.at = "TLS"
            raise Obstacle(
                f"{self.ca} holds no certificate that the coordinator's could be compared with",
                "install the coordinator's bundle again with mmare-site kit install",
            ) from None
        try:
            return self._send(method, path, context, steps)
        except httpx.TransportError:
            raise self._obstacle(steps, f"{method} {path}") from None

    def _send(self, method: str, path: str, context: ssl.SSLContext, steps: Steps) -> Answer:
        host, proxy = self.coordinator.host, None
        if self.proxy is not None:
            proxy = httpx.Proxy(self.proxy.url.copy_with(host=self.address or self.proxy.host))
        elif self.address is not None:
            host = self.address
        url = httpx.URL(scheme="https", host=host, port=self.coordinator.port, path=path)
        headers = {"host": self.coordinator.address, **_HEADERS}
        extensions = {"trace": steps, "sni_hostname": self.coordinator.host}
        timeout = left_s(self.end, STEP_S)
        with (
            httpx.Client(verify=context, proxy=proxy, timeout=timeout, trust_env=False) as client,
            client.stream(method, url, headers=headers, extensions=extensions) as response,
        ):
            body = next(response.iter_raw(MOST_BYTES), b"")
            return Answer(response.status_code, dict(response.headers), body, steps.sent, steps.received)

    def _obstacle(self, steps: Steps, question: str) -> Obstacle:
        """Why a request failed, in words."""
        cause = steps.cause
        if steps.at == "connection" and isinstance(cause, OSError):
            return no_connection(cause, *self.first, proxied=self.proxy is not None)
        if steps.at == "way out" and self.proxy is not None:
            return _no_tunnel(steps, self.proxy, self.coordinator.address)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return why_refused(cause, self._shown(), read_authority(self.ca), self.coordinator.host)
        if steps.at == "TLS":
            return _no_handshake(cause, self.coordinator.host)
        return Obstacle(
            f"TLS works, but {question} gets no answer ({type(cause).__name__})",
            "ask the coordinator whether mmare-server start is running, and to look into its logs",
        )

    def _shown(self) -> Certificate:
        """The certificate that the other end shows; nothing is sent to it."""
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE
        steps = Steps(handshake_only=True)
        try:
            with suppress(_Enough):
                self._send("GET", "/", blind, steps)
            return read_certificate(steps.certificate)
        except (httpx.TransportError, ValueError) as error:
            raise Obstacle(
                f"the certificate is not accepted, and cannot be read either ({error})",
                "ask who runs the firewall of this hospital what answers on that address",
            ) from None


def left_s(end: float, most_s: float) -> float:
    """How long the next step may take, where all must be over by ``end`` of `time.monotonic`."""
    return max(0.001, min(end - time.monotonic(), most_s))


def addresses_of(host: str, end: float) -> list[str]:
    """Addresses of a name, in the order in which they are tried.

    Raises:
        Obstacle: If the name has none, or nobody answers.
    """
    asked = in_background(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    try:
        return list(dict.fromkeys(str(entry[4][0]) for entry in asked.result(timeout=left_s(end, STEP_S))))
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
            socket.create_connection((address, port), timeout=left_s(way.end, each_s)).close()
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


def _no_tunnel(steps: Steps, proxy: Proxy, target: str) -> Obstacle:
    """Why a proxy did not connect, in words."""
    cause = steps.cause
    if steps.head is not None:
        return _refused(*steps.head, proxy, target)
    if isinstance(cause, OSError | httpcore.RemoteProtocolError):  # the latter: it ends without an answer
        return Obstacle(
            f"{proxy} accepts the connection but does not answer ({_reason(cause)})",
            "ask who runs the proxy whether this machine may use it",
        )
    return Obstacle(f"{proxy} does not answer as a proxy", f"check the address in {proxy.variable}")


def _refused(status: int, headers: Sequence[tuple[bytes, bytes]], proxy: Proxy, target: str) -> Obstacle:
    """What a proxy's answer to CONNECT means."""
    if status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        values = [value.decode("latin-1") for name, value in headers if name.lower() == b"proxy-authenticate"]
        offered = [value.split()[0].lower() for value in values if value.strip()]
        if offered and "basic" not in offered:
            return Obstacle(
                f"{proxy} answers 407: it wants a login by {', '.join(offered)}, which Flower cannot do",
                f"ask who runs the proxy to let this machine through to {target} without a login",
            )
        if not proxy.url.username:
            return Obstacle(
                f"{proxy} answers 407: it asks for a user name and a password",
                f"put them into {proxy.variable}, as http://USER:PASSWORD@{proxy.host}:{proxy.port}",
            )
        return Obstacle(
            f"{proxy} answers 407: it does not accept the user name and password",
            f"correct them in {proxy.variable}; signs such as @ and : in them are written as %40 and %3A",
        )
    if status in NOT_REACHED:
        return Obstacle(
            f"{proxy} answers {status}: it does not reach {target} itself",
            f"check the address with the coordinator, and ask who runs the proxy whether {target} is allowed",
        )
    return Obstacle(
        f"{proxy} answers {status}: it does not connect to {target}",
        f"ask who runs the proxy to allow CONNECT to {target}",
    )


def _no_handshake(error: BaseException | None, host: str) -> Obstacle:
    firewall = f"ask who runs this hospital's firewall whether it inspects TLS, and to leave {host} alone"
    if isinstance(error, TimeoutError):
        return Obstacle("the connection opens, but TLS gets no answer", firewall)
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return Obstacle(
            "what answers there does not speak TLS",
            "check address and port with the coordinator; a firewall may also answer in its place",
        )
    return Obstacle(f"TLS breaks off ({_reason(error)})", firewall)


def _reason(error: BaseException | None) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
