"""What a hospital may meet on its way out: odd certificates and clocks, proxies that refuse."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

from server.membership.certificates import Pair

Reply = Callable[[str, str], tuple[int, bytes]]  # of method and path: status and body


def flower(method: str, path: str) -> tuple[int, bytes]:
    """What a coordinator's public door answers to somebody without a key."""
    if (method, path) == ("GET", "/health"):
        return 200, b""
    if method == "POST" and path.startswith("/v1/fleet/"):
        return 401, b'{"detail":"Invalid SuperNode authentication"}'
    return 404, b""


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def https_server(
    folder: Path, pair: Pair, reply: Reply = flower, *, address: str = "127.0.0.1", clock_s: float = 0.0
) -> Iterator[int]:
    """A TLS server on a free port of loopback; gives the port.

    Args:
        folder: For its certificate and key.
        pair: Them.
        reply: What it answers.
        address: To listen on.
        clock_s: How far its clock is ahead of this machine's.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def date_time_string(self, timestamp=None):
            return super().date_time_string((timestamp or time.time()) + clock_s)

        def answer(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, body = reply(self.command, self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 - http.server's

        def log_message(self, *arguments):
            """Nothing: the tests read what the client says."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (folder / "server.crt").write_bytes(pair.certificate)
    (folder / "server.key").write_bytes(pair.key)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server = _quiet(ThreadingHTTPServer)((address, 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with running(server) as port:
        yield port


@dataclass
class Proxy:
    """An HTTP proxy that was asked.

    Args:
        port: On loopback.
        asked: Heads of the requests.
    """

    port: int
    asked: list[str]


@contextmanager
def connect_proxy(to: int | None, refusal: bytes = b"", login: str | None = None) -> Iterator[Proxy]:
    """A proxy that takes CONNECT and leads to a port of loopback, whatever it is asked for.

    Args:
        to: That port.
        refusal: What it answers instead, if anything.
        login: The header ``Proxy-Authorization`` that it wants; others are answered by 407.
    """
    asked: list[str] = []

    class Handler(StreamRequestHandler):
        def handle(self):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = self.rfile.readline(4096)
                if not line:
                    return
                head += line
            asked.append(head.decode())
            if refusal:
                self.wfile.write(refusal)
                return
            if login is not None and f"Proxy-Authorization: {login}\r\n" not in asked[-1]:
                self.wfile.write(b"HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic realm=x\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", to), timeout=5) as far:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pump, args=(far, self.connection))
                back.start()
                _pump(self.connection, far)
                back.join(timeout=10)

    with running(_quiet(ThreadingTCPServer)(("127.0.0.1", 0), Handler)) as port:
        yield Proxy(port, asked)


@contextmanager
def plain_server(greeting: bytes, *, hold: bool = False) -> Iterator[int]:
    """A port that speaks no TLS: says something, or holds the connection and says nothing."""
    released = threading.Event()

    class Handler(StreamRequestHandler):
        def handle(self):
            self.request.recv(1)
            self.wfile.write(greeting)
            if hold:
                released.wait(20)

    try:
        with running(_quiet(ThreadingTCPServer)(("127.0.0.1", 0), Handler)) as port:
            yield port
            released.set()
    finally:
        released.set()


@contextmanager
def running(server: ThreadingTCPServer) -> Iterator[int]:
    """Serve in a thread; gives the port."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _quiet(kind: type[ThreadingTCPServer]) -> type[ThreadingTCPServer]:
    """A server that says nothing of clients that break off."""

    class Quiet(kind):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request, client_address):
            """Nothing."""

    return Quiet


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 14):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
