"""``mmare-server kit``: what a coordinator types, reads, and gets as exit code; no SuperLink runs here."""

import re
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from mmare.host.console import run_command
from mmare.host.locks import locked
from server.cli import app
from server.membership.certificates import certificate_fingerprint
from server.membership.kit import init_kit, load_kit, renew
from server.membership.records import find
from tests.federations import tiny_study
from tests.kits import asked, changed, free_port

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
PROGRAM = Path(sys.executable).parent / "mmare-server"


def invoke(*arguments: object) -> str:
    result = RUNNER.invoke(app, ["kit", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def code_of(*arguments: object) -> int:
    words = ["kit", *map(str, arguments)]
    try:
        return run_command(lambda given: app(given, standalone_mode=True), words)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture
def kit(tmp_path):
    return init_kit(tmp_path / "coordinator", "join.example.org", superlink_port=free_port())


@pytest.mark.parametrize("command", ["init", "admit", "revoke", "renew", "list"])
def test_help_has_an_example(command):
    assert f"Example: mmare-server kit {command}" in " ".join(invoke(command, "--help").split())


def test_init_says_what_it_made_and_what_comes_next(tmp_path):
    folder = tmp_path / "coordinator"
    said = invoke(
        *("init", "--host", "Join.Example.org", "--kit", folder, "--port", "8443", "--name", "kidney"),
        *("--superlink-port", "9999", "--days", "40"),
    )
    kit = load_kit(folder)
    assert (kit.federation, kit.host, kit.port, kit.superlink_port) == (
        "kidney",
        "join.example.org",
        8443,
        9999,
    )
    assert certificate_fingerprint(kit.ca_certificate.read_bytes()) in said
    assert "for join.example.org, localhost, 127.0.0.1, 39 days left" in said
    assert "next: each site sends the request-SITE.json that mmare-site kit request SITE.toml makes" in said


def test_admit_says_what_to_compare_and_where_the_bundle_goes(kit, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(tomli_w.dumps(tiny_study().to_dict()))
    out = tmp_path / "to-send.zip"
    said = invoke("admit", asked(tmp_path)[1], "--kit", kit.folder, "--study", study, "--out", out)
    assert find(kit, "ash").fingerprint in said
    assert certificate_fingerprint(kit.ca_certificate.read_bytes()) in said
    assert "SuperLink is not running; mmare-server start will register the change" in said
    assert "next: send to-send.zip to ash, which runs mmare-site kit install to-send.zip" in said
    assert "version" not in said
    assert "study.toml" in zipfile.ZipFile(out).namelist()


def test_admit_tells_of_another_version(kit, tmp_path):
    request = changed(asked(tmp_path)[1], software="9999.0")
    assert "the coordinator has to upgrade" in invoke("admit", request, "--kit", kit.folder)


def test_list_shows_sites_and_days(kit, tmp_path):
    assert "no sites yet" in invoke("list", "--kit", kit.folder)
    for name in ("birch", "ash"):
        invoke("admit", asked(tmp_path, name)[1], "--kit", kit.folder)
    said = invoke("revoke", "birch", "--kit", kit.folder)
    assert "revoked: birch" in said
    rows = invoke("list", "--kit", kit.folder).splitlines()
    assert rows[0].split() == ["site", "admitted", "key", "state", "registered"]
    today = find(kit, "ash").admitted[:10]
    assert rows[1].split() == ["ash", today, find(kit, "ash").fingerprint, "admitted", "not", "yet"]
    assert rows[2].split()[:1] + rows[2].split()[3:5] == ["birch", "revoked", today]
    assert "396 days left" in rows[-1]


def test_list_says_when_it_is_time_to_renew(kit):
    renew(kit, days=20)
    assert "19 days left" in invoke("list", "--kit", kit.folder)
    assert "mmare-server kit renew makes a new one" in invoke("list", "--kit", kit.folder)
    renew(kit, days=2, start=datetime.now(UTC) - timedelta(days=5))
    assert "server certificate: expired on" in invoke("list", "--kit", kit.folder)
    said = invoke("renew", "--kit", kit.folder, "--days", "100")
    assert "99 days left" in said
    assert "next: nothing until mmare-server start, which will use it" in said
    assert "the host is new" not in said
    assert "renew" not in invoke("list", "--kit", kit.folder)


def test_renew_says_what_a_running_coordinator_does_and_who_must_act(kit):
    renew(kit, days=2, start=datetime.now(UTC) - timedelta(days=5))  # SuperLink could not be asked any more
    kit.state.mkdir(exist_ok=True)
    with locked(kit.start_lock):
        said = invoke("renew", "--kit", kit.folder)
    assert "next: nothing here: mmare-server start is running and restarts SuperLink and nginx" in said
    kit.config.write_text(kit.config.read_text().replace(kit.host, "new.example.org"))
    said = invoke("renew", "--kit", kit.folder)
    assert "the host is new, new.example.org: run mmare-server kit admit again for every site" in said


def test_renew_repairs_a_kit_whose_key_and_certificate_differ(kit, tmp_path):
    other = init_kit(tmp_path / "other", "join.example.org")
    kit.key.write_bytes(other.key.read_bytes())
    assert code_of("admit", asked(tmp_path)[1], "--kit", kit.folder) == 2
    invoke("renew", "--kit", kit.folder, "--new-key")
    assert code_of("admit", asked(tmp_path)[1], "--kit", kit.folder) == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param(
            ["init", "--host", "a.org", "--kit", "coordinator"], "there is a kit already", id="init twice"
        ),
        pytest.param(
            ["admit", "nowhere.json", "--kit", "coordinator"], "no such request file", id="no request"
        ),
        pytest.param(
            ["admit", "site.toml", "--kit", "coordinator"], "not a request to join", id="other file"
        ),
        pytest.param(["admit", "request.json", "--kit", "elsewhere"], "no kit here", id="no kit"),
        pytest.param(["list", "--kit", "elsewhere"], "no kit here", id="list"),
        pytest.param(["renew", "--kit", "elsewhere"], "no kit here", id="renew"),
        pytest.param(["revoke", "oak", "--kit", "coordinator"], "no site 'oak' was admitted", id="revoke"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(kit, tmp_path, monkeypatch, capsys, arguments, why):
    config, _ = asked(tmp_path)
    monkeypatch.chdir(config.folder)
    (config.folder / "coordinator").symlink_to(kit.folder)
    assert code_of(*arguments) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", said)
    assert why in said


def test_the_installed_program_knows_the_command(tmp_path):
    command = [str(PROGRAM), "kit", "list", "--kit", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
