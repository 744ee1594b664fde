import json

import pytest

from mmare.errors import InputError
from mmare.package.start import read_start
from server.release.release import release_model
from server.run.request import RunRequest
from simulation.engine import run_in_process
from simulation.run import run_federation
from tests.federations import events, request_of, tiny_federation, tiny_study, weights
from tests.packages import made_package
from tests.simulation.test_cli import invoke

SHORT = ("training.rounds=1",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A federation, and a run of it."""
    folder = tmp_path_factory.mktemp("start")
    run_in_process(request_of(tiny_federation(folder / "fed"), folder / "first", settings=SHORT))
    return folder


def test_a_run_goes_on_from_a_run_or_its_package_alike(runs, tmp_path):
    release_model(runs / "first", tmp_path / "first.zip")
    found = invoke(
        ["run", runs / "fed", "--out", tmp_path / "a", "--start-from", runs / "first", "--set", *SHORT]
    )
    told = " ".join(found.stderr.split())
    assert "taken: conditioning.ct, conditioning.wsi, adapter.ct, merge, shared" in told
    more = {"settings": SHORT, "start_from": tmp_path / "first.zip"}
    run_in_process(request_of(runs / "fed", tmp_path / "b", **more))
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(runs / "first")
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    (event,) = events(tmp_path / "a", "started_from")
    first = json.loads((runs / "first" / "model" / "model.json").read_text())
    assert event["lineage"]["run"] == result["start"]["run"] == first["run"]
    assert any(note.startswith("started from the model") for note in result["notes"])
    assert all(call["accepted"] for call in events(tmp_path / "a", "roll_call"))
    sealed = release_model(tmp_path / "b", tmp_path / "b.zip")
    assert json.loads(sealed.files["card.json"])["provenance"]["start"]["digest"] == result["start"]["digest"]
    assert result["start"]["digest"] in sealed.files["README.md"].decode()
    assert read_start(tmp_path / "b.zip").lineage()["start"]["digest"] == result["start"]["digest"]


def test_other_settings_of_the_start_are_another_run(runs, tmp_path):
    request = RunRequest(runs / "fed", runs / "first", set=SHORT, start_from=runs / "first")
    with pytest.raises(InputError, match="holds a run with another start"):
        run_federation(request)
    named = tmp_path / "named"
    tiny_federation(named, request.study)
    with pytest.raises(InputError, match="which is not beside it; expected --start-from"):
        run_federation(RunRequest(named, tmp_path / "run"))
    other = made_package(tmp_path / "other.zip", tiny_study())
    with pytest.raises(InputError, match="which the study names"):
        RunRequest(named, tmp_path / "run", start_from=other)
    assert not (tmp_path / "run").exists()


def test_a_start_model_of_other_classes_is_refused_and_nothing_written(runs, tmp_path):
    federation = tiny_federation(tmp_path / "fed", tiny_study(study={"classes": ["yes", "no"]}))
    asked = ["run", str(federation), "--out", str(tmp_path / "run"), "--start-from", str(runs / "first")]
    with pytest.raises(InputError, match="has the classes no, yes, expected the study's: yes, no"):
        invoke(asked)
    assert not (tmp_path / "run").exists()
