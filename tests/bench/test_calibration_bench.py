"""What calibration gives MMIST's hospitals, and what sums lose against all rows in one place."""

import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional

from client.data.dataset import SiteData, load_data
from mmare.metrics.state import MetricState
from mmare.models.batch import Batch
from mmare.package.package import read_package
from mmare.wire.messages import Split
from server.release.release import release_model
from sites.datasets.mmist import prepare_mmist
from sites.federation import site_folders
from sites.options import Grouping
from tests.bench.printed import report
from tests.data_folder import data_folder
from tests.federations import run_nodes

SETTINGS = ("training.rounds=40", "training.recipe=robust")


def scores(probability, labels):
    found = MetricState.of(probability.log(), labels).compute(1)
    return {name: round(found[name], 4) for name in ("log_loss", "brier", "ece")}


@pytest.mark.bench
@pytest.mark.data
def test_calibration_by_sums_against_pooled_rows(tmp_path):
    prepare_mmist(data_folder("mmist"), tmp_path / "fed", by=Grouping.HOSPITAL)
    run_nodes(tmp_path / "fed", tmp_path / "run", settings=SETTINGS)
    release_model(tmp_path / "run", tmp_path / "model")
    package = read_package(tmp_path / "model")
    data = SiteData.pooled([load_data(site, package.study) for site in site_folders(tmp_path / "fed")])

    def rows(split):
        chosen = data.rows[split]
        batch = Batch(tuple(part[chosen] for part in data.embedding), data.present[chosen])
        with torch.inference_mode():
            return package.model(batch).double(), data.label[chosen]

    def calibrated(logits, point):
        return logits * torch.tensor(-point[0]).exp() + torch.tensor([0.0, point[1]])

    logits, labels = rows(Split.VAL)
    pooled = minimize(
        lambda point: functional.cross_entropy(calibrated(logits, point), labels).item(),
        [0.0, 0.0],
        method="Nelder-Mead",
    ).x
    logits, labels = rows(Split.TEST)
    before = scores(logits.softmax(dim=1), labels)
    summed = scores(package.judge(logits).probability, labels)
    exact = scores(calibrated(logits, pooled).softmax(dim=1), labels)
    report(f"{len(labels)} test rows of MMIST by hospital", before=before, by_sums=summed, pooled_rows=exact)
    assert summed["log_loss"] == pytest.approx(exact["log_loss"], abs=0.005)
    assert summed["log_loss"] < before["log_loss"]
