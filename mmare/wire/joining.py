"""What coordinator and hospital exchange, by people, before a hospital takes part: a request and a bundle.

::

    hospital: kit request ─► request.json ─► coordinator: kit admit ─► SITE.zip ─► hospital: kit install

Neither holds a secret: the site's private key never leaves it, the bundle holds the coordinator's certificate
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
MOST_FILE_BYTES: Final = 1 << 20  # of one file of a bundle; a study has a few kilobytes
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
    """What a site sends to be admitted; nothing in it is secret.

    Args:
        site: Its id.
        public_key: Of its node, OpenSSH format, one line.
        software: Version of this package at the site.
        format: Of this file.
    """

    site: str
    public_key: str
    software: str
    format: int = REQUEST_FORMAT

    def content(self) -> bytes:
        """As a file."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


def read_request(path: Path) -> JoinRequest:
    """Read a site's request; whether its key is one is for the coordinator to see.

    Raises:
        InputError: If the file is missing, too large, holds a private key, or is no request.
    """
    content = _bounded(path, MOST_REQUEST_BYTES, "request")
    if PRIVATE_MARK in content:
        raise InputError(
            f"{path}: holds a private key, which must never leave its site; the site makes a new one with "
            "mmare-site kit request --new-key and sends request.json only"
        )
    try:
        found = json.loads(content.decode("utf-8-sig"))
        if not isinstance(found, dict):
            raise TableError(f"expected an object, found {type(found).__name__}")
        request = from_table(JoinRequest, found, "the request")
    except (ValueError, RecursionError) as error:  # of UTF-8, JSON and tables
        why = str(error) if isinstance(error, TableError) else "not JSON"
        raise InputError(
            f"{path}: not a request to join ({why}); expected request.json as mmare-site kit request makes it"
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
    """Of a public key in OpenSSH format, as ``ssh-keygen -l`` shows it: what two people compare by telephone.

    Raises:
        ValueError: If it is not of that format.

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
    """A host's name or address in its one way of writing: lower case, no dot at the end.

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
    """Where a site joins.

    Args:
        federation: Its name.
        host: Name or address of the coordinator, as in its certificate.
        port: Of the public door, TLS.
        site: The id under which the site was admitted.
        key: Fingerprint of the site's key that was admitted; empty where the bundle does not say it.
        study: Hash of the study that came with the bundle; empty where none did.
    """

    federation: str
    host: str
    port: int
    site: str
    key: str = ""
    study: str = ""

    @property
    def address(self) -> str:
        """As Flower's SuperNode wants it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class SiteKit:
    """A site's folder of keys and addresses (``[coordinator] kit`` of ``site.toml``).

    Args:
        folder: Closed to other users, but to those who run the relay.
    """

    folder: Path

    @property
    def key(self) -> Path:
        """Private key of the node, OpenSSH format, made here and never sent."""
        return self.folder / "node.key"

    @property
    def public_key(self) -> Path:
        """Public key of the node, OpenSSH format."""
        return self.folder / "node.pub"

    @property
    def secret(self) -> Path:
        """That SuperNode and SuperExec of this site share."""
        return self.folder / "superexec.secret"

    @property
    def ca(self) -> Path:
        """Certificate of the coordinator's authority, PEM."""
        return self.folder / "ca.crt"

    @property
    def study(self) -> Path:
        """The study that came with the bundle."""
        return self.folder / STUDY_FILE

    @property
    def joined(self) -> Path:
        """Where the coordinator is; there once a bundle is installed."""
        return self.folder / "coordinator.toml"

    def coordinator(self) -> Coordinator:
        """Read where the coordinator is.

        Raises:
            InputError: If no bundle is installed, or the file cannot be used.
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

    Args:
        found: As `tomllib` gives it.
        source: Named in errors.

    Raises:
        InputError: If a key is unknown or missing, or a value cannot be.
    """
    try:
        coordinator = from_table(Coordinator, found, "the file")
        check_host(coordinator.host)
    except (TableError, InputError) as error:
        raise InputError(f"{source}: {error}") from None
    if not 1 <= coordinator.port <= _HIGHEST_PORT:
        raise InputError(f"{source}: port is {coordinator.port}, expected 1 to {_HIGHEST_PORT}")
    return coordinator
