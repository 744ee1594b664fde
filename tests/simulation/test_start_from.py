import json

import numpy as np
import pandas as pd
import pytest

from mmare.errors import DataError, InputError
from mmare.package.start import read_start
from server.cli import app as server_app
from server.release.release import release_model
from server.run.folder import check_run
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


@pytest.mark.slow
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


def lab_of(federation, path, patients=30):
    """Vectors of some patients of every site, and of one whom nobody knows."""
    ids = [
        patient
        for site in sorted(federation.glob("*/patients.csv"))
        for patient in pd.read_csv(site)["patient_id"][:patients]
        if not patient.startswith("cedar")
    ]
    values = np.random.default_rng(0).normal(size=(len(ids) + 1, 3)).round(3)
    frame = pd.DataFrame(values, columns=["crp", "wbc", "ldh"])
    frame.insert(0, "patient_id", [*ids, "nobody"])
    frame.to_csv(path, index=False)
    return path


def test_a_modality_joins_a_finished_run(runs, tmp_path):
    lab = lab_of(runs / "fed", tmp_path / "lab.csv")
    grown = tmp_path / "grown"
    asked = ["extend", runs / "first", "--modality", f"lab={lab}", "--out", grown, "--rounds", "1"]
    found = invoke([*asked, "--set", "training.rounds=2"])
    assert "lab: ash 30, birch 30; 1 vectors of nobody" in found.stdout
    before = (runs / "fed" / "cedar" / "site.toml").read_bytes()
    assert (grown / "cedar" / "site.toml").read_bytes() == before  # its only change is the study
    run_in_process(request_of(grown, tmp_path / "run"))
    sent = [event["exposure"] for event in events(tmp_path / "run", "aggregated")]
    assert sent[0].keys() == {"adapter.lab", "conditioning.lab"} < sent[1].keys()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["rounds_run"] == 2
    assert result["start"]["left"] == {"lab": "a modality that the start model does not have"}
    again = ["extend", runs / "first", "--modality", f"ct={lab}", "--out", tmp_path / "again"]
    with pytest.raises(InputError, match="the study has a modality of this name"):
        invoke(again)
    strangers = tmp_path / "strangers.csv"
    strangers.write_text("patient_id,crp\nnobody,1\n")
    with pytest.raises(DataError, match=r"no patient of .* has lab, expected their ids"):
        invoke(["extend", runs / "first", "--modality", f"lab={strangers}", "--out", tmp_path / "again"])
    assert not (tmp_path / "again").exists()


def test_the_coordinator_extends_a_study_without_data(runs, tmp_path):
    out = tmp_path / "next"
    asked = ["extend", runs / "first", "--modality", "lab=features:3", "--out", out, "--rounds", "1"]
    invoke([*asked, "--set", "training.rounds=2"], server_app)
    request = RunRequest(out)
    assert request.start_from == out / "start.zip"
    assert read_start(out / "start.zip").digest == request.study.start.digest
    check_run(request)
    with pytest.raises(InputError, match=r"lab=blood: expected volume\|text\|features:WIDTH"):
        invoke([*asked[:3], "lab=blood", "--out", tmp_path / "other"], server_app)
    assert not (tmp_path / "other").exists()
