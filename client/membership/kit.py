"""A site's kit: its private key, which never leaves it, and the coordinator's address and certificate.

::

    make_request ─► node.key, node.pub, superexec.secret in the kit folder; request-SITE.json beside site.toml
    install_bundle ─► ca.crt, coordinator.toml, study.toml in the kit folder

A bundle holds an address, a certificate and perhaps a study, all checked before anything is installed;
nothing in it is executed.
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
    """Who may read the kit: its owner, and a group if the relay runs as another user."""

    group: int | None
    name: str = ""

    @property
    def folder_mode(self) -> int:
        return 0o700 if self.group is None else 0o750

    @property
    def secret_mode(self) -> int:
        return 0o600 if self.group is None else 0o640


def make_request(site: SiteConfig, out: Path | None = None, *, new_key: bool = False) -> Path:
    """Generate the site's key, unless it has one, and write the request for the coordinator.

    Run again, it writes the same request: the site's id, its public key and the version of this software.

    Args:
        out: By default ``request-SITE.json`` beside ``site.toml``.
        new_key: Replace the key; the coordinator must admit the new one with ``--replace``.

    Raises:
        InputError: If the kit's folder is accessible to others or not this user's, its key is unusable, or a
        file
            cannot be written.
    """
    kit = SiteKit(site.coordinator.kit)
    out = site.folder / f"request-{site.id}.json" if out is None else out
    access = _access(site)
    try:
        _own_folder(kit.folder, access)
        if new_key or not kit.key.exists():
            write_whole(kit.key, _new_key(), access.secret_mode, access.group)
        if not kit.secret.exists():
            content = secrets.token_hex(SECRET_BYTES).encode()  # read verbatim, so no newline
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
    """Fingerprint of the site's key, as of ``ssh-keygen -l``; `InputError` if it has no usable key."""
    return key_fingerprint(_public_half(SiteKit(site.coordinator.kit).key))


def authority_fingerprint(site: SiteConfig) -> str:
    """SHA-256 of the installed authority's certificate, ``AB:CD:…``; `InputError` if there is none."""
    path = SiteKit(site.coordinator.kit).ca
    try:
        content = path.read_bytes()
    except OSError:
        raise InputError(f"{path}: not there; mmare-site kit install writes it") from None
    return _authority(content, str(path)).fingerprint(hashes.SHA256()).hex(":").upper()


def install_bundle(bundle: Path, site: SiteConfig) -> Coordinator:
    """Check the coordinator's bundle and install it into the kit's folder, replacing an earlier one.

    Everything is checked and written before the first file is renamed into place. If interrupted in between,
    the kit has no bundle; installing again repairs it.

    Raises:
        InputError: If the zip is not a bundle, has unexpected entries, is for another site or key, its
        certificate
            is not an authority's, or its study is invalid.
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
        for name, path in written.items():  # the address last: it marks the bundle as installed
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
    """A key as of ``ssh-keygen -t ecdsa -b 384``, the only format that Flower reads."""
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
    )


def _public_half(path: Path) -> str:
    """Public key of a private key file, in OpenSSH format without a comment."""
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise InputError(f"{path}: no key yet; mmare-site kit request generates it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a passphrase
        raise InputError(
            f"{path}: not a private key in OpenSSH format without passphrase; mmare-site kit request "
            "--new-key replaces it"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(
            f"{path}: not an ECDSA key, the only type that Flower accepts; mmare-site kit request --new-key "
            "replaces it"
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
    """Create the kit's folder, or check its owner and mode; raises `InputError` if others can enter it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    open_to = 0o077 if access.group is None else 0o027
    ours = status.st_uid == os.geteuid()
    if access.group is None and ours and not mode & 0o027:  # of a group that was removed from [worker]
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
                "assigned to it"
            ) from None
    path.chmod(access.secret_mode if mode is None else mode)


# The bundle


def _unpacked(bundle: Path) -> dict[str, bytes]:
    """The bundle's files by name, in memory; names and sizes are checked before unpacking."""
    try:
        if bundle.stat().st_size > MOST_BUNDLE_BYTES:
            raise InputError(f"{bundle}: more than {MOST_BUNDLE_BYTES} bytes, too large for a bundle")
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
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
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
        raise InputError(f"{bundle}: {entry.filename} holds a private key; inform the coordinator")
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
            f"{bundle}: for the key {coordinator.key}, but this site's is {own}; send the request that "
            "mmare-site kit request makes again"
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
    except ValueError:  # invalid UTF-8 or TOML
        raise InputError(f"{bundle}: {name} is not TOML") from None


def _authority(content: bytes, where: str) -> x509.Certificate:
    """The self-signed certificate of an authority that has not expired."""
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise InputError(f"{where}: not a certificate in PEM format") from None
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
        raise InputError(f"{where}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return certificate
