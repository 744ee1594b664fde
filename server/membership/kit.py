"""The coordinator's folder: its certificate authority, its secrets, who was admitted, what its programs need.

::

    kit init ─► kit.toml, ca.crt, ca.key, server.crt, server.key, superexec.secret
    kit admit ─► sites/NAME.json, bundles/NAME.zip          (records.py)
    start ─► state/, logs/, nginx/, app/, runs/             (flower_nodes.py and the supervisor)

Made once: the authority is what every site trusts, so a second one would lock all of them out. The server's
certificate is renewed by the same authority, and no site notices.
"""

from __future__ import annotations

import re
import secrets
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
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

SECRET_BYTES: Final = 32
LOCK_S: Final = 120.0  # registering a site takes about two seconds
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}")
_HIGHEST_PORT: Final = 65535
OTHERS: Final = 0o007  # a group of administrators is the owner's to decide


@dataclass(frozen=True)
class _Settings:
    """``kit.toml``."""

    federation: str
    host: str
    port: int
    superlink_port: int


@dataclass(frozen=True)
class Kit:
    """The coordinator's folder.

    Args:
        folder: Absolute; closed to other users.
        federation: Its name.
        host: Name or address under which sites reach the coordinator.
        port: Of the public door.
        superlink_port: Of Flower's SuperLink, on 127.0.0.1 only.
    """

    folder: Path
    federation: str
    host: str
    port: int
    superlink_port: int

    @property
    def config(self) -> Path:
        """The settings above."""
        return self.folder / "kit.toml"

    @property
    def ca_certificate(self) -> Path:
        """Certificate of the authority; every site gets it."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Private key of the authority; only `renew` needs it, so it may be kept elsewhere."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """Certificate of the public door and of SuperLink."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """Private key of the certificate."""
        return self.folder / "server.key"

    @property
    def secret(self) -> Path:
        """That SuperLink and SuperExec share."""
        return self.folder / "superexec.secret"

    @property
    def sites(self) -> Path:
        """One record per site."""
        return self.folder / "sites"

    @property
    def bundles(self) -> Path:
        """What goes to the sites; no secret in it."""
        return self.folder / "bundles"

    @property
    def state(self) -> Path:
        """What Flower keeps."""
        return self.folder / "state"

    @property
    def database(self) -> Path:
        """SuperLink's."""
        return self.state / "superlink.db"

    @property
    def flwr_home(self) -> Path:
        """``FLWR_HOME`` of the coordinator's Flower programs."""
        return self.state / "flwr-home"

    @property
    def logs(self) -> Path:
        """Of every program."""
        return self.folder / "logs"

    @property
    def nginx(self) -> Path:
        """Configuration and working files of the public door."""
        return self.folder / "nginx"

    @property
    def app(self) -> Path:
        """The Flower app that travels."""
        return self.folder / "app"

    @property
    def runs(self) -> Path:
        """Run folders, by default."""
        return self.folder / "runs"

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other process from changing records and certificates; not to be nested.

        Raises:
            RunError: If another one holds it for two minutes.
            InputError: If the folder cannot be locked.
        """
        busy = RunError(f"{self.folder}: another command has been changing it for {LOCK_S:.0f} s")
        return locked(self.folder, busy, LOCK_S)


def init_kit(
    folder: Path,
    host: str,
    port: int = 443,
    name: str = "federation",
    superlink_port: int = SUPERLINK_PORT,
    days: int = SERVER_DAYS,
) -> Kit:
    """Make the coordinator's folder with an authority, a server certificate and a secret.

    Args:
        folder: To make; it must not exist, or be empty.
        host: Name or address under which sites reach the coordinator.
        port: Of the public door.
        name: Of the federation, at most 40 letters, digits, spaces, dots, dashes and underscores.
        superlink_port: Of SuperLink on 127.0.0.1.
        days: How long the server certificate is valid.

    Returns:
        The kit. The folder is whole or not there.

    Raises:
        InputError: If there is a kit, or something else, already, or a setting cannot be used.
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
            raise InputError(f"{folder}: there, not empty and no kit; expected a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = folder.parent / tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({type(error).__name__})") from None
    try:
        _fill(Kit(made, kit.federation, kit.host, port, superlink_port), days)
        made.rename(folder)  # fails where another one was quicker
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({type(error).__name__})") from None
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
    settings = {
        "federation": kit.federation,
        "host": kit.host,
        "port": kit.port,
        "superlink_port": kit.superlink_port,
    }
    write_whole(kit.config, tomli_w.dumps(settings).encode())


def load_kit(folder: Path, *, renewing: bool = False) -> Kit:
    """Read a coordinator's folder.

    Args:
        folder: As `init_kit` made it.
        renewing: The server's key and certificate need not be there, fit each other or be for the host:
            `renew` is about to put that right.

    Raises:
        InputError: If it is none, a file is missing, others can read a secret, or the server's certificate is
            not of its key or not for its host.
    """
    folder = folder.resolve()
    path = folder / "kit.toml"
    try:
        if not path.exists():
            raise InputError(
                f"{folder}: no kit here (kit.toml is missing); mmare-server kit init makes one, and --kit "
                "says where it is"
            )
        content = read_toml(path, "kit")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({type(error).__name__}); a kit is its owner's alone"
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
    """Replace the server's certificate by a new one of the same authority; sites notice nothing.

    The key stays unless a new one is asked for: so one file is replaced, in one step, and key and certificate
    belong together at every moment.

    Args:
        kit: Whose authority signs.
        days: How long it is valid, but never longer than the authority.
        new_key: Make a new private key, too. Killed between the two files, `load_kit` says that they differ,
            and renewing again puts it right.
        start: From when; an hour ago by default.

    Returns:
        Until when it is valid.

    Raises:
        InputError: If the authority's key or certificate is missing or cannot be used, or a file cannot be
            written; the old certificate stays.
    """
    _check_days(days)
    with kit.locked():
        try:
            authority = Pair(kit.ca_key.read_bytes(), kit.ca_certificate.read_bytes())
            old = kit.key.read_bytes() if kit.key.exists() and not new_key else None
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({type(error).__name__}); renewing needs the key of the "
                "authority"
            ) from None
        try:
            if not same_key(authority):
                raise InputError(f"{kit.ca_key}: not the key of {kit.ca_certificate}")
            server = new_server(authority, kit.host, old, days, start)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{kit.folder}: no certificate can be made with this authority ({error})"
            ) from None
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
            raise InputError(f"{path}: missing; a kit is copied as a whole")
    for path in (kit.ca_key, kit.key, kit.secret):
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
        if mode & OTHERS:
            raise InputError(f"{path}: mode {mode:04o} opens it to every user; chmod 600 closes it")


def _check_certificate(kit: Kit) -> None:
    advice = "mmare-server kit renew makes a new certificate"
    try:
        belong = same_key(Pair(kit.key.read_bytes(), kit.certificate.read_bytes()))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({type(error).__name__}); {advice}") from None
    except (TypeError, ValueError):
        raise InputError(f"{kit.key}, {kit.certificate}: not a key and its certificate; {advice}") from None
    if not belong:
        raise InputError(f"{kit.certificate}: not of the key {kit.key}; {advice}")
    names = certificate_names(kit.certificate)
    if kit.host not in names:
        raise InputError(f"{kit.certificate}: for {', '.join(names)}, but host is {kit.host!r}; {advice}")


SUPERLINK, SUPEREXEC, PROXY, SERVER_APP = "superlink", "superexec", "proxy", "serverapp"
