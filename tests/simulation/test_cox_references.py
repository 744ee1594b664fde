"""The Cox model beside a run: its fit is that of a general optimiser, its pairs are those of a loop."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from server.run.request import RunRequest
from simulation.cox_references import fit_cox, ordered_pairs, partial_likelihood
from simulation.references import measure_references
from simulation.report.run_report import REFERENCES, write_report
from tests.federations import run_nodes, survival_study, tiny_federation


def cohort(n=80, seed=0):
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(n, 3))
    time = np.ceil(random.exponential(10 * np.exp(-inputs[:, 0])))  # with ties
    return inputs, time, (random.random(n) < 0.7).astype(int)


def slow(beta, inputs, time, event, penalty):
    """Minus the mean partial log-likelihood of an event, Breslow, and the penalty."""
    score = inputs @ beta
    each = [score[i] - np.log(np.exp(score[time >= time[i]]).sum()) for i in np.flatnonzero(event)]
    return -np.mean(each) + penalty / 2 * beta @ beta


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_the_fit_is_that_of_a_general_optimiser(penalty):
    inputs, time, event = cohort()
    expected = minimize(slow, np.zeros(3), (inputs, time, event, penalty), tol=1e-10)
    found = fit_cox(*map(torch.from_numpy, (inputs, time, event)), penalty)
    assert found.numpy() == pytest.approx(expected.x, abs=1e-4)
    likelihood = partial_likelihood(*map(torch.from_numpy, (inputs @ expected.x, time, event)))
    assert likelihood.item() == pytest.approx(-slow(expected.x, inputs, time, event, 0.0))


def test_pairs_are_ordered_by_the_event():
    pairs = ordered_pairs(torch.tensor([1, 2, 2, 3]), torch.tensor([1, 0, 1, 1]))
    assert pairs.nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [2, 3]]


def test_a_run_stands_beside_the_model_on_pooled_rows(tmp_path):
    federation = tiny_federation(tmp_path / "fed", survival_study())
    run_nodes(federation, tmp_path / "run", settings=["training.rounds=2"])
    request = RunRequest(federation, tmp_path / "run", set=("training.rounds=2",))
    found = measure_references(request)
    result = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["test"]["pooled"]
    assert list(found["models"]) == ["this run", "penalised Cox model", "presence of modalities alone"]
    run = found["models"]["this run"]
    assert run["concordance"] == pytest.approx(result["concordance"], abs=result["concordance_error_bound"])
    assert (run["difference"], run["ci95"]) == (0.0, [0.0, 0.0])
    cox = found["models"]["penalised Cox model"]
    assert cox["concordance"] == pytest.approx(run["concordance"] + cox["difference"])
    assert cox["ci95"][0] <= cox["difference"] <= cox["ci95"][1]
    assert (
        found["models"]["penalised Cox model"]["concordance"] > 0.6
    )  # the features are noise plus the event
    assert json.loads((tmp_path / "run" / REFERENCES).read_text()) == found
    assert "Penalised cox model" in write_report(tmp_path / "run").read_text()
