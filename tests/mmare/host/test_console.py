import pytest

from mmare.errors import DataError, InputError, RunError, SiteCode, SiteError, StudyError
from mmare.host.console import run_command


def raising(error):
    def command(_arguments):
        raise error

    return command


def test_success_is_zero_and_silent(capsys):
    seen = []
    assert run_command(seen.extend, ["run", "FED"]) == 0
    assert seen == ["run", "FED"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        pytest.param(InputError("a.csv: row 3"), 2, id="input"),
        pytest.param(StudyError("study.toml: no"), 2, id="study"),
        pytest.param(DataError("site.toml: no"), 2, id="data"),
        pytest.param(RunError("stopped at round 3"), 1, id="run"),
        pytest.param(SiteError(SiteCode.DATA), 1, id="site"),
    ],
)
def test_an_error_is_one_sentence_on_stderr_and_its_exit_code(error, exit_code, capsys):
    assert run_command(raising(error), ["run"]) == exit_code
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_debug_is_taken_out_and_lets_the_error_through():
    seen = []
    assert run_command(seen.extend, ["run", "--debug", "FED"]) == 0
    assert seen == ["run", "FED"]
    with pytest.raises(StudyError, match="because"):
        run_command(raising(StudyError("because")), ["--debug"])


@pytest.mark.parametrize("error", [ValueError("a defect"), KeyboardInterrupt()], ids=["defect", "ctrl-c"])
def test_other_exceptions_are_not_hidden(error):
    with pytest.raises(type(error)):
        run_command(raising(error), [])
