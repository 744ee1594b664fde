"""The coordinator's folder: certificate authority, secrets, admitted sites and working files.

::

    kit init ─► kit.toml, ca.crt, ca.key, server.crt, server.key, superexec.secret
    kit admit ─► sites/NAME.json, bundles/NAME.zip          (records.py)
    start ─► state/, logs/, nginx/, app/, runs/             (flower_nodes.py and the supervisor)
    submit ─► queue/NAME.json, NAME.toml                    (deployment/queue.py)

It is created once: every site trusts its authority, so a second one would lock all of them out. Renewing the
server's certificate with the same authority is invisible to sites.
"""

from __future__ import annotations

import re
import secrets
import shutil
import stat
import tempfile
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

import tomli_w

from mmare.errors import InputError, RunError
from mmare.host.files import write_whole
from mmare.host.locks import locked
from mmare.study.tables import TableError, from_table, read_toml
from mmare.wire.joining import check_host
from server.membership.certificates import (
    AUTHORITY_DAYS,
    Pair,
    certificate_end,
    certificate_names,
    new_authority,
    new_server,
    same_key,
)
from server.membership.options import SERVER_DAYS, SUPERLINK_PORT

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

__all__ = ["SUPERLINK", "Kit", "init_kit", "load_kit", "renew"]

SUPERLINK, SUPEREXEC, PROXY, SERVER_APP = "superlink", "superexec", "proxy", "serverapp"  # programs

SECRET_BYTES: Final = 32
LOCK_S: Final = 120.0  # registering a site takes about two seconds
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}")
_HIGHEST_PORT: Final = 65535
OTHERS: Final = 0o007  # not the group, which may be one of administrators


@dataclass(frozen=True)
class _Settings:
    """``kit.toml``."""

    federation: str
    host: str
    port: int
    superlink_port: int


@dataclass(frozen=True)
class Kit:
    """The coordinator's folder."""

    folder: Path  # absolute; accessible to its owner only
    federation: str
    host: str  # name or address under which sites reach the coordinator
    port: int  # public
    superlink_port: int  # on 127.0.0.1 only

    @property
    def config(self) -> Path:
        """The settings above."""
        return self.folder / "kit.toml"

    @property
    def ca_certificate(self) -> Path:
        """Certificate of the authority, part of every bundle."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Private key of the authority; only `renew` needs it, so it may be stored elsewhere."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """Certificate of the public endpoint and of SuperLink."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """Private key of the certificate."""
        return self.folder / "server.key"

    @property
    def secret(self) -> Path:
        """Secret shared by SuperLink and SuperExec."""
        return self.folder / "superexec.secret"

    @property
    def sites(self) -> Path:
        """One record per site."""
        return self.folder / "sites"

    @property
    def bundles(self) -> Path:
        """Bundles for the sites, without secrets."""
        return self.folder / "bundles"

    @property
    def state(self) -> Path:
        """State of Flower and of the supervisor."""
        return self.folder / "state"

    @property
    def database(self) -> Path:
        """SuperLink's database."""
        return self.state / "superlink.db"

    @property
    def start_lock(self) -> Path:
        """Held by the ``mmare-server start`` that runs with this kit, whose process id it holds."""
        return self.state / "start.lock"

    @property
    def flwr_home(self) -> Path:
        """``FLWR_HOME`` of the coordinator's Flower programs."""
        return self.state / "flwr-home"

    @property
    def logs(self) -> Path:
        """Logs of every program."""
        return self.folder / "logs"

    @property
    def nginx(self) -> Path:
        """Configuration and working files of nginx."""
        return self.folder / "nginx"

    @property
    def app(self) -> Path:
        """The Flower app that is submitted."""
        return self.folder / "app"

    @property
    def runs(self) -> Path:
        """Default place of run folders."""
        return self.folder / "runs"

    @property
    def queue(self) -> Path:
        """Submitted runs of a standing coordinator."""
        return self.folder / "queue"

    def locked(self) -> AbstractContextManager[None]:
        """Exclusive lock on records and certificates; not reentrant.

        Raises:
            RunError: If another process holds it for two minutes.
            InputError: If the folder cannot be locked.
        """
        busy = RunError(f"{self.folder}: another command has held its lock for {LOCK_S:.0f} s")
        return locked(self.folder, busy, LOCK_S)


def init_kit(
    folder: Path,
    host: str,
    port: int = 443,
    name: str = "federation",
    superlink_port: int = SUPERLINK_PORT,
    days: int = SERVER_DAYS,
) -> Kit:
    """Create the coordinator's folder, completely or not at all.

    Args:
        folder: Must not exist or be empty.
        host: Name or address under which sites reach the coordinator.
        name: Of the federation, at most 40 letters, digits, spaces, dots, dashes and underscores.
        days: Validity of the server certificate.

    Raises:
        InputError: If the folder holds a kit or anything else, or a setting is invalid.
    """
    folder = folder.resolve()
    kit = Kit(folder, name, check_host(host), port, superlink_port)
    _check_settings(kit)
    _check_days(days)
    try:
        if kit.config.exists():
            raise InputError(
                f"{folder}: there is a kit already, and its sites trust its authority; mmare-server kit "
                "renew makes a new server certificate and keeps the authority"
            )
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: not empty and not a kit; expected a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = folder.parent / tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({type(error).__name__})") from None
    try:
        _fill(replace(kit, folder=made), days)
        made.rename(folder)  # fails if another process was faster
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({type(error).__name__})") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return kit


def _fill(kit: Kit, days: int) -> None:
    authority = new_authority(kit.federation)
    server = new_server(authority, kit.host, days=days)
    for folder in (kit.sites, kit.bundles, kit.flwr_home, kit.logs, kit.runs):
        folder.mkdir(parents=True, mode=0o700)
    write_whole(kit.ca_key, authority.key, 0o600)
    write_whole(kit.ca_certificate, authority.certificate)
    write_whole(kit.key, server.key, 0o600)
    write_whole(kit.certificate, server.certificate)
    write_whole(kit.secret, secrets.token_hex(SECRET_BYTES).encode(), 0o600)
    settings = _Settings(kit.federation, kit.host, kit.port, kit.superlink_port)
    write_whole(kit.config, tomli_w.dumps(asdict(settings)).encode())


def load_kit(folder: Path, *, renewing: bool = False) -> Kit:
    """Read a coordinator's folder.

    Args:
        renewing: Skip the checks of the server's key and certificate, which `renew` will replace.

    Raises:
        InputError: If it is not a kit, a file is missing, a secret is readable by others, or the server's
            certificate does not match its key or the host.
    """
    folder = folder.resolve()
    path = folder / "kit.toml"
    try:
        if not path.exists():
            raise InputError(
                f"{folder}: no kit here (kit.toml is missing); mmare-server kit init makes one, and --kit "
                "gives its folder"
            )
        content = read_toml(path, "kit")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({type(error).__name__}); a kit is accessible to its owner only"
        ) from None
    except TableError as error:
        raise InputError(str(error)) from None
    try:
        found = from_table(_Settings, content, "the file")
        kit = Kit(folder, found.federation, check_host(found.host), found.port, found.superlink_port)
        _check_settings(kit)
    except (TableError, InputError) as error:
        raise InputError(f"{path}: {error}") from None
    _check_files(kit)
    if not renewing:
        _check_certificate(kit)
    return kit


def renew(
    kit: Kit, days: int = SERVER_DAYS, *, new_key: bool = False, start: datetime | None = None
) -> datetime:
    """Replace the server's certificate by a new one of the same authority.

    Without ``new_key`` only the certificate's file is replaced, atomically. With it there are two: if killed
    in between, `load_kit` reports that they differ, and renewing again repairs it.

    Args:
        days: Validity, cut at the end of the authority's.
        start: Start of validity; an hour ago by default.

    Returns:
        End of validity.

    Raises:
        InputError: If the authority's key or certificate is missing or invalid, or a file cannot be written;
            the old certificate is kept.
    """
    _check_days(days)
    with kit.locked():
        try:
            authority = Pair(kit.ca_key.read_bytes(), kit.ca_certificate.read_bytes())
            old = kit.key.read_bytes() if kit.key.exists() and not new_key else None
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({type(error).__name__}); renewal needs the key of the "
                "authority"
            ) from None
        try:
            if not same_key(authority):
                raise InputError(f"{kit.ca_key}: not the key of {kit.ca_certificate}")
            server = new_server(authority, kit.host, old, days, start)
        except (TypeError, ValueError) as error:
            raise InputError(f"{kit.folder}: this authority cannot sign a certificate ({error})") from None
        try:
            if old is None:
                write_whole(kit.key, server.key, 0o600)
            write_whole(kit.certificate, server.certificate)
        except OSError as error:
            raise InputError(f"{kit.certificate}: cannot be written ({type(error).__name__})") from None
    return certificate_end(kit.certificate)


def _check_settings(kit: Kit) -> None:
    if not _NAME.fullmatch(kit.federation):
        raise InputError(
            f"federation is {kit.federation!r}, expected a name of at most 40 letters, digits, spaces, dots, "
            "dashes and underscores, starting with a letter or digit"
        )
    for what, port in (("port", kit.port), ("superlink_port", kit.superlink_port)):
        if not 1 <= port <= _HIGHEST_PORT:
            raise InputError(f"{what} is {port}, expected 1 to {_HIGHEST_PORT}")
    if kit.port == kit.superlink_port:
        raise InputError(f"port and superlink_port are both {kit.port}, expected two different ones")


def _check_days(days: int) -> None:
    if not 1 <= days <= AUTHORITY_DAYS:
        raise InputError(f"days is {days}, expected 1 to {AUTHORITY_DAYS}")


def _check_files(kit: Kit) -> None:
    for path in (kit.ca_certificate, kit.secret):
        if not path.is_file():
            raise InputError(f"{path}: missing; a kit must be copied completely")
    for path in (kit.ca_key, kit.key, kit.secret):
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
        if mode & OTHERS:
            raise InputError(f"{path}: mode {mode:04o} lets every user access it; run chmod 600")


def _check_certificate(kit: Kit) -> None:
    advice = "mmare-server kit renew makes a new certificate"
    try:
        match = same_key(Pair(kit.key.read_bytes(), kit.certificate.read_bytes()))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({type(error).__name__}); {advice}") from None
    except (TypeError, ValueError):
        raise InputError(f"{kit.key}, {kit.certificate}: not a key and its certificate; {advice}") from None
    if not match:
        raise InputError(f"{kit.certificate}: does not match the key {kit.key}; {advice}")
    names = certificate_names(kit.certificate)
    if kit.host not in names:
        raise InputError(f"{kit.certificate}: for {', '.join(names)}, but host is {kit.host!r}; {advice}")
