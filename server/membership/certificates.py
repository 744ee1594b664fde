"""The coordinator's own certificate authority and the certificate of its public door.

Elliptic curves throughout: P-384 for the authority, which lives ten years, P-256 for the server, whose key
signs every handshake. Both pass OpenSSL's and Python's strict checks (RFC 5280).
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mmare.errors import InputError
from server.membership.options import SERVER_DAYS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "AUTHORITY_DAYS",
    "Pair",
    "certificate_days_left",
    "certificate_end",
    "certificate_fingerprint",
    "certificate_names",
    "new_authority",
    "new_server",
    "same_key",
]

AUTHORITY_DAYS: Final = 3653  # ten years
BEFORE: Final = timedelta(hours=1)  # valid from: a site whose clock is a little behind can join at once
LONGEST_NAME: Final = 64  # characters of a common name (RFC 5280, ub-common-name)


@dataclass(frozen=True)
class Pair:
    """A private key and the certificate of its public half, both PEM.

    Args:
        key: Private.
        certificate: Public.
    """

    key: bytes
    certificate: bytes


def new_authority(name: str, start: datetime | None = None) -> Pair:
    """Make a certificate authority; it signs server certificates and nothing else.

    Args:
        name: Of the federation, at most 40 characters.
        start: When it becomes valid; an hour ago by default.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(f"{name} authority")
    builder = (
        _builder(key, subject, subject, start, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return Pair(_private(key), builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM))


def new_server(
    authority: Pair,
    host: str,
    key: bytes | None = None,
    days: int = SERVER_DAYS,
    start: datetime | None = None,
) -> Pair:
    """Make a certificate for the coordinator's host, which also answers as ``localhost`` and 127.0.0.1.

    Args:
        authority: That signs.
        host: Name or address under which sites reach the coordinator.
        key: Private key to go on with; a new one by default.
        days: How long it is valid, but never longer than the authority.
        start: From when; an hour ago by default.

    Raises:
        TypeError: If a key is of another kind.
        ValueError: If a key or the authority's certificate cannot be read, or the authority's time is over.
    """
    own = _ec_key(key) if key is not None else ec.generate_private_key(ec.SECP256R1())
    signer = _ec_key(authority.key)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    if issuer.not_valid_after_utc <= datetime.now(UTC):
        raise ValueError("its time is over")
    authority_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    subject = _name(host if len(host) <= LONGEST_NAME else "coordinator")
    builder = (
        _builder(own, subject, issuer.subject, start, days, issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternatives(host)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), critical=False
        )
    )
    return Pair(_private(own), builder.sign(signer, hashes.SHA384()).public_bytes(Encoding.PEM))


def certificate_end(path: Path) -> datetime:
    """Until when a certificate is valid.

    Raises:
        InputError: If the file is missing or holds no certificate.
    """
    return _certificate(path).not_valid_after_utc


def certificate_days_left(path: Path) -> int:
    """Whole days until a certificate is over; negative once it is.

    Raises:
        InputError: If the file is missing or holds no certificate.
    """
    left = certificate_end(path) - datetime.now(UTC)
    return math.floor(left / timedelta(days=1))


def certificate_names(path: Path) -> tuple[str, ...]:
    """Names and addresses that a certificate is good for.

    Raises:
        InputError: If the file is missing or holds no certificate.
    """
    found = _certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in found)


def certificate_fingerprint(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate, as people compare it: ``AB:CD:…``.

    Raises:
        ValueError: If it is none.
    """
    return x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256()).hex(":").upper()


def same_key(pair: Pair) -> bool:
    """Whether key and certificate belong together.

    Raises:
        ValueError: If one of them cannot be read.
    """
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    own, named = _ec_key(pair.key).public_key(), certificate.public_key()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return own.public_bytes(*form) == named.public_bytes(*form)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None
    except ValueError:
        raise InputError(f"{path}: not a certificate in PEM form") from None


def _builder(
    key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    issuer: x509.Name,
    start: datetime | None,
    days: int,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    begin = datetime.now(UTC) - BEFORE if start is None else start
    end = begin + timedelta(days=days)
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end if latest is None else min(end, latest))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(host: str) -> list[x509.GeneralName]:
    """Each once, the host first."""
    names = dict.fromkeys((host, "localhost", "127.0.0.1"))
    return [_alternative(name) for name in names]


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _ec_key(content: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(content, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"expected a key of an elliptic curve, found {type(key).__name__}")
    return key
