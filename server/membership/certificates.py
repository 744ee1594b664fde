"""The coordinator's certificate authority and the certificate of its public endpoint.

Keys are on elliptic curves: P-384 for the authority, valid for ten years, and P-256 for the server, whose key
signs every handshake. Both certificates pass the strict checks of OpenSSL and Python (RFC 5280).
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
BACKDATE: Final = timedelta(hours=1)  # so that a site whose clock is slow can join at once
LONGEST_NAME: Final = 64  # characters of a common name (RFC 5280, ub-common-name)


@dataclass(frozen=True)
class Pair:
    """A private key and the certificate of its public key, both PEM."""

    key: bytes
    certificate: bytes


def new_authority(name: str, start: datetime | None = None) -> Pair:
    """Make a certificate authority that can sign only server certificates.

    Args:
        name: Of the federation, at most 40 characters.
        start: Start of validity; an hour ago by default.
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
    """Make a certificate for the coordinator's host, ``localhost`` and 127.0.0.1.

    Args:
        host: Name or address under which sites reach the coordinator.
        key: Private key to keep; a new one by default.
        days: Validity, cut at the end of the authority's.
        start: Start of validity; an hour ago by default.

    Raises:
        TypeError: If a key is not on an elliptic curve.
        ValueError: If a key or the authority's certificate cannot be read, or the authority has expired.
    """
    own = _ec_key(key) if key is not None else ec.generate_private_key(ec.SECP256R1())
    signer = _ec_key(authority.key)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    if issuer.not_valid_after_utc <= datetime.now(UTC):
        raise ValueError("it has expired")
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
    """End of a certificate's validity.

    Raises:
        InputError: If the file is missing or holds no certificate.
    """
    return _certificate(path).not_valid_after_utc


def certificate_days_left(path: Path) -> int:
    """Whole days until a certificate expires; negative afterwards.

    Raises:
        InputError: If the file is missing or holds no certificate.
    """
    left = certificate_end(path) - datetime.now(UTC)
    return math.floor(left / timedelta(days=1))


def certificate_names(path: Path) -> tuple[str, ...]:
    """Names and addresses that a certificate is valid for.

    Raises:
        InputError: If the file is missing or holds no certificate.
    """
    found = _certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in found)


def certificate_fingerprint(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate in the form that people compare: ``AB:CD:…``.

    Raises:
        ValueError: If it is not a certificate.
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
    begin = datetime.now(UTC) - BACKDATE if start is None else start
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
    return [_alternative(name) for name in dict.fromkeys((host, "localhost", "127.0.0.1"))]


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
        raise TypeError(f"expected a key on an elliptic curve, found {type(key).__name__}")
    return key
