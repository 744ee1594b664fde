"""Folders of coordinators and sites for tests: made by the real functions, in temporary folders."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.membership.kit import make_request
from sites.config import SiteConfig, load_site

__all__ = ["asked", "changed", "free_port", "served", "site_config", "strict_context"]


def site_config(folder: Path, site: str = "ash", more: str = "") -> SiteConfig:
    """A site's configuration; ``more`` is further TOML."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f'[site]\nid = "{site}"\n[data]\nmanifest = "patients.csv"\n[modality.ct]\nfile = "ct.npz"\n{more}'
    (folder / "site.toml").write_text(text)
    return load_site(folder / "site.toml")


def asked(folder: Path, site: str = "ash") -> tuple[SiteConfig, Path]:
    """A site that has made its request."""
    config = site_config(folder / site, site)
    return config, make_request(config)


def changed(request: Path, **fields: object) -> Path:
    """A request with other fields than it was made with; ``None`` takes one away."""
    content: dict[str, Any] = {**json.loads(request.read_text()), **fields}
    path = request.with_name("changed.json")
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def strict_context(authority: Path) -> ssl.SSLContext:
    """A client that trusts one authority and checks as strictly as Python can."""
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@contextmanager
def served(certificate: Path, key: Path, answer: bytes = b"hello") -> Iterator[int]:
    """A TLS server on 127.0.0.1 that answers every connection; gives its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:  # closed: the test is over
                    return
                plain.settimeout(10)
                try:
                    with context.wrap_socket(plain, server_side=True) as tls:
                        tls.recv(4096)
                        tls.sendall(answer)
                except OSError:  # the client did not believe us
                    plain.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=15)
            assert not thread.is_alive()
