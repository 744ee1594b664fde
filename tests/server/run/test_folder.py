import fcntl
import json
import shutil
from types import SimpleNamespace

import pytest

from mmare.errors import BusyError, InputError, RunError
from server.app import main
from server.deployment.flower_runs import FlowerRun
from server.deployment.retry_policy import is_permanent
from tests.federations import all_events, events, run_nodes, tiny_federation, weights

SHORT = ("training.rounds=2",)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("federation") / "fed")


@pytest.fixture(scope="module")
def short_run(federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("short") / "run"
    return out, run_nodes(federation, out, settings=SHORT)


@pytest.fixture
def finished(short_run, tmp_path):
    out, result = short_run
    return shutil.copytree(out, tmp_path / "run"), result


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_finished_run_gives_its_result_and_nothing_changes(federation, finished):
    out, result = finished
    before = content(out)
    asked = []
    again = run_nodes(federation, out, settings=SHORT, listeners=(asked.append,))
    assert again == result == json.loads((out / "result.json").read_text())
    assert asked == []
    assert content(out) == before


def test_a_run_leaves_what_design_says(finished):
    out, _ = finished
    assert {path.name for path in out.iterdir()} - {".lock"} == {
        "study.toml",
        "rounds.jsonl",
        "checkpoints",
        "model",
        "result.json",
    }
    assert sorted(path.name for path in (out / "model").iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("training.rounds=3", "training.rounds: 2, now 3"),
        ("training.learning_rate=0.5", "training.learning_rate: 0.01, now 0.5"),
        ("study.seed=9", "study.seed: 3, now 9"),
        ("model.width=32", "model.width: 16, now 32"),
        ("modality.ct.scaling=l2", "modality"),
        ("training.oversample=balanced", "training.oversample: None, now 'balanced'"),
    ],
)
def test_other_settings_are_refused_and_named(federation, finished, setting, named):
    out, _ = finished
    before = content(out)
    with pytest.raises(InputError, match="another") as error:
        run_nodes(federation, out, settings=(*SHORT, setting))
    assert named in str(error.value)
    assert "--overwrite" in str(error.value)
    assert error.value.exit_code == 2
    assert content(out) == before


def test_another_mode_or_federation_is_refused(federation, finished, tmp_path):
    out, _ = finished
    with pytest.raises(InputError, match="mode: 'federated', now 'local'"):
        run_nodes(federation, out, settings=SHORT, mode="local")
    other = tiny_federation(tmp_path / "other")
    with pytest.raises(InputError, match="federation: "):
        run_nodes(other, out, settings=SHORT)


def test_overwrite_replaces_a_run(federation, finished):
    out, result = finished
    (out / "report.html").write_text("of the old run")
    again = run_nodes(federation, out, settings=("training.rounds=1",), overwrite=True)
    assert (result["rounds_run"], again["rounds_run"]) == (2, 1)
    assert len(events(out, "run_started")) == 1
    assert not (out / "report.html").exists()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "best-000001.safetensors",
        "round-000001.safetensors",
    ]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(federation, tmp_path, overwrite):
    (tmp_path / "home" / "model").mkdir(parents=True)
    (tmp_path / "home" / "model" / "thesis.txt").write_text("years of work")
    (tmp_path / "home" / "letters").write_text("x")
    before = content(tmp_path / "home")
    with pytest.raises(InputError, match="holds 'letters' and no run"):
        run_nodes(federation, tmp_path / "home", settings=SHORT, overwrite=overwrite)
    assert content(tmp_path / "home") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_federation_itself_is_no_run_folder(tmp_path, overwrite):
    federation = tiny_federation(tmp_path / "fed")
    before = content(federation)
    with pytest.raises(InputError, match="no run"):
        run_nodes(federation, federation, settings=SHORT, overwrite=overwrite)
    assert content(federation) == before


def test_a_file_in_the_way_is_refused(federation, tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        run_nodes(federation, tmp_path / "run", settings=SHORT)


def test_a_second_process_on_the_same_folder_is_refused(federation, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another process is running this run"):
            run_nodes(federation, out, settings=SHORT)
    assert [path.name for path in out.iterdir()] == [".lock"]
    assert run_nodes(federation, out, settings=SHORT)["rounds_run"] == 2


@pytest.mark.parametrize(
    ("setting", "permanent"),
    [pytest.param("", False, id="busy"), pytest.param("model.width=0", True, id="bad input")],
)
def test_flowers_record_of_a_run_says_whether_a_retry_can_help(
    federation, tmp_path, monkeypatch, setting, permanent
):
    monkeypatch.setattr("server.app.shorten_polling", lambda: None)
    context = SimpleNamespace(
        run_config={"federation": str(federation), "out": str(tmp_path), "set": setting}
    )
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError) as error:
            main(None, context)
    assert is_permanent(FlowerRun("finished:failed", f"ServerApp failed: {error.value}")) is permanent


def test_a_run_inside_a_running_run_is_refused(federation, tmp_path):
    refused = []

    def again(event):
        if event["event"] == "round_started" and not refused:
            with pytest.raises(InputError, match="another process") as error:
                run_nodes(federation, tmp_path / "run", settings=SHORT)
            refused.append(error)

    run_nodes(federation, tmp_path / "run", settings=SHORT, listeners=(again,))
    assert len(refused) == 1
    assert [event["event"] for event in all_events(tmp_path / "run")].count("run_started") == 1


@pytest.mark.parametrize("harm", ["", "{", "missing"])
def test_a_lost_result_is_written_again(federation, finished, harm):
    out, result = finished
    if harm == "missing":
        (out / "result.json").unlink()
    else:
        (out / "result.json").write_text(harm)
    handed_out = weights(out)
    again = run_nodes(federation, out, settings=SHORT)
    assert again["metrics"] == result["metrics"]
    assert again["rounds_run"] == 2
    assert weights(out) == handed_out


def test_an_interruption_is_a_failed_run_that_can_be_resumed(federation, finished, tmp_path):
    def interrupt(event):
        if event["event"] == "round_started" and event["round"] == 2:
            raise KeyboardInterrupt

    out = tmp_path / "interrupted"
    with pytest.raises(RunError, match="interrupted; the same command resumes the run"):
        run_nodes(federation, out, settings=SHORT, listeners=(interrupt,))
    assert events(out)[-1]["event"] == "run_failed"
    assert not (out / "result.json").exists()
    run_nodes(federation, out, settings=SHORT)
    assert weights(out) == weights(finished[0])


@pytest.mark.parametrize(
    "setting",
    ["federation.strategy=fedsum", "model.name=unheard", "model.width=0", "training.rounds=0"],
)
def test_a_study_that_cannot_run_leaves_nothing(federation, tmp_path, setting):
    with pytest.raises(InputError):
        run_nodes(federation, tmp_path / "run", settings=(setting,))
    assert not (tmp_path / "run").exists()
