"""A model whose modalities each site scales by its own: usable where the run was, and nowhere else."""

import json
import shutil

import pandas as pd
import pytest

from client.data.dataset import load_data
from client.prediction.notebook import load_package
from client.prediction.run import predict_site
from client.prediction.written.table_format import Format
from mmare.errors import InputError
from mmare.metrics.state import MetricState
from mmare.package.package import read_package
from mmare.wire.messages import Split
from server.release.release import release_model
from simulation.report.run_report import write_report
from sites.config import load_site
from tests.client.prediction.test_run import new_table, site_of
from tests.packages import table_run

SETTINGS = ("privacy.extra=[]", "modality.exam.scaling=site", "modality.lab.scaling=combat")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = table_run(tmp_path_factory.mktemp("hospitals"), settings=SETTINGS)
    release_model(folder, folder.parent / "model.zip")
    return folder


def test_the_test_rows_of_a_site_give_what_the_run_gave(run):
    package = read_package(run.parent / "model.zip")
    told = json.loads((run / "result.json").read_text())["metrics"]["test"]["sites"]
    for name in ("ash", "birch"):  # of one package, one after the other
        site = site_of(run, name)
        found = predict_site(package, site, new_table(run, name), run.parent / f"{name}.csv", Format.CSV)
        data = load_data(site, package.study)
        own = MetricState.of(found.logits, data.label[data.rows[Split.TEST]]).compute(
            package.study.positive_index
        )
        assert {key: told[name][key] for key in own} == own
        assert all("exam" in far for far in found.distances)  # known here, though no moments were told
    assert not package.model.scaling.get_buffer("mean_1").equal(package.mean("lab"))


def test_elsewhere_it_is_refused_in_one_sentence(run, tmp_path):
    package, site = read_package(run.parent / "model.zip"), site_of(run)
    sentence = "the model scales exam, lab by each site's own moments, and none were kept here"
    shutil.copytree(site.folder, tmp_path / "new", ignore=shutil.ignore_patterns("scaling"))
    stranger = load_site(tmp_path / "new" / "site.toml")
    with pytest.raises(InputError, match=sentence):
        predict_site(package, stranger, new_table(run, "ash"), tmp_path / "out.csv", Format.CSV)
    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(InputError, match=sentence):
        load_package(run.parent / "model.zip").predict(pd.read_csv(new_table(run, "ash")))


def test_what_left_and_what_is_said(run):
    asked = {
        line["modality"]: line["n"]
        for line in map(json.loads, (run / "rounds.jsonl").read_text().splitlines())
        if line["event"] == "scaling"
    }
    assert set(asked) == {"lab"}
    assert set(read_package(run.parent / "model.zip").moments) == {"lab"}
    notes = json.loads((run / "result.json").read_text())["notes"]
    assert any("exam, lab: scaled by each site's own" in note for note in notes)
    assert "Each site scaled exam, lab by mean and deviation" in write_report(run).read_text()
    for option in ({"onnx": True}, {"bundle": run.parent / "bundle"}):
        with pytest.raises(InputError, match="serves where no site is, but each site scales exam, lab"):
            release_model(run, None, **option)
