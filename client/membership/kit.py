"""A site's folder of keys and addresses: its own key, which never leaves it, and what the coordinator gave.

::

    make_request ─► node.key, node.pub, superexec.secret in the kit folder; request.json beside site.toml
    install_bundle ─► ca.crt, coordinator.toml, study.toml in the kit folder

Nothing in it runs: a bundle holds an address, a certificate and a study, all checked before one is kept.
"""

from __future__ import annotations

import grp
import os
import secrets
import stat
import tomllib
import zipfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from mmare.errors import InputError, StudyError
from mmare.host.files import write_whole
from mmare.study.study import parse_study
from mmare.wire.joining import (
    BUNDLE_AUTHORITY,
    BUNDLE_COORDINATOR,
    BUNDLE_STUDY,
    MOST_BUNDLE_BYTES,
    MOST_FILE_BYTES,
    PRIVATE_MARK,
    Coordinator,
    JoinRequest,
    SiteKit,
    key_fingerprint,
    parse_coordinator,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sites.config import SiteConfig

__all__ = ["authority_fingerprint", "install_bundle", "make_request", "own_fingerprint"]

SECRET_BYTES: Final = 32
_REQUIRED: Final = (BUNDLE_COORDINATOR, BUNDLE_AUTHORITY)
_EXPECTED: Final = (*_REQUIRED, BUNDLE_STUDY)


@dataclass(frozen=True)
class _Access:
    """Who may read the kit: its owner, and a group where the relay runs as another user."""

    group: int | None
    name: str = ""

    @property
    def folder_mode(self) -> int:
        return 0o700 if self.group is None else 0o750

    @property
    def secret_mode(self) -> int:
        return 0o600 if self.group is None else 0o640


def make_request(site: SiteConfig, out: Path | None = None, *, new_key: bool = False) -> Path:
    """Make the site's key, unless it has one, and write the request that the coordinator gets.

    Run again, it writes the same request.

    Args:
        site: Whose.
        out: The request's file; by default ``request.json`` beside ``site.toml``.
        new_key: Make a new key in place of the old one, which the coordinator must take with ``--replace``.

    Returns:
        The request: the site's id, its public key and the version of this software.

    Raises:
        InputError: If the kit's folder is open to others or is not this user's, the key there cannot be used,
            or a file cannot be written.
    """
    kit = SiteKit(site.coordinator.kit)
    out = site.folder / "request.json" if out is None else out
    access = _access(site)
    try:
        _own_folder(kit.folder, access)
        if new_key or not kit.key.exists():
            write_whole(kit.key, _new_key(), access.secret_mode, access.group)
        if not kit.secret.exists():
            content = secrets.token_hex(SECRET_BYTES).encode()  # read as it is, so no end of line
            write_whole(kit.secret, content, access.secret_mode, access.group)
        for path in (kit.key, kit.secret):
            _set_access(path, access)
        public = _public_half(kit.key)
        write_whole(kit.public_key, f"{public}\n".encode())
        write_whole(out, JoinRequest(site.id, public, version("federated-mmare")).content())
    except OSError as error:
        raise InputError(
            f"{error.filename or kit.folder}: cannot be written ({type(error).__name__})"
        ) from None
    return out


def own_fingerprint(site: SiteConfig) -> str:
    """Of the site's key, as ``ssh-keygen -l`` shows it.

    Raises:
        InputError: If there is no key yet, or it cannot be used.
    """
    return key_fingerprint(_public_half(SiteKit(site.coordinator.kit).key))


def authority_fingerprint(site: SiteConfig) -> str:
    """SHA-256 of the certificate of the installed authority: ``AB:CD:…``.

    Raises:
        InputError: If no bundle is installed.
    """
    path = SiteKit(site.coordinator.kit).ca
    try:
        content = path.read_bytes()
    except OSError:
        raise InputError(f"{path}: not there; mmare-site kit install puts it there") from None
    return _authority(content, str(path)).fingerprint(hashes.SHA256()).hex(":").upper()


def install_bundle(bundle: Path, site: SiteConfig) -> Coordinator:
    """Check the coordinator's bundle and unpack it into the kit's folder, in place of an earlier one.

    All of it is checked and written before the first file takes its name. Killed in between, the kit has no
    bundle, and says so; installing again puts it right.

    Args:
        bundle: The zip that came back.
        site: Whose.

    Returns:
        Where the site joins.

    Raises:
        InputError: If it is no bundle, holds anything else, is for another site or another key, its
            certificate is none of an authority, or its study cannot be read.
    """
    kit, access = SiteKit(site.coordinator.kit), _access(site)
    files = _unpacked(bundle)
    coordinator = _checked(files, bundle, site)
    targets = {BUNDLE_AUTHORITY: kit.ca, BUNDLE_STUDY: kit.study, BUNDLE_COORDINATOR: kit.joined}
    written = {name: kit.folder / f".{name}.new" for name in targets if name in files}
    try:
        _own_folder(kit.folder, access)
        for name, path in written.items():
            write_whole(path, files[name])
        kit.joined.unlink(missing_ok=True)
        kit.study.unlink(missing_ok=True)
        for name, path in written.items():  # the address last: with it the bundle counts as installed
            path.replace(targets[name])
    except OSError as error:
        raise InputError(
            f"{error.filename or kit.folder}: cannot be written ({type(error).__name__})"
        ) from None
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)
    return coordinator


# The key


def _new_key() -> bytes:
    """As ``ssh-keygen -t ecdsa -b 384`` makes it: the only form that Flower reads."""
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
    )


def _public_half(path: Path) -> str:
    """Of a private key file, OpenSSH format, without a comment."""
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise InputError(f"{path}: no key yet; mmare-site kit request makes it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # the second: it has a passphrase
        raise InputError(
            f"{path}: not a private key in OpenSSH form without passphrase; mmare-site kit request --new-key "
            "makes a new one"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(
            f"{path}: a key of another type than ECDSA, the only one that Flower takes; mmare-site kit "
            "request --new-key makes a new one"
        )
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


# The folder


def _access(site: SiteConfig) -> _Access:
    name = site.worker.group
    if name is None:
        return _Access(None)
    try:
        return _Access(grp.getgrnam(name).gr_gid, name)
    except KeyError:
        raise InputError(f"[worker] group is {name!r}, which this machine does not have") from None


def _own_folder(folder: Path, access: _Access) -> None:
    """Make the kit's folder, or check that it is ours and closed to others.

    Raises:
        InputError: If others can enter it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    open_to = 0o077 if access.group is None else 0o027
    ours = status.st_uid == os.geteuid()
    if access.group is None and ours and not mode & 0o027:  # a group that may no longer
        mode &= ~0o050
    if not ours or mode & open_to:
        raise InputError(
            f"{folder}: the kit's folder has mode {mode:04o} and owner {status.st_uid}; expected one of "
            f"your own that others cannot enter: chmod {access.folder_mode:04o}"
        )
    _set_access(folder, access, access.folder_mode)


def _set_access(path: Path, access: _Access, mode: int | None = None) -> None:
    if access.group is not None and path.stat().st_gid != access.group:
        try:
            os.chown(path, -1, access.group)
        except PermissionError:
            raise InputError(
                f"[worker] group is {access.name!r}, which this user is not in, so {path} cannot be "
                "given to it"
            ) from None
    path.chmod(access.secret_mode if mode is None else mode)


# The bundle


def _unpacked(bundle: Path) -> dict[str, bytes]:
    """Its files by name, in memory: names and sizes are looked at before anything is unpacked."""
    try:
        if bundle.stat().st_size > MOST_BUNDLE_BYTES:
            raise InputError(f"{bundle}: more than {MOST_BUNDLE_BYTES} bytes, which no bundle has")
        with zipfile.ZipFile(bundle) as archive:
            _check_entries(archive.infolist(), bundle)
            return {entry.filename: _content(archive, entry, bundle) for entry in archive.infolist()}
    except FileNotFoundError:
        raise InputError(f"{bundle}: no such bundle") from None
    except OSError as error:
        raise InputError(f"{bundle}: cannot be read ({type(error).__name__})") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise InputError(
            f"{bundle}: not a bundle, or damaged; ask the coordinator for the zip that mmare-server "
            "kit admit wrote"
        ) from None


def _check_entries(entries: list[zipfile.ZipInfo], bundle: Path) -> None:
    names = [entry.filename for entry in entries]
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile
    for name in names:
        if name not in _EXPECTED:
            raise InputError(f"{bundle}: holds {name[:80]!r}, expected only {', '.join(_EXPECTED)}")
        if names.count(name) > 1:
            raise InputError(f"{bundle}: holds {name} twice")
    for name in _REQUIRED:
        if name not in names:
            raise InputError(f"{bundle}: lacks {name}")


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, bundle: Path) -> bytes:
    with archive.open(entry) as file:
        content = file.read(MOST_FILE_BYTES + 1)
    if len(content) > MOST_FILE_BYTES:
        raise InputError(f"{bundle}: {entry.filename} has more than {MOST_FILE_BYTES} bytes")
    if PRIVATE_MARK in content:
        raise InputError(f"{bundle}: {entry.filename} holds a private key; tell the coordinator")
    return content


def _checked(files: Mapping[str, bytes], bundle: Path, site: SiteConfig) -> Coordinator:
    _authority(files[BUNDLE_AUTHORITY], f"{bundle}: {BUNDLE_AUTHORITY}")
    coordinator = parse_coordinator(
        _toml(files, BUNDLE_COORDINATOR, bundle), f"{bundle}: {BUNDLE_COORDINATOR}"
    )
    if coordinator.site != site.id:
        raise InputError(f"{bundle}: for the site {coordinator.site!r}, but [site] id is {site.id!r}")
    own = own_fingerprint(site)
    if coordinator.key != own:
        raise InputError(
            f"{bundle}: for the key {coordinator.key}, but this site's is {own}; send request.json again"
        )
    found = ""
    if BUNDLE_STUDY in files:
        try:
            found = parse_study(_toml(files, BUNDLE_STUDY, bundle), BUNDLE_STUDY).hash
        except StudyError as error:
            raise InputError(f"{bundle}: {error}") from None
    if found != coordinator.study:
        raise InputError(
            f"{bundle}: the hash of its study is {found or 'none'}, but {BUNDLE_COORDINATOR} names "
            f"{coordinator.study or 'none'}; ask the coordinator for the bundle again"
        )
    return coordinator


def _toml(files: Mapping[str, bytes], name: str, bundle: Path) -> dict[str, object]:
    try:
        return tomllib.loads(files[name].decode("utf-8-sig"))
    except ValueError:  # of UTF-8 and of TOML
        raise InputError(f"{bundle}: {name} is not TOML") from None


def _authority(content: bytes, where: str) -> x509.Certificate:
    """The certificate of an authority that signed itself and is not over."""
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise InputError(f"{where}: not a certificate in PEM form") from None
    if len(found) != 1:
        raise InputError(f"{where}: {len(found)} certificates, expected one")
    certificate = found[0]
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        signs = constraints.ca and usage.key_cert_sign
        certificate.verify_directly_issued_by(certificate)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        signs = False
    if not signs:
        raise InputError(f"{where}: not the certificate of an authority")
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise InputError(f"{where}: over since {certificate.not_valid_after_utc:%Y-%m-%d}")
    return certificate
