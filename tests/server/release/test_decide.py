"""What a release decides from sums is what it would decide from the rows of all sites."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, recall_score

from client.data.dataset import SiteData, load_data
from mmare.errors import InputError
from mmare.metrics.calibration import CalibrationState
from mmare.models.batch import Batch
from mmare.package.essentials import essentials
from mmare.package.package import read_package
from mmare.wire.messages import Split
from server.release.decide import PointRule, Rule, decide, point_rule
from server.release.finished_run import load_finished
from server.release.release import release_model
from sites.federation import site_folders
from tests.federations import run_nodes, tiny_federation, tiny_study
from tests.packages import table_run

RULE = PointRule(Rule.SENSITIVITY, 0.8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return table_run(tmp_path_factory.mktemp("tables"), rows=600)


@pytest.fixture(scope="module")
def package(run):
    release_model(run, run.parent / "model", rule=RULE)
    return read_package(run.parent / "model")


def pooled(run, package, split):
    """Logits and labels of the rows of all sites."""
    data = SiteData.pooled([load_data(site, package.study) for site in site_folders(run.parent / "fed")])
    rows = data.rows[split]
    batch = Batch(tuple(part[rows] for part in data.embedding), data.present[rows])
    with torch.inference_mode():
        return package.model(batch), data.label[rows]


def test_calibration_is_that_of_pooled_rows(run, package):
    logits, labels = pooled(run, package, Split.VAL)
    state = CalibrationState.of(logits, labels)
    best = state.fit()
    assert package.calibration.temperature == pytest.approx(best.temperature, rel=1e-3)
    assert package.calibration.bias == pytest.approx(best.bias, abs=1e-3)
    report = package.report["calibration"]
    probability = package.judge(logits).probability.numpy()
    before, after = report["log_loss"]["validation"]
    assert before == pytest.approx(log_loss(labels, logits.softmax(dim=1).numpy()), abs=1e-4)
    assert after == pytest.approx(log_loss(labels, probability), abs=1e-4)
    fewest = labels.bincount().min()
    assert f"rests on {len(labels)} validation rows, {fewest} of them" in report["caution"]
    assert report["caution"] in essentials(package)
    logits, labels = pooled(run, package, Split.TEST)
    found = log_loss(labels, package.judge(logits).probability.numpy())
    assert report["log_loss"]["test"][1] == pytest.approx(found, abs=1e-4)
    assert report["reliability"]["rows"] == "test"


def test_a_smallest_group_hardly_moves_the_calibration(run, tmp_path):
    run_nodes(
        run.parent / "fed",
        tmp_path / "run",
        settings=("privacy.min_count=5", "training.rounds=2", "model.width=8", "training.learning_rate=0.01"),
    )
    release_model(tmp_path / "run", tmp_path / "model")
    grouped = read_package(tmp_path / "model")
    assert grouped.report["bins_of_at_least"] == 5
    logits, labels = pooled(run, grouped, Split.VAL)
    exact = CalibrationState.of(logits, labels)
    best = exact.means_at(exact.fit())["log_loss"]
    assert log_loss(labels, grouped.judge(logits).probability.numpy()) == pytest.approx(best, abs=0.005)


def test_calls_and_sets_do_on_test_rows_what_the_package_says(run, package):
    logits, labels = pooled(run, package, Split.TEST)
    judged, report = package.judge(logits), package.report
    found = report["operating_point"]["test"]["pooled"]
    assert found["sensitivity"][0] == pytest.approx(recall_score(labels, judged.call))
    assert found["specificity"][0] == pytest.approx(recall_score(labels, judged.call, pos_label=0))
    assert report["operating_point"]["validation"]["sensitivity"][0] >= 0.8
    sites = report["operating_point"]["test"]["sites"].values()
    assert sum(each["tp"] for each in sites) == found["tp"]
    for true, name in enumerate(package.study.classes):
        covered = judged.in_set[labels == true, true].double().mean().item()
        assert report["prediction_sets"]["test"]["coverage"][name][0] == pytest.approx(covered)
    point = package.operating_point
    nearest = (judged.raw[:, 1] - point.threshold).abs() > 1e-9
    calls = (judged.probability[:, 1] >= point.calibrated).long()
    assert torch.equal(calls[nearest], judged.call[nearest])


def test_the_decision_curve_treats_nobody_at_a_high_threshold(package):
    curve = package.report["decision_curve"]
    assert len(curve) == 99
    assert curve[0]["model"] == pytest.approx(curve[0]["all"], abs=0.05)
    assert np.all(np.diff([each["all"] for each in curve]) < 0)


def test_what_cannot_be_decided_is_said(run):
    study = tiny_study()
    assert decide(study, {}, None).not_stated.keys() == {"calibration", "operating_point", "prediction_sets"}
    states = load_finished(run).states()
    assert "no rule was given" in decide(study, states, None).not_stated["operating_point"]
    assert (
        "two classes"
        in decide(tiny_study(study={"positive": None}), states, RULE).not_stated["operating_point"]
    )


def test_a_study_that_names_no_calibration_gets_none(tmp_path):
    federation = tiny_federation(tmp_path / "fed", patients=24)
    run_nodes(federation, tmp_path / "run", settings=("training.rounds=1", "privacy.min_count=4"))
    made = release_model(tmp_path / "run", tmp_path / "model", rule=PointRule(Rule.YOUDEN))
    assert "[privacy] extra" in made.facts.not_stated["calibration"]
    package = read_package(tmp_path / "model")
    assert package.calibration is None
    assert package.operating_point.calibrated == package.operating_point.threshold
    assert load_finished(tmp_path / "run").states()["validation"].calibration is None


def test_a_class_that_validation_lacks_is_named(tmp_path):
    federation = tiny_federation(tmp_path / "fed", patients=24)
    settings = ("training.rounds=1", "privacy.min_count=9", 'privacy.extra=["calibration"]')
    run_nodes(federation, tmp_path / "run", settings=settings)
    made = release_model(tmp_path / "run", tmp_path / "model", rule=PointRule(Rule.YOUDEN))
    assert "validation has no rows of no, yes" in made.facts.not_stated["calibration"]
    assert "validation has no rows" in made.facts.not_stated["operating_point"]
    assert "expected at least 9" in made.facts.not_stated["prediction_sets"]


def test_one_rule_at_most():
    assert point_rule(None, None, youden=False) is None
    assert point_rule(0.9, None, youden=False) == PointRule(Rule.SENSITIVITY, 0.9)
    with pytest.raises(InputError, match="expected one of them"):
        point_rule(0.9, None, youden=True)
