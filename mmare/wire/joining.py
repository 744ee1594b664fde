"""Files that people exchange before a hospital joins: its request and the coordinator's bundle.

::

    hospital: kit request ─► request-SITE.json ─► coordinator: kit admit ─► SITE.zip ─► hospital: kit install

Neither holds a secret: the site's private key never leaves it; the bundle has the coordinator's certificate
authority, its address and the study.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import InputError
from mmare.study.study import STUDY_FILE
from mmare.study.tables import TableError, from_table, read_toml

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BUNDLE_AUTHORITY",
    "BUNDLE_COORDINATOR",
    "BUNDLE_STUDY",
    "MOST_BUNDLE_BYTES",
    "MOST_FILE_BYTES",
    "PRIVATE_MARK",
    "Coordinator",
    "JoinRequest",
    "SiteKit",
    "check_host",
    "key_fingerprint",
    "parse_coordinator",
    "read_request",
]

BUNDLE_COORDINATOR: Final = "coordinator.toml"
BUNDLE_AUTHORITY: Final = "ca.crt"
BUNDLE_STUDY: Final = STUDY_FILE
MOST_FILE_BYTES: Final = 1 << 20  # of one file of a bundle
MOST_BUNDLE_BYTES: Final = 4 << 20
MOST_REQUEST_BYTES: Final = 16 << 10  # a key of 521 bits has 250
PRIVATE_MARK: Final = b"PRIVATE KEY"  # in the first line of every private key in text form
REQUEST_FORMAT: Final = 1
_SITE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of sites.config, and short enough for a file
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_LONGEST_HOST: Final = 253
_HIGHEST_PORT: Final = 65535


@dataclass(frozen=True)
class JoinRequest:
    """A site's request for admission; nothing in it is secret."""

    site: str
    public_key: str  # OpenSSH format, one line
    software: str  # version of this package at the site
    format: int = REQUEST_FORMAT

    def content(self) -> bytes:
        """The request file."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


def read_request(path: Path) -> JoinRequest:
    """Read a site's request; the key itself is not checked.

    Raises:
        InputError: If the file is missing, too large, contains a private key, or is not a request.
    """
    content = _bounded(path, MOST_REQUEST_BYTES, "request")
    if PRIVATE_MARK in content:
        raise InputError(
            f"{path}: holds a private key, which must never leave its site; the site makes a new one with "
            "mmare-site kit request --new-key and sends its request only"
        )
    try:
        found = json.loads(content.decode("utf-8-sig"))
        if not isinstance(found, dict):
            raise TableError(f"expected an object, found {type(found).__name__}")
        request = from_table(JoinRequest, found, "the request")
    except (ValueError, RecursionError) as error:  # of UTF-8, JSON and tables
        why = str(error) if isinstance(error, TableError) else "not JSON"
        raise InputError(
            f"{path}: not a request to join ({why}); expected a file as mmare-site kit request makes it"
        ) from None
    if request.format != REQUEST_FORMAT:
        raise InputError(
            f"{path}: a request of format {request.format}, expected {REQUEST_FORMAT}; the site's software "
            f"({request.software[:40]!r}) is of another version"
        )
    if not _SITE.fullmatch(request.site):
        raise InputError(
            f"{path}: site is {request.site[:120]!r}, expected at most 100 letters, digits, dots, dashes and "
            "underscores, starting with a letter or digit"
        )
    return request


def _bounded(path: Path, most: int, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what} file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None
    if len(content) > most:
        raise InputError(f"{path}: more than {most} bytes, which no {what} has")
    return content


def key_fingerprint(public_key: str) -> str:
    """Fingerprint of a public key in OpenSSH format, as ``ssh-keygen -l`` shows it.

    Raises:
        ValueError: If the key has another format.

    Example:
        >>> key_fingerprint("ecdsa-sha2-nistp384 AAAA comment")
        'SHA256:cJ6AyISHokEeHuTfufIqhhSS0gxHZRUMDHlKvXD4FHw'
    """
    fields = public_key.split()
    if len(fields) < 2:  # noqa: PLR2004 - type and key
        raise ValueError("not a public key in OpenSSH format")
    digest = hashlib.sha256(base64.b64decode(fields[1], validate=True)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def check_host(text: str) -> str:
    """A host name or address in canonical form: lower case, no trailing dot.

    Raises:
        InputError: If it is neither.

    Example:
        >>> check_host("Join.Example.org."), check_host("10.0.0.7")
        ('join.example.org', '10.0.0.7')
    """
    host = text.strip().rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    valid = len(host) <= _LONGEST_HOST and all(_LABEL.fullmatch(label) for label in labels)
    if not valid or labels[-1].isdigit():  # such as 10.0.0
        raise InputError(
            f"host is {text[:120]!r}, expected a name such as join.example.org or an address such as "
            "10.0.0.7, without https:// and without a port"
        )
    return host


@dataclass(frozen=True)
class Coordinator:
    """The federation that a site joins."""

    federation: str
    host: str  # as in the coordinator's certificate
    port: int  # public, TLS
    site: str  # id under which the site was admitted
    key: str = ""  # fingerprint of the site's admitted key, if the bundle has it
    study: str = ""  # hash of the bundled study, if any

    @property
    def address(self) -> str:
        """In the form that Flower's SuperNode expects."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class SiteKit:
    """A site's folder of keys and addresses (``[coordinator] kit`` of ``site.toml``)."""

    folder: Path  # readable only by this user and those who run the relay

    @property
    def key(self) -> Path:
        """Private key of the node, OpenSSH format; never sent."""
        return self.folder / "node.key"

    @property
    def public_key(self) -> Path:
        """Public key of the node, OpenSSH format."""
        return self.folder / "node.pub"

    @property
    def secret(self) -> Path:
        """Secret that the site's SuperNode and SuperExec share."""
        return self.folder / "superexec.secret"

    @property
    def ca(self) -> Path:
        """Certificate of the coordinator's authority, PEM."""
        return self.folder / "ca.crt"

    @property
    def study(self) -> Path:
        """The bundled study."""
        return self.folder / STUDY_FILE

    @property
    def joined(self) -> Path:
        """The coordinator's address; exists once a bundle is installed."""
        return self.folder / "coordinator.toml"

    def coordinator(self) -> Coordinator:
        """Read the coordinator's address.

        Raises:
            InputError: If no bundle is installed, or the file is invalid.
        """
        try:
            if not self.joined.exists():
                raise InputError(
                    f"{self.joined}: not there; send the request that mmare-site kit request made to the "
                    "coordinator, then install the bundle that comes back with mmare-site kit install"
                )
            found = read_toml(self.joined, "coordinator's address")
        except OSError as error:
            raise InputError(f"{self.joined}: cannot be read ({type(error).__name__})") from None
        except TableError as error:
            raise InputError(str(error)) from None
        return parse_coordinator(found, str(self.joined))


def parse_coordinator(found: dict[str, Any], source: str) -> Coordinator:
    """Make the coordinator's address from the tables of its file.

    Raises:
        InputError: If a key is unknown or missing, or a value is invalid; begins with ``source``.
    """
    try:
        coordinator = from_table(Coordinator, found, "the file")
        check_host(coordinator.host)
    except (TableError, InputError) as error:
        raise InputError(f"{source}: {error}") from None
    if not 1 <= coordinator.port <= _HIGHEST_PORT:
        raise InputError(f"{source}: port is {coordinator.port}, expected 1 to {_HIGHEST_PORT}")
    return coordinator
