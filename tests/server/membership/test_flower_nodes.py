"""What can be known without a SuperLink; with a real one: `tests/system/test_kit.py`."""

import sys
import tomllib

import pytest

from mmare.errors import InputError, RunError
from server.membership import flower_nodes as registration
from server.membership.flower_nodes import (
    CONNECTION,
    flower_environment,
    register,
    register_admitted,
    registered,
    superlink_answers,
    write_connection,
)
from server.membership.kit import Kit, init_kit
from server.membership.records import admit, find, revoke
from tests.kits import asked, free_port, served

WELL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ILL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def kit(tmp_path) -> Kit:
    return init_kit(tmp_path / "coordinator", "localhost", superlink_port=free_port())


def on_port(kit: Kit, port: int) -> Kit:
    return Kit(kit.folder, kit.federation, kit.host, kit.port, port)


def test_flower_finds_superlink_under_a_name(kit):
    write_connection(kit)
    path = kit.flwr_home / "config.toml"
    found = tomllib.loads(path.read_text())["superlink"]
    assert found["default"] == CONNECTION
    assert found[CONNECTION] == {
        "address": f"127.0.0.1:{kit.superlink_port}",
        "root-certificates": str(kit.ca_certificate),
    }
    before = path.stat().st_mtime_ns
    write_connection(kit)
    assert path.stat().st_mtime_ns == before
    write_connection(on_port(kit, 1))
    assert "127.0.0.1:1" in path.read_text()


def test_flower_talks_to_this_machine_without_a_proxy(kit, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "intranet.example.org")
    found = flower_environment(kit)
    assert found["NO_PROXY"] == found["no_proxy"] == "intranet.example.org,127.0.0.1,localhost"
    monkeypatch.delenv("NO_PROXY")
    assert flower_environment(kit)["NO_PROXY"] == "127.0.0.1,localhost"
    assert found["FLWR_HOME"] == str(kit.flwr_home)
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"


@pytest.mark.parametrize(
    ("answer", "answers"), [pytest.param(WELL, True, id="well"), pytest.param(ILL, False, id="ill")]
)
def test_superlink_answers_when_its_health_page_does(kit, answer, answers):
    with served(kit.certificate, kit.key, answer) as port:
        assert superlink_answers(on_port(kit, port)) is answers


def test_nobody_and_somebody_else_are_no_superlink_of_this_kit(kit, tmp_path):
    assert not superlink_answers(kit)
    other = init_kit(tmp_path / "other", "localhost")
    with served(other.certificate, other.key, WELL) as port:
        assert not superlink_answers(on_port(kit, port))


def test_without_superlink_there_is_a_sentence_and_no_change(kit, tmp_path):
    admit(kit, asked(tmp_path)[1])
    record = find(kit, "ash")
    for ask in (registered, register_admitted, lambda kit: register(kit, "ash")):
        with pytest.raises(
            RunError, match=rf"SuperLink on 127\.0\.0\.1:{kit.superlink_port} does not list"
        ) as raised:
            ask(kit)
        assert "\n" not in str(raised.value)
    assert find(kit, "ash") == record


def test_only_admitted_sites_are_registered(kit, tmp_path):
    with pytest.raises(InputError, match="no site 'ash' was admitted"):
        register(kit, "ash")
    admit(kit, asked(tmp_path)[1])
    revoke(kit, "ash")
    with pytest.raises(InputError, match="'ash' is revoked"):
        register(kit, "ash")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param("echo oops >&2; exit 3", "flwr supernode list: exit code 3, oops", id="an error"),
        pytest.param("echo '[]'", "flwr supernode list: exit code 0", id="a list"),
        pytest.param("exit 0", "flwr supernode list: exit code 0, no word", id="nothing"),
        pytest.param("exec sleep 60", "flwr supernode list: no answer after 1 s", id="silence"),
    ],
)
def test_a_flower_that_answers_something_else_is_a_sentence(kit, tmp_path, monkeypatch, script, why):
    program = tmp_path / "bin" / "flwr"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec /bin/sh -c '{script}'\n".replace("'[]'", "[]"))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    monkeypatch.setattr(registration, "COMMAND_S", 1.0)
    with pytest.raises(RunError, match=why):
        registered(kit)


def test_an_installation_without_flower_is_a_sentence(kit, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="flwr: not found"):
        registered(kit)
