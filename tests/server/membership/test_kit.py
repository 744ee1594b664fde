import os
import stat
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from mmare.errors import InputError, RunError
from server.membership import kit as kit_module
from server.membership.certificates import certificate_days_left, certificate_names, new_authority
from server.membership.kit import Kit, init_kit, load_kit, renew
from tests.kits import served
from tests.server.membership.test_certificates import shake_hands

HOST = "join.example.org"
NOBODY = 65534


@pytest.fixture
def kit(tmp_path) -> Kit:
    return init_kit(tmp_path / "coordinator", HOST, 8443, "kidney", 9999)


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_kit_is_read_back_as_it_was_made(kit):
    assert load_kit(kit.folder) == kit
    assert (kit.federation, kit.host, kit.port, kit.superlink_port) == ("kidney", HOST, 8443, 9999)
    assert kit.folder.is_absolute()


def test_secrets_of_a_new_kit_are_closed_to_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        kit = init_kit(tmp_path / "coordinator", HOST)
    finally:
        os.umask(before)
    assert mode_of(kit.folder) == 0o700
    assert [mode_of(path) for path in (kit.ca_key, kit.key, kit.secret)] == [0o600] * 3
    assert mode_of(kit.certificate) == mode_of(kit.ca_certificate) == 0o644


def test_two_kits_share_no_secret(tmp_path, kit):
    other = init_kit(tmp_path / "other", HOST)
    for path in ("ca.key", "server.key", "superexec.secret"):
        assert (kit.folder / path).read_bytes() != (other.folder / path).read_bytes()
    secret = kit.secret.read_bytes()
    assert len(secret) == 64  # 32 bytes in hexadecimal, no end of line
    assert secret.strip() == secret


def test_a_kit_is_made_once(kit):
    before = {path: path.read_bytes() for path in kit.folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"there is a kit already.*mmare-server kit renew"):
        init_kit(kit.folder, HOST)
    assert {path: path.read_bytes() for path in kit.folder.rglob("*") if path.is_file()} == before


def test_a_kit_takes_an_empty_folder_but_no_other(tmp_path):
    (tmp_path / "empty").mkdir()
    assert load_kit(init_kit(tmp_path / "empty", HOST).folder).host == HOST
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("hello")
    with pytest.raises(InputError, match="not empty and not a kit"):
        init_kit(tmp_path / "full", HOST)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


def test_nothing_is_left_of_a_kit_that_could_not_be_made(tmp_path, monkeypatch):
    def full_disk(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kit_module, "write_whole", full_disk)
    with pytest.raises(InputError, match=r"coordinator: cannot be created \(OSError\)"):
        init_kit(tmp_path / "coordinator", HOST)
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_are_made_at_once_one_wins(tmp_path, monkeypatch):
    made = kit_module._fill

    def slow(kit: Kit, days: int) -> None:
        made(kit, days)
        if not (tmp_path / "coordinator").exists():
            monkeypatch.setattr(kit_module, "_fill", made)
            init_kit(tmp_path / "coordinator", "first.example.org")

    monkeypatch.setattr(kit_module, "_fill", slow)
    with pytest.raises(InputError, match="cannot be created"):
        init_kit(tmp_path / "coordinator", "second.example.org")
    assert load_kit(tmp_path / "coordinator").host == "first.example.org"
    assert [path.name for path in tmp_path.iterdir()] == ["coordinator"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        pytest.param({"host": "https://join.example.org"}, "host is 'https://join", id="URL"),
        pytest.param({"host": "join.example.org:443"}, "without a port", id="host with port"),
        pytest.param({"host": "krankenhäuser.de"}, "host is", id="not ASCII"),
        pytest.param({"host": "10.0.0"}, "host is '10.0.0'", id="three numbers"),
        pytest.param({"host": ""}, "host is ''", id="no host"),
        pytest.param({"port": 0}, "port is 0, expected 1 to 65535", id="port 0"),
        pytest.param({"port": 70000}, "port is 70000", id="port too high"),
        pytest.param({"superlink_port": 443}, "both 443", id="same ports"),
        pytest.param({"name": "a/b"}, "federation is 'a/b'", id="slash"),
        pytest.param({"name": "a" * 41}, "at most 40", id="long name"),
        pytest.param({"name": "x\n"}, "federation is", id="line break"),
        pytest.param({"days": 0}, "days is 0", id="no days"),
        pytest.param({"days": 99999}, "days is 99999", id="too many days"),
    ],
)
def test_settings_that_cannot_be_are_a_sentence_and_no_folder(tmp_path, settings, why):
    with pytest.raises(InputError, match=why):
        init_kit(tmp_path / "coordinator", **{"host": HOST, **settings})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("hello")
    with pytest.raises(InputError, match=r"cannot be created \((NotADirectory|FileExists)Error\)"):
        init_kit(tmp_path / "file" / "coordinator", HOST)


# Reading it


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("federation = ", "kit.toml: not valid TOML", id="not TOML"),
        pytest.param('federation = "a"\nhost = "b"\nport = 1', "kit.toml: the file lacks", id="missing key"),
        pytest.param(
            'federation = "a"\nhost = "b"\nport = "1"\nsuperlink_port = 2',
            "kit.toml: the file port must be a whole number, found '1'",
            id="wrong kind",
        ),
        pytest.param(
            'federation = "a"\nhost = "b"\nport = 1\nsuperlink_port = 2\nsecret = 3',
            "unknown key",
            id="unknown",
        ),
        pytest.param(
            'federation = "a"\nhost = "b"\nport = 1\nsuperlink_port = 0', "superlink_port is 0", id="range"
        ),
        pytest.param(
            'federation = "a"\nhost = "b c"\nport = 1\nsuperlink_port = 2',
            "kit.toml: host is 'b c'",
            id="host",
        ),
    ],
)
def test_settings_that_were_spoilt_are_a_sentence(kit, text, why):
    kit.config.write_text(text)
    with pytest.raises(InputError, match=why):
        load_kit(kit.folder)


def test_no_kit_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"no kit here.*mmare-server kit init"):
        load_kit(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key", "superexec.secret"])
def test_a_missing_file_is_a_sentence(kit, name):
    (kit.folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: (missing|cannot be read)"):
        load_kit(kit.folder)


@pytest.mark.parametrize("name", ["ca.key", "server.key", "superexec.secret"])
def test_a_secret_that_every_user_can_read_is_refused(kit, name):
    (kit.folder / name).chmod(0o644)
    with pytest.raises(InputError, match=f"{name}: mode 0644 lets every user access it; run chmod 600"):
        load_kit(kit.folder)


def test_a_group_of_administrators_may_read(kit):
    kit.key.chmod(0o640)
    assert load_kit(kit.folder) == kit


def test_the_key_of_the_authority_may_be_kept_elsewhere(kit):
    kit.ca_key.unlink()
    assert load_kit(kit.folder) == kit
    with pytest.raises(InputError, match=r"ca\.key: cannot be read.*needs the key of the authority"):
        renew(kit)


def test_a_kit_of_another_user_is_a_sentence(kit):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.seteuid(NOBODY)
    try:
        with pytest.raises(InputError, match=r"coordinator: cannot be read \(PermissionError\)"):
            load_kit(kit.folder)
        with pytest.raises(InputError, match=r"cannot be created \(PermissionError\)"):
            init_kit(kit.folder.parent / "mine", HOST)
        with (
            pytest.raises(InputError, match=r"coordinator: cannot be locked \(PermissionError\)"),
            kit.locked(),
        ):
            pass
    finally:
        os.seteuid(0)


# Renewing


def test_a_renewed_certificate_is_believed_by_those_who_had_the_old_authority(kit, tmp_path):
    site = tmp_path / "at-the-site.crt"
    site.write_bytes(kit.ca_certificate.read_bytes())
    before = {path: path.read_bytes() for path in kit.folder.rglob("*") if path.is_file()}
    until = renew(kit, days=30)
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"server.crt"}
    assert timedelta(days=29) < until - datetime.now(UTC) < timedelta(days=30)
    assert certificate_days_left(load_kit(kit.folder).certificate) == 29
    with served(kit.certificate, kit.key) as port:
        assert shake_hands(site, port, HOST) == b"hello"


def test_renewing_with_a_new_key_changes_both(kit):
    old = kit.key.read_bytes(), kit.certificate.read_bytes()
    renew(kit, new_key=True)
    assert kit.key.read_bytes() != old[0]
    assert mode_of(kit.key) == 0o600
    assert load_kit(kit.folder) == kit
    with served(kit.certificate, kit.key) as port:
        assert shake_hands(kit.ca_certificate, port, "localhost") == b"hello"


def test_killed_between_key_and_certificate_a_kit_says_so_and_renewing_repairs_it(kit, monkeypatch):
    write, written = kit_module.write_whole, []

    def killed(path, *arguments: object) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *arguments)

    monkeypatch.setattr(kit_module, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        renew(kit, new_key=True)
    monkeypatch.setattr(kit_module, "write_whole", write)
    assert written == [kit.key]
    with pytest.raises(InputError, match=r"server\.crt: does not match the key .*mmare-server kit renew"):
        load_kit(kit.folder)
    renew(load_kit(kit.folder, renewing=True))
    assert load_kit(kit.folder) == kit


def test_without_key_and_certificate_renewing_makes_both(kit):
    kit.key.unlink()
    kit.certificate.unlink()
    renew(load_kit(kit.folder, renewing=True))
    assert load_kit(kit.folder) == kit


def test_another_host_needs_another_certificate(kit):
    kit.config.write_text(kit.config.read_text().replace(HOST, "new.example.org"))
    with pytest.raises(InputError, match=r"for join.example.org, .* but host is 'new.example.org'"):
        load_kit(kit.folder)
    renew(load_kit(kit.folder, renewing=True))
    assert certificate_names(load_kit(kit.folder).certificate)[0] == "new.example.org"


def test_an_authority_that_cannot_sign_leaves_the_certificate_as_it_was(kit):
    before = kit.certificate.read_bytes()
    other = new_authority("kidney")
    kit.ca_key.write_bytes(other.key)
    with pytest.raises(InputError, match=r"ca\.key: not the key of "):
        renew(kit)
    kit.ca_key.write_text("hello")
    with pytest.raises(InputError, match="this authority cannot sign a certificate"):
        renew(kit)
    old = new_authority("kidney", start=datetime.now(UTC) - timedelta(days=4000))
    kit.ca_key.write_bytes(old.key)
    kit.ca_certificate.write_bytes(old.certificate)
    with pytest.raises(InputError, match="it has expired"):
        renew(kit)
    assert kit.certificate.read_bytes() == before


def test_a_full_disk_leaves_the_certificate_as_it_was(kit, monkeypatch):
    before = kit.certificate.read_bytes()

    def full_disk(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kit_module, "write_whole", full_disk)
    with pytest.raises(InputError, match=r"server\.crt: cannot be written \(OSError\)"):
        renew(kit)
    assert kit.certificate.read_bytes() == before


# Two at once


def test_one_at_a_time(kit):
    order = []

    def second() -> None:
        with kit.locked():
            order.append("second")

    thread = threading.Thread(target=second)
    with kit.locked():
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_who_waits_too_long_gives_up(kit, monkeypatch):
    monkeypatch.setattr(kit_module, "LOCK_S", 0.1)
    with kit.locked(), pytest.raises(RunError, match="another command"), kit.locked():
        pass
    with kit.locked():  # let go, it is free again
        pass
