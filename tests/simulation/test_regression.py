"""A number, from a table to a report."""

import json
import re

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from client.data.dataset import SiteData, load_data
from client.training.evaluate import logits_of
from mmare.errors import DataError, InputError, StudyError
from mmare.models.registry import build_model
from mmare.study.study import load_study, parse_study
from mmare.wire.messages import Split
from server.store.model_file import load_model
from simulation.cli import app
from simulation.references import measure_references
from simulation.report.run_report import write_report
from sites.federation import site_folders
from tests.federations import request_of, run_nodes

TABLE = "id,site,age,lab,dose\n" + "\n".join(
    f"p{row},{'abc'[row % 3]},{20 + row},{row % 7},{10 + row % 13}" for row in range(72)
)
FLAGS = "--id-column id --site-column site --modality exam=dose --modality lab=lab"


def prepare(tmp_path, table=TABLE, flags="--target-column age --target-range 0,110 --target-unit years"):
    (tmp_path / "t.csv").write_text(table)
    arguments = ["prepare", "table", "--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "fed")]
    return CliRunner().invoke(app, [*arguments, *FLAGS.split(), *flags.split()])


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression")
    assert prepare(folder).exit_code == 0
    return folder / "fed"


@pytest.fixture(scope="module")
def run(federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    run_nodes(federation, out, settings=["training.rounds=3", "model.width=16"])
    return out


def result_of(out):
    return json.loads((out / "result.json").read_text())["metrics"]["test"]


def test_simple_models_are_of_classes_and_times(run, federation):
    request = request_of(federation, run, settings=("training.rounds=3", "model.width=16"))
    with pytest.raises(InputError, match="--references has no simple model of task regression yet"):
        measure_references(request)


def test_a_table_becomes_a_federation(federation):
    study = load_study(federation / "study.toml")
    assert (study.task, study.regression.low, study.regression.high) == ("regression", 0.0, 110.0)
    rows = pd.concat([pd.read_csv(site.manifest) for site in site_folders(federation)])
    assert list(rows.columns) == ["patient_id", "target", "split"]
    means = rows.groupby("split")["target"].mean()
    assert means.max() - means.min() < 8  # stratified by fifths of the target
    assert parse_study(study.to_dict(), "test") == study


def test_the_pooled_metrics_are_those_of_all_rows(federation, run):
    study, model = load_study(run / "study.toml"), load_model(run / "model")
    data = SiteData.pooled([load_data(site, study) for site in site_folders(federation)])
    rows = data.rows[Split.TEST]
    logits = logits_of(model, data.embedding, rows, data.present[rows])
    error = model.task.prediction(logits) - data.label[rows]
    found = result_of(run)
    assert found["pooled"]["mae"] == pytest.approx(error.abs().mean().item(), rel=1e-4)
    assert found["pooled"]["rmse"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-4)
    assert sum(site["n"] for site in found["sites"].values()) == len(rows) == found["pooled"]["n"]
    assert set(found["worst_site"]) == {"site", "r2"}


@pytest.mark.slow
def test_secure_sums_pool_the_same(federation, run, tmp_path):
    secure = ["privacy.secure_sum=true", "federation.min_sites=3", "privacy.min_count=2"]
    run_nodes(federation, tmp_path / "run", settings=["training.rounds=3", "model.width=16", *secure])
    for name in ("n", "mae", "rmse"):
        assert result_of(tmp_path / "run")["pooled"][name] == pytest.approx(
            result_of(run)["pooled"][name], rel=1e-3
        )


def test_the_report_is_of_numbers(run):
    page = write_report(run).read_text()
    for words in ("R²", "MAE", "Calibration slope", "sums of products"):
        assert words in page
    assert "Balanced accuracy" not in page


def test_the_loss_is_that_of_standard_targets(federation):
    model = build_model(load_study(federation / "study.toml"))
    assert model.task.standard(torch.tensor([0.0, 55.0, 110.0])).tolist() == [-2.0, 0.0, 2.0]
    logits = torch.tensor([[0.0], [1.0]], requires_grad=True)
    loss = model.task.loss(logits, torch.tensor([110.0, 55.0]))
    assert loss.item() == pytest.approx((4 + 1) / 4)
    assert model.task.agreement(logits, logits, 2.0).item() == 0.0
    assert model.task.prediction(logits).tolist() == [55.0, 82.5]


@pytest.mark.parametrize(
    ("table", "flags", "sentence"),
    [
        (TABLE.replace(",33,", ",old,"), "--target-column age", "age .*'old'.*a number"),
        (TABLE.replace(",33,", ",,"), "--target-column age", "age is blank, expected a number"),
        (TABLE, "--target-column age --target-range 30,90", "age .*a number from 30 to 90"),
        (TABLE, "--target-column age --target-range 30", "--target-range is '30', expected two numbers"),
        (TABLE, "--target-column age --target-range 90,30", "age .*a number from 90 to 30"),
        (TABLE, "--target-column age --classes a,b", "what is learned is not clear"),
    ],
)
def test_bad_targets_are_refused_in_a_sentence(tmp_path, table, flags, sentence):
    found = prepare(tmp_path, table, flags)
    assert isinstance(found.exception, DataError | StudyError)
    assert re.search(sentence, str(found.exception)), str(found.exception)
    assert not (tmp_path / "fed").exists()


def test_a_site_s_target_outside_the_range_is_refused(federation):
    study = load_study(federation / "study.toml").override(["regression.high=50"])
    with pytest.raises(DataError, match="a number from 0 to 50"):
        load_data(site_folders(federation)[0], study)


def test_a_range_upside_down_is_refused(federation):
    with pytest.raises(StudyError, match="low must be below high, found 0 and -1"):
        load_study(federation / "study.toml").override(["regression.high=-1"])
