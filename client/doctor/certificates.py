"""The identity that a TLS server presents, and why it is rejected."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cryptography import x509

from client.doctor.findings import Obstacle

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Certificate", "certificate_obstacle", "read_authority", "read_certificate"]

# OpenSSL's codes (x509_vfy.h) of errors with a remedy.
NOT_YET: Final = 9
EXPIRED: Final = 10
WRONG_NAME: Final = (62, 64)  # host name, IP address
UNKNOWN: Final = (18, 19, 20, 21)  # four variants of an untrusted issuer


@dataclass(frozen=True)
class Certificate:
    """The fields of a certificate that the checks use."""

    subject: str
    issuer: str
    begins: datetime
    ends: datetime
    names: tuple[str, ...]  # host names and addresses

    def days_left(self, now: datetime) -> int:
        """Whole days until it expires; negative afterwards."""
        return (self.ends - now).days


def read_certificate(der: bytes) -> Certificate:
    """Parse a DER certificate; raises `ValueError` if invalid."""
    return _certificate(x509.load_der_x509_certificate(der))


def read_authority(path: Path) -> Certificate:
    """The first certificate of a PEM file; raises `OSError` or `ValueError`."""
    return _certificate(x509.load_pem_x509_certificate(path.read_bytes()))


def _certificate(found: x509.Certificate) -> Certificate:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        texts = (
            *names.get_values_for_type(x509.DNSName),
            *map(str, names.get_values_for_type(x509.IPAddress)),
        )
    except x509.ExtensionNotFound:
        texts = ()
    return Certificate(
        found.subject.rfc4514_string() or "nobody",
        found.issuer.rfc4514_string() or "nobody",
        found.not_valid_before_utc,
        found.not_valid_after_utc,
        texts,
    )


def certificate_obstacle(
    error: ssl.SSLCertVerificationError, shown: Certificate, authority: Certificate, host: str
) -> Obstacle:
    """Why the certificate ``shown`` by ``host`` was rejected, and the remedy; ``authority`` is the kit's."""
    code, now = error.verify_code, datetime.now(UTC)
    if code in (EXPIRED, NOT_YET):
        return _out_of_time(shown, authority, now)
    if code in WRONG_NAME:
        names = ", ".join(shown.names) or "no name at all"
        return Obstacle(
            f"the certificate is for {names}, not for {host}",
            f"ask the coordinator for a bundle with the right name, or for a certificate that is for {host}",
        )
    if code in UNKNOWN and shown.issuer == authority.subject:
        return Obstacle(
            f"the certificate is signed by another {shown.issuer} than the kit's",
            "the coordinator has made a new authority: ask for a new bundle and install it",
        )
    if code in UNKNOWN:
        return Obstacle(
            f"the certificate is of {shown.subject}, issued by {shown.issuer}; the federation's authority is "
            f"{authority.subject}",
            f"if {shown.issuer} is a proxy or firewall of this hospital that intercepts TLS, have {host} "
            "exempted; otherwise another machine answers under this name",
        )
    return Obstacle(
        f"the certificate of {shown.subject} is rejected: {error.verify_message}",
        "send this line to the coordinator, who makes a new one with mmare-server kit renew",
    )


def _out_of_time(shown: Certificate, authority: Certificate, now: datetime) -> Obstacle:
    clock = f"(this machine's clock says {now:%Y-%m-%d %H:%M} UTC)"
    for each, whose, remedy in (
        (shown, "the coordinator's certificate", "ask the coordinator to run mmare-server kit renew"),
        (authority, "the federation's authority in the kit", "ask the coordinator for a new bundle"),
    ):
        advice = f"check this machine's clock; if it is right, {remedy}"
        if now > each.ends:
            return Obstacle(f"{whose} expired on {each.ends:%Y-%m-%d %H:%M} UTC {clock}", advice)
        if now < each.begins:
            return Obstacle(f"{whose} is valid only from {each.begins:%Y-%m-%d %H:%M} UTC {clock}", advice)
    return Obstacle(
        f"an intermediate certificate is expired or not yet valid {clock}",
        "check this machine's clock; if it is right, ask the coordinator for a new bundle",
    )
