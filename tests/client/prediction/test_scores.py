"""Saved predictions against outcomes that became known later, by scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss, roc_auc_score

from client.prediction.inputs import PatientInputs
from client.prediction.predict import predict
from client.prediction.scores import score, scores_text
from client.prediction.written.table import table_bytes
from client.prediction.written.table_format import Format
from mmare.errors import DataError, RunError
from mmare.package.package import read_package
from tests.federations import tiny_data, tiny_study
from tests.packages import made_package

POINT = {"rule": "sensitivity >= 0.9", "threshold": 0.45, "calibrated": 0.4}
CALIBRATION = {
    "calibration": {"temperature": 2.0, "bias": [0.0, 0.5]},
    "operating_point": POINT,
    "report": {"calibration": {"caution": "it rests on few rows"}},
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    return read_package(made_package(folder / "model.zip", tiny_study(), calibration=CALIBRATION))


@pytest.fixture(scope="module")
def found(package):
    data = tiny_data(package.study, patients=60)
    ids = tuple(f"p{row}" for row in range(60))
    return predict(package, PatientInputs(ids, data.embedding, data.present, {}))


def labels_file(folder, names):
    path = folder / "labels.csv"
    path.write_text("patient_id,label\n" + "".join(f"{patient},{name}\n" for patient, name in names.items()))
    return path


@pytest.fixture
def truth(found):
    random = np.random.default_rng(1)
    sure = found.judgement.probability[:, 1].numpy()
    return {
        patient: ("no", "yes")[int(chance)]
        for patient, chance in zip(found.inputs.patients, random.random(60) < sure, strict=True)
    }


@pytest.mark.parametrize("form", list(Format))
def test_scores_are_those_of_scikit_learn(package, found, truth, tmp_path, form):
    saved = tmp_path / f"saved.{form}"
    saved.write_bytes(table_bytes(found, form))
    known = dict(list(truth.items())[10:]) | {"stranger": "no"}
    scored = score(package, saved, form, labels_file(tmp_path, known))
    rows = slice(10, 60)
    label = np.array([truth[patient] == "yes" for patient in found.inputs.patients[rows]])
    for kind, values in (("calibrated", found.judgement.probability), ("uncalibrated", found.judgement.raw)):
        chance = values[rows, 1].numpy()
        assert scored[kind]["brier"] == pytest.approx(brier_score_loss(label, chance), abs=1e-12)
        assert scored[kind]["log_loss"] == pytest.approx(log_loss(label, chance), abs=1e-12)
        assert scored[kind]["auc"] == pytest.approx(roc_auc_score(label, chance), abs=2e-3)  # binned
    called = found.judgement.call[rows].numpy()
    wanted = balanced_accuracy_score(label, called)
    assert scored["called"]["balanced_accuracy"] == pytest.approx(wanted, abs=1e-12)
    assert (called != found.judgement.probability[rows].argmax(dim=1).numpy()).any()  # not the most probable
    assert (scored["patients"], scored["without_label"], scored["without_prediction"]) == (50, 10, 1)
    assert sum(each["n"] for each in scored["reliability"]) == 50
    assert scored["fewest"] == min(label.sum(), 50 - label.sum())
    chance = found.judgement.probability[rows, 1].numpy()
    assert scored["gaps"]["yes"]["gap"] == pytest.approx(label.mean() - chance.mean())
    assert scored["gaps"]["no"]["gap"] == pytest.approx(chance.mean() - label.mean())
    assert scored["gaps"]["yes"]["error"] == pytest.approx(np.sqrt((chance * (1 - chance)).sum()) / 50)
    assert "yes: " in scores_text(scored)


def test_calibration_changes_probabilities_and_the_shares_sum_to_the_calibrated(found):
    assert not torch.allclose(found.judgement.raw, found.judgement.probability)
    wanted = found.judgement.probability - found.prior
    torch.testing.assert_close(found.shares.sum(dim=1), wanted, rtol=0, atol=1e-12)
    assert not any("not calibrated" in note for note in found.notes)
    assert "it rests on few rows" in found.notes
    assert any("start from equal ones" in note for note in found.notes)  # the package tells no counts


@pytest.mark.parametrize(
    ("content", "names", "error", "sentence"),
    [
        pytest.param(None, {"stranger": "no"}, RunError, "none of 1 patients is among the 60", id="nobody"),
        pytest.param(None, {"p1": "maybe"}, DataError, "label is 'maybe', expected one of", id="a label"),
        pytest.param(b"\x00\x01", {"p1": "no"}, DataError, "saved.csv: ", id="not a table"),
        pytest.param(b"patient_id,call\np1,no\n", {"p1": "no"}, DataError, "is missing", id="a column"),
    ],
)
def test_what_cannot_be_scored_is_refused(package, found, tmp_path, content, names, error, sentence):
    saved = tmp_path / "saved.csv"
    saved.write_bytes(content or table_bytes(found, Format.CSV))
    with pytest.raises(error, match=sentence):
        score(package, saved, Format.CSV, labels_file(tmp_path, names))


def test_predictions_of_another_model_are_not_scored(package, found, tmp_path):
    saved = tmp_path / "saved.csv"
    saved.write_bytes(table_bytes(found, Format.CSV).replace(package.digest.encode(), b"0" * 64))
    with pytest.raises(DataError, match="predictions of the model 000000000000, expected"):
        score(package, saved, Format.CSV, labels_file(tmp_path, {"p1": "no"}))
