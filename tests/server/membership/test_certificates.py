import shutil
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mmare.errors import InputError
from server.membership.certificates import (
    AUTHORITY_DAYS,
    Pair,
    certificate_days_left,
    certificate_end,
    certificate_fingerprint,
    certificate_names,
    new_authority,
    new_server,
    same_key,
)
from server.membership.options import SERVER_DAYS
from tests.kits import served, strict_context


@pytest.fixture(scope="module")
def authority():
    return new_authority("kidney")


def written(folder: Path, authority: Pair, server: Pair) -> tuple[Path, Path, Path]:
    paths = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    for path, content in zip(paths, (authority.certificate, server.certificate, server.key), strict=True):
        path.write_bytes(content)
    return paths


def shake_hands(authority: Path, port: int, name: str) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        strict_context(authority).wrap_socket(plain, server_hostname=name) as tls,
    ):
        tls.sendall(b"?")
        return tls.recv(100)


@pytest.mark.parametrize(
    ("host", "names"),
    [
        pytest.param("join.example.org", ("join.example.org", "localhost", "127.0.0.1"), id="name"),
        pytest.param("10.1.2.3", ("10.1.2.3", "localhost", "127.0.0.1"), id="address"),
        pytest.param("127.0.0.1", ("127.0.0.1", "localhost"), id="loopback"),
        pytest.param("fd00::7", ("fd00::7", "localhost", "127.0.0.1"), id="IPv6"),
        pytest.param(
            "a" * 60 + ".example.org", ("a" * 60 + ".example.org", "localhost", "127.0.0.1"), id="long"
        ),
    ],
)
def test_a_strict_client_believes_the_server_under_each_of_its_names(tmp_path, authority, host, names):
    ca, certificate, key = written(tmp_path, authority, new_server(authority, host))
    assert certificate_names(certificate) == names
    with served(certificate, key) as port:
        for name in names:
            assert shake_hands(ca, port, name) == b"hello"


@pytest.mark.parametrize(
    ("change", "name", "why"),
    [
        pytest.param("name", "other.example.org", "not valid for 'other.example.org'", id="another name"),
        pytest.param("authority", "join.example.org", "certificate verify failed", id="another authority"),
        pytest.param("time", "join.example.org", "certificate has expired", id="expired"),
    ],
)
def test_a_strict_client_refuses(tmp_path, authority, change, name, why):
    start = datetime.now(UTC) - timedelta(days=9) if change == "time" else None
    days = 3 if change == "time" else SERVER_DAYS
    server = new_server(authority, "join.example.org", days=days, start=start)
    trusted = new_authority("kidney") if change == "authority" else authority
    ca, certificate, key = written(tmp_path, trusted, server)
    with served(certificate, key) as port, pytest.raises(ssl.SSLCertVerificationError, match=why):
        shake_hands(ca, port, name)


def test_openssl_agrees(tmp_path, authority):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    ca, certificate, _ = written(tmp_path, authority, new_server(authority, "join.example.org"))
    command = [
        openssl,
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-verify_hostname",
        "join.example.org",
    ]
    done = subprocess.run(
        [*command, "-CAfile", str(ca), str(certificate)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stdout == f"{certificate}: OK\n"


def test_the_server_cannot_sign_nor_the_authority_serve(authority):
    server = x509.load_pem_x509_certificate(new_server(authority, "join.example.org").certificate)
    signer = x509.load_pem_x509_certificate(authority.certificate)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    limits = signer.extensions.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical
    assert limits.value.path_length == 0
    assert not signer.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert signer.not_valid_after_utc - signer.not_valid_before_utc == timedelta(days=AUTHORITY_DAYS)


def test_a_renewed_certificate_keeps_the_key_it_is_given(authority):
    first = new_server(authority, "join.example.org")
    again = new_server(authority, "join.example.org", first.key)
    other = new_server(authority, "join.example.org")
    assert again.key == first.key
    assert again.certificate != first.certificate
    assert same_key(again)
    assert not same_key(Pair(other.key, first.certificate))


def test_a_server_ends_with_its_authority_at_the_latest(tmp_path):
    old = new_authority("kidney", start=datetime.now(UTC) - timedelta(days=AUTHORITY_DAYS - 5))
    path = tmp_path / "server.crt"
    path.write_bytes(new_server(old, "join.example.org", days=300).certificate)
    assert certificate_days_left(path) == 4
    over = new_authority("kidney", start=datetime.now(UTC) - timedelta(days=AUTHORITY_DAYS + 5))
    with pytest.raises(ValueError, match="it has expired"):
        new_server(over, "join.example.org")


def test_days_left_count_whole_days_and_go_below_zero(tmp_path, authority):
    path = tmp_path / "server.crt"
    path.write_bytes(new_server(authority, "localhost", days=10).certificate)
    assert certificate_days_left(path) == 9
    assert timedelta(days=9) < certificate_end(path) - datetime.now(UTC) < timedelta(days=10)
    start = datetime.now(UTC) - timedelta(days=9)
    path.write_bytes(new_server(authority, "localhost", days=3, start=start).certificate)
    assert certificate_days_left(path) == -7


def test_a_fingerprint_is_that_of_openssl(tmp_path, authority):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "ca.crt"
    path.write_bytes(authority.certificate)
    command = [openssl, "x509", "-in", str(path), "-noout", "-fingerprint", "-sha256"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert said.strip().split("=")[1] == certificate_fingerprint(authority.certificate)


def test_what_is_no_certificate_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"server\.crt: cannot be read \(FileNotFoundError\)"):
        certificate_days_left(tmp_path / "server.crt")
    (tmp_path / "server.crt").write_text("hello")
    with pytest.raises(InputError, match=r"server\.crt: not a certificate in PEM form"):
        certificate_names(tmp_path / "server.crt")


def test_keys_of_another_kind_are_refused(authority):
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with pytest.raises(TypeError, match="elliptic curve"):
        new_server(authority, "localhost", key)
    public = x509.load_pem_x509_certificate(authority.certificate).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
