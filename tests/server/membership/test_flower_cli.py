import json
import shlex
import sys
import tomllib

import pytest

from mmare.errors import RunError
from server.membership import flower_cli
from server.membership.flower_cli import (
    CONNECTION,
    FlowerRefusedError,
    flower_answer,
    flower_environment,
    flower_output,
    write_connection,
)
from server.membership.kit import Kit, init_kit
from tests.kits import free_port


@pytest.fixture
def kit(tmp_path) -> Kit:
    return init_kit(tmp_path / "coordinator", "localhost", superlink_port=free_port())


@pytest.fixture
def flwr(tmp_path, monkeypatch):
    """Put a shell script in the place of ``flwr``."""
    program = tmp_path / "bin" / "flwr"
    program.parent.mkdir()
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))

    def write(script):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return write


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
    write_connection(Kit(kit.folder, kit.federation, kit.host, kit.port, 1))
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


def test_a_command_is_run_for_the_kit_and_its_answer_read(kit, flwr, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    flwr("""printf '{"success": true, "said": "%s, %s, %s"}' "$*" "$FLWR_HOME" "$NO_COLOR$FORCE_COLOR" """)
    said = flower_answer(kit, "supernode list", CONNECTION)["said"]
    assert said == f"supernode list {CONNECTION} --format json, {kit.flwr_home}, 1"
    assert (kit.flwr_home / "config.toml").exists()
    flwr('echo "$@"')
    assert flower_output(kit, "log", "7", "--show") == "log 7 --show\n"


@pytest.mark.parametrize(
    ("message", "said", "code"),
    [
        pytest.param("Error: [code: 23] Public key in use\nmore", "Public key in use", 23, id="code"),
        pytest.param("no\n\nconnection", "no connection", None, id="no code"),
        pytest.param("", "no reason given", None, id="no word"),
    ],
)
def test_a_no_has_its_reason_and_its_code(kit, flwr, message, said, code):
    flwr(f"printf %s {shlex.quote(json.dumps({'success': False, 'error-message': message}))}")
    with pytest.raises(FlowerRefusedError) as refused:
        flower_answer(kit, "run", "app")
    assert (refused.value.detail, refused.value.code) == (said, code)
    assert str(refused.value) == f"flwr run: {said}"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param("echo oops >&2; exit 3", "flwr supernode list: exit code 3, oops", id="an error"),
        pytest.param("echo '[]'", "flwr supernode list: exit code 0", id="a list"),
        pytest.param("exit 0", "flwr supernode list: exit code 0, no output", id="nothing"),
        pytest.param("exec sleep 60", "flwr supernode list: no answer after 1 s", id="silence"),
    ],
)
def test_one_that_answers_something_else_is_a_sentence(kit, flwr, monkeypatch, script, why):
    flwr(script)
    monkeypatch.setattr(flower_cli, "COMMAND_S", 1.0)
    with pytest.raises(RunError, match=why):
        flower_answer(kit, "supernode list", CONNECTION)


def test_an_installation_without_flower_is_a_sentence(kit, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="flwr: not found"):
        flower_answer(kit, "list", CONNECTION)
