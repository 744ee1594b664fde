import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from client.data.dataset import SiteData, load_data
from mmare.errors import InputError
from mmare.wire.messages import Split
from simulation.references import measure_references
from simulation.report.run_report import write_report
from sites.federation import site_folders, write_federation
from tests.federations import SITES, request_of, run_nodes, site_tables, tiny_federation, tiny_study

SHORT = ("training.rounds=2",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    federation = tiny_federation(folder / "fed", patients=80)
    result = run_nodes(federation, folder / "run", settings=SHORT)
    request = request_of(federation, folder / "run", settings=SHORT)
    return request, result, measure_references(request)


def test_the_run_is_scored_as_its_result_says(finished):
    _, result, found = finished
    pooled, own = result["metrics"]["test"]["pooled"], found["models"]["this run"]
    assert list(found["models"]) == [
        "this run",
        "logistic regression",
        "federated logistic regression",
        "gradient boosting",
        "presence of modalities alone",
    ]
    assert found["n"] == pooled["n"]
    assert own["auc"] == pytest.approx(pooled["auc"], abs=0.01)  # by histograms there
    assert own["balanced_accuracy"] == pytest.approx(pooled["balanced_accuracy"])
    assert own["macro_f1"] == pytest.approx(pooled["macro_f1"])
    assert own["difference"] == 0 == own["ci95"][0] == own["ci95"][1]


def test_logistic_regression_is_that_of_the_pooled_rows(finished):
    request, _, found = finished
    data = SiteData.pooled([load_data(site, request.study) for site in site_folders(request.federation)])
    train, val, test = (data.rows[split].numpy() for split in (Split.TRAIN, Split.VAL, Split.TEST))
    label, columns = data.label.numpy(), []
    for slot, part in enumerate(data.embedding):
        there = data.present[:, slot].numpy()
        known = part.numpy().astype(float)[np.intersect1d(train, np.flatnonzero(there))]
        columns.append(there[:, None] * (part.numpy() - known.mean(axis=0)) / known.std(axis=0))
    inputs = np.concatenate([*columns, ~data.present.numpy()], axis=1)
    fits = [
        LogisticRegression(C=strength, max_iter=2000).fit(inputs[train], label[train])
        for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    ]
    losses = [-np.log(fit.predict_proba(inputs[val])[np.arange(len(val)), label[val]]).mean() for fit in fits]
    expected = roc_auc_score(label[test], fits[np.argmin(losses)].predict_proba(inputs[test])[:, 1])
    assert found["models"]["logistic regression"]["auc"] == pytest.approx(expected)
    assert found["models"]["federated logistic regression"]["auc"] == pytest.approx(expected, abs=2e-3)


def test_a_run_that_loses_says_so_in_its_report(finished):
    request, _, found = finished
    best = max(found["models"], key=lambda name: found["models"][name]["auc"])
    assert best != "this run"  # of two rounds
    rows = "" if best.startswith("federated") else " on the pooled rows"
    assert found["note"].startswith(f"{best.capitalize()}{rows} is better than this run: AUC ")
    assert found == json.loads((request.out / "references.json").read_text())
    assert found["note"].split(":")[0] in write_report(request.out).read_text()


@pytest.mark.parametrize("settings", [("federation.local=['head']",), ()])
def test_a_run_of_many_models_is_refused(tmp_path, settings):
    federation = tiny_federation(tmp_path / "fed")
    mode = "federated" if settings else "local"
    with pytest.raises(InputError, match="--references is for a run with one model"):
        measure_references(request_of(federation, tmp_path / "run", mode, settings))


def test_a_class_that_no_test_row_has_is_refused(tmp_path):
    tables = [site_tables(name, tiny_study(), 40, 3, 0.3) for name in SITES]
    for each in tables:
        each.manifest.loc[each.manifest["split"] == "test", "label"] = "no"
    write_federation(tmp_path / "fed", tiny_study(), tables)
    with pytest.raises(InputError, match="--references needs every class"):
        measure_references(request_of(tmp_path / "fed", tmp_path / "run"))


def test_a_modality_and_a_column_that_no_train_row_has_are_named_and_break_nothing(tmp_path):
    tables = [site_tables(name, tiny_study(), 40, 3, 0.0) for name in SITES]
    for each in tables:
        for patient in each.manifest.loc[each.manifest["split"] == "train", "patient_id"]:
            del each.features["wsi"][patient]
            each.features["ct"][patient][0] = np.nan
    write_federation(tmp_path / "fed", tiny_study(), tables)
    result = run_nodes(tmp_path / "fed", tmp_path / "run", settings=("training.rounds=1",))
    assert result["notes"] == [
        "no site told a train row that has wsi: the model has not learned it and does not look at it"
    ]
    found = measure_references(
        request_of(tmp_path / "fed", tmp_path / "run", settings=("training.rounds=1",))
    )
    assert all(0 <= scores["auc"] <= 1 for scores in found["models"].values())
