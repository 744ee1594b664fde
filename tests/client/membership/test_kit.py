import grp
import os
import shutil
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from client.membership.kit import make_request, own_fingerprint
from mmare.errors import InputError
from mmare.wire.joining import SiteKit, read_request
from tests.kits import asked, site_config

GROUP = grp.getgrgid(os.getgid()).gr_name


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def private(key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_request_names_the_site_and_its_public_key_and_nothing_secret(tmp_path):
    config, path = asked(tmp_path)
    assert path == config.folder / "request-ash.json"
    request = read_request(path)
    kit = SiteKit(config.coordinator.kit)
    assert request.site == "ash"
    assert request.public_key == kit.public_key.read_text().strip()
    key = kit.key.read_bytes()
    assert key.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    for line in (*key.splitlines(), kit.secret.read_bytes()):
        assert line not in path.read_bytes()
    assert str(tmp_path).encode() not in path.read_bytes()


def test_ssh_keygen_reads_the_key_and_agrees(tmp_path):
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("ssh-keygen is not installed")
    config, path = asked(tmp_path)
    key = SiteKit(config.coordinator.kit).key

    def said(*arguments: str) -> str:
        command = [program, *arguments, "-f", str(key)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    assert said("-y").split()[:2] == read_request(path).public_key.split()
    assert said("-l").split()[:2] == ["384", own_fingerprint(config)]


def test_a_second_request_is_the_same(tmp_path):
    config, path = asked(tmp_path)
    request, kit = path.read_bytes(), contents(config.coordinator.kit)
    other = make_request(config, tmp_path / "other.json")
    assert other.read_bytes() == request
    assert contents(config.coordinator.kit) == kit
    (config.coordinator.kit / "node.pub").unlink()  # made again from the key
    assert make_request(config).read_bytes() == request
    assert contents(config.coordinator.kit) == kit


def test_a_new_key_differs(tmp_path):
    config, path = asked(tmp_path)
    old = read_request(path).public_key, own_fingerprint(config)
    secret = SiteKit(config.coordinator.kit).secret.read_bytes()
    make_request(config, new_key=True)
    assert read_request(path).public_key != old[0]
    assert own_fingerprint(config) != old[1]
    assert SiteKit(config.coordinator.kit).secret.read_bytes() == secret


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_key_and_secret_are_readable_by_their_owner_only(tmp_path, umask):
    before = os.umask(umask)
    try:
        config, _ = asked(tmp_path)
    finally:
        os.umask(before)
    kit = SiteKit(config.coordinator.kit)
    assert [mode_of(path) for path in (kit.folder, kit.key, kit.secret)] == [0o700, 0o600, 0o600]


def test_a_group_can_read_the_kit_while_it_is_configured(tmp_path):
    config = site_config(tmp_path / "ash", more=f'[worker]\ngroup = "{GROUP}"')
    make_request(config)
    kit = SiteKit(config.coordinator.kit)
    paths = (kit.folder, kit.key, kit.secret)
    assert [mode_of(path) for path in paths] == [0o750, 0o640, 0o640]
    assert {path.stat().st_gid for path in paths} == {os.getgid()}
    make_request(site_config(tmp_path / "ash"))
    assert [mode_of(path) for path in paths] == [0o700, 0o600, 0o600]


def test_an_unknown_group_is_an_error(tmp_path):
    config = site_config(tmp_path / "ash", more='[worker]\ngroup = "no-such-group"')
    with pytest.raises(InputError, match=r"\[worker\] group is 'no-such-group'"):
        make_request(config)
    assert not config.coordinator.kit.exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701], ids=oct)
def test_a_folder_that_others_can_enter_is_refused(tmp_path, mode):
    config = site_config(tmp_path / "ash")
    config.coordinator.kit.mkdir()
    config.coordinator.kit.chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o} .* chmod 0700"):
        make_request(config)
    assert not any(config.coordinator.kit.iterdir())


@pytest.mark.parametrize(
    ("key", "why"),
    [
        pytest.param(b"hello", "not a private key in OpenSSH format", id="garbage"),
        pytest.param(b"", "not a private key in OpenSSH format", id="empty"),
        pytest.param(private(ed25519.Ed25519PrivateKey.generate()), "not an ECDSA key", id="Ed25519"),
        pytest.param(
            ec.generate_private_key(ec.SECP384R1()).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ),
            "not a private key in OpenSSH format",
            id="PKCS 8",
        ),
    ],
)
def test_an_unusable_key_is_kept_and_reported(tmp_path, key, why):
    config, path = asked(tmp_path)
    path.unlink()
    SiteKit(config.coordinator.kit).key.write_bytes(key)
    with pytest.raises(InputError, match=rf"node\.key: .*{why}.*--new-key"):
        make_request(config)
    assert SiteKit(config.coordinator.kit).key.read_bytes() == key
    assert not path.exists()
    make_request(config, new_key=True)
    assert path.exists()


def test_a_key_is_accepted_only_without_a_passphrase(tmp_path):
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("ssh-keygen is not installed")
    config, path = asked(tmp_path)
    key = SiteKit(config.coordinator.kit).key
    key.unlink()
    command = [program, "-q", "-t", "ecdsa", "-b", "384", "-f", str(key), "-N"]
    subprocess.run([*command, "a passphrase"], check=True, timeout=30)
    with pytest.raises(InputError, match=r"node\.key: .*without passphrase"):
        make_request(config)
    key.unlink()
    key.with_name("node.key.pub").unlink()
    subprocess.run([*command, ""], check=True, timeout=30)
    make_request(config)
    assert read_request(path).public_key in key.with_name("node.key.pub").read_text()


def test_a_request_that_cannot_be_written_is_an_error(tmp_path):
    config = site_config(tmp_path / "ash")
    with pytest.raises(InputError, match=r"cannot be written \(FileNotFoundError\)"):
        make_request(config, tmp_path / "no" / "folder" / "request.json")
