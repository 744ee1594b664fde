import json

import pytest
from typer.testing import CliRunner

from client.cli import app as site_app
from mmare.errors import InputError, RunError, StudyError
from server.cli import app as server_app
from simulation.cli import app

SMALL = ["--set", "training.rounds=2", "--set", "model.width=16"]
RUNNER = CliRunner()


def invoke(arguments, application=app):
    result = RUNNER.invoke(application, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "federation"
    invoke(["prepare", "synthetic", "--patients", 20, "--out", folder])
    return folder


@pytest.fixture(scope="module")
def finished(federation, tmp_path_factory):
    """A run's folder, and what the command said."""
    out = tmp_path_factory.mktemp("cli") / "run"
    return out, invoke(["run", federation, "--out", out, *SMALL])


def test_a_run_prints_its_result_and_leaves_a_report(federation, finished):
    out, result = finished
    assert result.exit_code == 0
    assert "all sites" in result.stdout
    assert str(out / "report.html") in result.stdout.replace("\n", "")
    assert json.loads((out / "result.json").read_text())["rounds_run"] == 2
    assert "round 2:" in result.stderr
    again = invoke(["run", federation, "--out", out, *SMALL])
    assert again.exit_code == 0
    assert "round 2:" not in again.stderr


@pytest.mark.slow
def test_runs_of_one_study_are_compared(federation, tmp_path):
    for mode in ("federated", "local"):
        invoke(["run", federation, "--out", tmp_path / mode, "--mode", mode, *SMALL])
    result = invoke(["report", tmp_path])
    assert result.stdout.strip() == str(tmp_path / "report.html")
    assert "Each site alone" in (tmp_path / "report.html").read_text()
    assert (
        "north alone"
        in invoke(["run", federation, "--out", tmp_path / "local", "--mode", "local", *SMALL]).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        pytest.param(
            ["run", "nowhere", "--out", "x"],
            StudyError,
            "nowhere/study.toml: no such study file",
            id="federation",
        ),
        pytest.param(["report", "nowhere"], InputError, "nowhere", id="report"),
    ],
)
def test_bad_input_is_one_sentence(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        invoke(arguments)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        pytest.param("training.roundz=3", r"unknown key 'roundz'", id="unknown-key"),
        pytest.param("model.name=nothing", r"name must be one of .*mmare", id="unknown-model"),
        pytest.param("model.fusion=sum", r"fusion must be one of pairwise, mean", id="model-option"),
        pytest.param("federation.strategy=magic", r"strategy must be one of exposure", id="strategy"),
    ],
)
def test_bad_settings_leave_nothing_behind(federation, tmp_path, setting, sentence):
    with pytest.raises(StudyError, match=sentence):
        invoke(["run", federation, "--out", tmp_path / "run", "--set", setting])
    assert not (tmp_path / "run").exists()


def test_too_few_sites_fail_the_run_and_status_says_why(federation, tmp_path):
    with pytest.raises(
        RunError, match="3 sites with training rows took part in the roll call, expected at least 7"
    ):
        invoke(["run", federation, "--out", tmp_path / "run", *SMALL, "--set", "federation.min_sites=7"])
    told = invoke(["status", tmp_path / "run"], server_app)
    assert "failed: 3 sites" in told.stdout


def test_status_of_a_finished_run(finished, tmp_path):
    told = invoke(["status", finished[0]], server_app)
    assert "finished after 2 rounds" in told.stdout
    assert "west" in told.stdout
    with pytest.raises(InputError, match="no run here"):
        invoke(["status", tmp_path], server_app)


def test_check_counts_what_a_site_holds(federation):
    told = invoke(["check", federation / "west" / "site.toml"], site_app)
    assert "site west, study synthetic" in told.stdout
    assert "not at this site" in told.stdout
    assert "clinical" in told.stdout


@pytest.mark.slow
def test_demo_runs_the_three_modes(tmp_path):
    result = invoke(["demo", "--kind", "features", "--out", tmp_path / "demo", *SMALL])
    assert result.exit_code == 0
    assert (tmp_path / "demo" / "report.html").exists()
    assert "east alone" in result.stdout


@pytest.mark.parametrize("application", [app, site_app, server_app])
def test_help_has_an_example(application):
    for command in application.registered_commands:
        assert command.epilog is not None
        assert command.epilog.startswith("Example: mmare-")
