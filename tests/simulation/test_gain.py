"""``mmare-sim gain`` on real runs of a tiny federation."""

import json

import pytest
import torch

from client.data.dataset import load_data
from mmare.errors import InputError
from mmare.models.batch import Batch
from mmare.study.choices import Mode
from mmare.study.study import load_study
from mmare.wire.messages import Split
from server.run.request import RunRequest
from server.store.model_file import load_model
from simulation.gain import compare_runs
from simulation.run import run_federation
from sites.federation import site_folders
from tests.federations import tiny_federation

pytestmark = pytest.mark.slow

SHORT = ("training.rounds=3",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gain")
    federation = tiny_federation(folder / "federation")
    for mode in (Mode.FEDERATED, Mode.LOCAL):
        run_federation(RunRequest(federation, folder / mode, mode, SHORT))
    return folder


def right(model, data):
    rows = data.rows[Split.TEST]
    with torch.no_grad():
        logits = model(Batch(tuple(part[rows] for part in data.embedding), data.present[rows]))
    return logits.argmax(dim=1) == data.label[rows]


def test_the_gain_is_that_of_the_two_models_on_the_sites_rows(runs):
    found = compare_runs(runs / "federated", runs / "local")
    assert json.loads((runs / "federated" / "gain.json").read_text()) == found
    assert "What each site gains by joining" in (runs / "federated" / "report.html").read_text()
    study = load_study(runs / "federation" / "study.toml")
    joined = load_model(runs / "federated" / "model")
    for site in site_folders(runs / "federation"):
        data = load_data(site, study)
        label = data.label[data.rows[Split.TEST]]
        alone = load_model(runs / "local" / "local" / site.id / "model")
        shares = [
            torch.stack([ok[label == value].double().mean() for value in label.unique()]).mean().item()
            for ok in (right(joined, data), right(alone, data))
        ]
        row = found["sites"][site.id]
        assert row["n"] == len(label)
        if len(label.unique()) == len(study.classes):
            assert row["difference"] == pytest.approx(shares[0] - shares[1])


def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        compare_runs(tmp_path, runs / "local")
    with pytest.raises(InputError, match="expected a finished run of mode local"):
        compare_runs(runs / "federated", runs / "federated")
    other = RunRequest(runs / "federation", tmp_path / "other", Mode.LOCAL, ("training.rounds=2",))
    run_federation(other)
    with pytest.raises(InputError, match="a run of another study or seed"):
        compare_runs(runs / "federated", tmp_path / "other")
