"""``mmare-site kit``: what a hospital's engineer types, reads, and gets as exit code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from client.cli import app
from client.membership.kit import own_fingerprint
from mmare.host.console import run_command
from server.membership.certificates import certificate_fingerprint
from server.membership.kit import init_kit
from server.membership.records import admit
from tests.federations import tiny_study
from tests.kits import asked, site_config

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
PROGRAM = Path(sys.executable).parent / "mmare-site"


def invoke(*arguments: object) -> str:
    result = RUNNER.invoke(app, ["kit", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def kit(tmp_path):
    return init_kit(tmp_path / "coordinator", "join.example.org", name="kidney")


@pytest.mark.parametrize("command", ["request", "install"])
def test_help_has_an_example(command):
    assert f"Example: mmare-site kit {command}" in " ".join(invoke(command, "--help").split())


def test_request_names_what_to_send_and_compare(tmp_path):
    config = site_config(tmp_path / "ash")
    said = invoke("request", config.folder / "site.toml")
    assert f"key of ash: {own_fingerprint(config)}" in said
    assert f"request: {config.folder / 'request-ash.json'}" in said
    assert (
        "send request-ash.json to the coordinator, who runs mmare-server kit admit request-ash.json;" in said
    )
    assert invoke("request", config.folder / "site.toml") == said


def test_a_new_key_says_that_the_coordinator_must_replace_it(tmp_path):
    config, _ = asked(tmp_path)
    before = own_fingerprint(config)
    said = invoke("request", config.folder / "site.toml", "--new-key", "--out", tmp_path / "new.json")
    assert before not in said
    assert "mmare-server kit admit new.json --replace" in said


def test_install_names_the_federation_and_the_next_step(tmp_path, kit):
    config, request = asked(tmp_path)
    site = config.folder / "site.toml"
    said = invoke("install", admit(kit, request), "--site", site)
    assert "joined: kidney at join.example.org:443 as ash" in said
    assert certificate_fingerprint(kit.ca_certificate.read_bytes()) in said
    assert f"next: mmare-site start {site};" in said
    study = tmp_path / "study.toml"
    study.write_text(tomli_w.dumps(tiny_study().to_dict()))
    said = invoke("install", admit(kit, request, study), "--site", site)
    assert f"next: mmare-site approve {config.coordinator.kit / 'study.toml'} --site {site}, then" in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param(["request", "nowhere.toml"], "no such site file", id="no site"),
        pytest.param(["install", "nowhere.zip", "--site", "site.toml"], "no such bundle", id="no bundle"),
        pytest.param(["install", "request-ash.json", "--site", "site.toml"], "not a bundle", id="other file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, why):
    config, _ = asked(tmp_path)
    monkeypatch.chdir(config.folder)
    assert run_command(lambda given: app(given, standalone_mode=True), ["kit", *arguments]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", said)
    assert why in said


def test_the_installed_program_knows_the_command(tmp_path):
    config, _ = asked(tmp_path)
    command = [str(PROGRAM), "kit", "request", str(config.folder / "site.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert own_fingerprint(config) in done.stdout
