"""What calibration gives, on how many rows, and what sums lose against all rows in one place."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional

from client.data.dataset import SiteData, load_data
from mmare.metrics.calibration import PRIOR_SD, SHIFTS, TEMPERATURES, CalibrationState, merge_calibration
from mmare.metrics.decisions import Calibration
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

    def posterior(point):
        loss = functional.cross_entropy(calibrated(logits, point), labels, reduction="sum")
        return loss.item() + (np.square(point) / (2 * PRIOR_SD**2)).sum()

    logits, labels = rows(Split.VAL)
    pooled = minimize(
        posterior,
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


def drawn(random, size, temperature, shift):
    """Logits of a model whose calibration is known, and labels, three in ten of them positive."""
    labels = random.random(size) < 0.3
    score = random.normal(size=size) + 1.2 * labels
    logit = temperature * (np.log(0.3 / 0.7) + 1.2 * score - 0.72 - shift)
    return torch.tensor(np.stack([np.zeros(size), logit], axis=1)), torch.tensor(labels).long()


@pytest.mark.bench
@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize("size", [39, 80, 160, 1000])
def test_a_prior_against_the_smallest_loss_and_no_calibration(size, limit):
    """Log-loss on other rows above that of the best calibration: mean over miscalibrations and seeds."""
    found = {"none": [], "smallest_loss": [], "prior": []}
    for temperature, shift in [(1, 0), (1.3, 0), (2, 0), (1, 0.7), (2, 0.7), (0.7, 0), (3, -1)]:
        tested = CalibrationState.of(*drawn(np.random.default_rng(1), 20_000, temperature, shift))
        losses = tested.losses[:, 0].sum(dim=0) / 20_000
        for seed in range(20):
            logits, labels = drawn(np.random.default_rng(100 + seed), size, temperature, shift)
            sites = [CalibrationState.of(logits[k::3], labels[k::3], limit) for k in range(3)]
            small = [{0, 1} - {c for c in (0, 1) if state.counts[c] >= limit} for state in sites]
            kept = [state.without(classes) for state, classes in zip(sites, small, strict=True)]
            state = merge_calibration(kept, 2)
            if state.fit() is None:
                continue
            smallest = divmod(int(state.losses[:, 0].sum(dim=0).argmin()), len(SHIFTS))
            unpenalised = Calibration(TEMPERATURES[smallest[0]], (0.0, SHIFTS[smallest[1]]))
            for way, made in zip(
                found, (Calibration(1.0, (0.0, 0.0)), unpenalised, state.fit()), strict=True
            ):
                found[way].append(tested.means_at(made)["log_loss"] - losses.min().item())
    means = {way: round(float(np.mean(values)), 4) for way, values in found.items()}
    report(
        f"{size} validation rows at three sites, smallest group {limit}", draws=len(found["none"]), **means
    )
    assert means["prior"] <= min(means["none"], means["smallest_loss"])
