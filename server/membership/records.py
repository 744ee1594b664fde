"""One record per site in the coordinator's folder, and the bundle that an admitted site gets.

Records are kept after revocation: a revoked key is never admitted again, since SuperLink accepts no key twice
and whoever obtained it may still have it.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from mmare.errors import InputError
from mmare.host.files import write_whole
from mmare.study.study import load_study
from mmare.study.tables import TableError, from_table
from mmare.wire.joining import (
    BUNDLE_AUTHORITY,
    BUNDLE_COORDINATOR,
    BUNDLE_STUDY,
    MOST_FILE_BYTES,
    PRIVATE_MARK,
    key_fingerprint,
    read_request,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mmare.wire.joining import JoinRequest
    from server.membership.kit import Kit

__all__ = ["Admitted", "FormerKey", "SiteState", "admit", "find", "listed", "revoke", "save"]

CURVES: Final = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")  # Flower's
_TIME: Final = (2020, 1, 1, 0, 0, 0)  # of every ZIP entry, so that the same admission gives the same bytes


class SiteState(StrEnum):
    """Whether a site may take part."""

    ADMITTED = "admitted"
    REVOKED = "revoked"


@dataclass(frozen=True)
class FormerKey:
    """A key that a site had before."""

    fingerprint: str
    node_id: int | None = None  # None if it was never registered


@dataclass(frozen=True)
class Admitted:
    """The coordinator's record of one site: ``sites/NAME.json``; times are ISO, UTC."""

    site: str
    public_key: str  # in OpenSSH format
    fingerprint: str  # as ssh-keygen -l prints it
    admitted: str
    software: str  # version at the time of the request
    state: SiteState = SiteState.ADMITTED
    node_id: int | None = None  # at SuperLink, once registered
    revoked: str | None = None
    former: tuple[FormerKey, ...] = ()


def admit(
    kit: Kit, request: Path, study: Path | None = None, out: Path | None = None, *, replace_key: bool = False
) -> Path:
    """Write a site's bundle, by default to ``bundles/SITE.zip`` of the kit, then record the site.

    The bundle holds the coordinator's address, the authority's certificate and the study, and no secret.
    Admitting a site again with the same key only rewrites its bundle.

    Raises:
        InputError: If the request, key or study is invalid, the key is another site's or was revoked, or the
            site has another key and ``replace_key`` is not set.
    """
    wanted = read_request(request)
    key = _checked_key(wanted, request)
    content, study_hash = (None, "") if study is None else _study(study)
    with kit.locked():
        record = _record(kit, wanted, key, request, replace_key=replace_key)
        bundle = kit.bundles / f"{wanted.site}.zip" if out is None else out
        try:
            bundle.parent.mkdir(parents=True, exist_ok=True)
            write_whole(bundle, _bundle(kit, record, content, study_hash))
        except OSError as error:
            raise InputError(f"{bundle}: cannot be written ({type(error).__name__})") from None
        save(kit, record)
    return bundle


def revoke(kit: Kit, site: str) -> Admitted:
    """Revoke a site's key for good and delete its bundle; does nothing the second time.

    `server.membership.flower_nodes.register_admitted` applies it to SuperLink.

    Raises:
        InputError: If no such site was admitted.
    """
    with kit.locked():
        record = find(kit, site)
        if record.state is not SiteState.REVOKED:
            record = replace(record, state=SiteState.REVOKED, revoked=_now())
            save(kit, record)
            (kit.bundles / f"{site}.zip").unlink(missing_ok=True)
    return record


def listed(kit: Kit) -> tuple[Admitted, ...]:
    """Every record, sorted by site id.

    Raises:
        InputError: If one cannot be read.
    """
    return tuple(_read(path) for path in sorted(kit.sites.glob("*.json")))


def find(kit: Kit, site: str) -> Admitted:
    """The record of one site.

    Raises:
        InputError: If there is none; it lists the known sites.
    """
    known = {record.site: record for record in listed(kit)}
    if site not in known:
        names = ", ".join(known) or "none yet"
        raise InputError(f"{kit.folder}: no site {site!r} was admitted; there are: {names}")
    return known[site]


def save(kit: Kit, record: Admitted) -> None:
    """Replace a record atomically; the kit must be locked.

    Raises:
        InputError: If it cannot be written; the old record is kept.
    """
    content = json.dumps(asdict(record), indent=2) + "\n"
    path = kit.sites / f"{record.site}.json"
    try:
        write_whole(path, content.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({type(error).__name__})") from None


def _read(path: Path) -> Admitted:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        record = from_table(Admitted, found, "the record")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        why = str(error) if isinstance(error, TableError) else type(error).__name__
        raise InputError(f"{path}: not a site's record ({why})") from None
    if record.site != path.stem:
        raise InputError(f"{path}: the record of another site, {record.site!r}")
    return record


def _checked_key(request: JoinRequest, source: Path) -> str:
    """The validated key in OpenSSH format, without its comment."""
    kind = request.public_key.split(maxsplit=1)[:1]
    if not kind or kind[0] not in CURVES:
        shown = kind[0][:40] if kind else ""
        raise InputError(
            f"{source}: public_key is of type {shown!r}, expected ecdsa-sha2-nistp384 as "
            "mmare-site kit request makes it"
        )
    try:
        key = load_ssh_public_key(request.public_key.strip().encode())
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{source}: public_key is damaged; ask the site to send its request again") from None
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _record(kit: Kit, wanted: JoinRequest, key: str, source: Path, *, replace_key: bool) -> Admitted:
    """The site's new record."""
    fingerprint = key_fingerprint(key)
    known = {record.site: record for record in listed(kit)}
    for record in known.values():
        used = {record.fingerprint, *(old.fingerprint for old in record.former)}
        if record.site != wanted.site and fingerprint in used:
            raise InputError(
                f"{source}: the key of {wanted.site!r} belongs to {record.site!r} already; every site makes "
                "its own with mmare-site kit request"
            )
    new = Admitted(wanted.site, key, fingerprint, _now(), wanted.software)
    old = known.get(wanted.site)
    if old is None:
        return new
    revoked = old.state is SiteState.REVOKED
    refused = {former.fingerprint for former in old.former} | ({old.fingerprint} if revoked else set())
    if fingerprint in refused:
        raise InputError(
            f"{source}: this key of {wanted.site!r} was revoked or replaced for good; the site makes a new "
            "one with mmare-site kit request --new-key"
        )
    if fingerprint == old.fingerprint:
        return replace(old, software=wanted.software)
    if not revoked and not replace_key:
        raise InputError(
            f"{source}: {wanted.site!r} is already admitted with another key, {old.fingerprint}; if the site "
            "made a new one, use --replace, otherwise run mmare-server kit revoke first"
        )
    return replace(new, former=(*old.former, FormerKey(old.fingerprint, old.node_id)))


def _study(study: Path) -> tuple[bytes, str]:
    """The file's content and the study's hash."""
    study_hash = load_study(study).hash
    content = study.read_bytes()
    if len(content) > MOST_FILE_BYTES:
        raise InputError(f"{study}: {len(content)} bytes, expected at most {MOST_FILE_BYTES}")
    return content, study_hash


def _bundle(kit: Kit, record: Admitted, study: bytes | None, study_hash: str) -> bytes:
    address = {
        "federation": kit.federation,
        "host": kit.host,
        "port": kit.port,
        "site": record.site,
        "key": record.fingerprint,
        "study": study_hash,
    }
    files = {
        BUNDLE_COORDINATOR: tomli_w.dumps(address).encode(),
        BUNDLE_AUTHORITY: kit.ca_certificate.read_bytes(),
    }
    if study is not None:
        files[BUNDLE_STUDY] = study
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            if PRIVATE_MARK in content:  # such as a ca.crt to which the key was appended
                raise InputError(f"{name} of the bundle: holds a private key")
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
