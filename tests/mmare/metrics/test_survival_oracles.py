"""Metrics of times from binned sums against torchsurv, on times and risks that are not binned."""

import numpy as np
import pytest
import torch

from mmare.metrics.survival import SurvivalState
from mmare.metrics.survival_curves import auc_until, brier_scores
from mmare.study.outcome import N_TIMES, time_code
from simulation.cox_references import partial_likelihood

pytestmark = pytest.mark.slow  # torchsurv takes seconds to import, so each test does it itself

FOLLOW_UP, ROWS = 100.0, 600
EDGES = (32, 64, 96)


@pytest.fixture(scope="module", params=[0])
def cohort(request):
    """Times, events, risks in [0, 1] and the true curve at the edges."""
    random = np.random.default_rng(request.param)
    score = random.normal(size=ROWS)
    rate = np.exp(score) / 120
    time, censored = random.exponential(1 / rate), random.uniform(0, 1.3 * FOLLOW_UP, ROWS)
    event = (time < censored) & (time < FOLLOW_UP)
    seen = np.minimum(np.minimum(time, censored), FOLLOW_UP)
    curve = np.exp(-rate[:, None] * np.array(EDGES) * FOLLOW_UP / N_TIMES)
    risk = 1 / (1 + np.exp(-score))
    return tuple(torch.from_numpy(each) for each in (seen, event, risk, curve))


def state_of(seen, event, risk, curve):
    label = torch.tensor(
        [time_code(t, bool(e), FOLLOW_UP) for t, e in zip(seen.tolist(), event, strict=True)]
    )
    return SurvivalState.of(risk, label // 2, label % 2, torch.zeros(ROWS), N_TIMES, curve)


def test_concordance_is_torchsurv_s_within_its_bound(cohort):
    from torchsurv.metrics.cindex import ConcordanceIndex

    seen, event, risk, _ = cohort
    state = state_of(*cohort)
    expected = ConcordanceIndex()(risk.logit(), event, seen).item()
    found, bound = state.compute()["concordance"], state.concordance_error_bound()
    assert abs(found - expected) <= bound
    assert bound < 0.02


def test_auc_and_brier_score_at_horizons_are_torchsurv_s(cohort):
    from torchsurv.metrics.auc import Auc
    from torchsurv.metrics.brier_score import BrierScore
    from torchsurv.stats.ipcw import get_ipcw

    seen, event, risk, curve = cohort
    state = state_of(*cohort)
    ends = torch.tensor(EDGES) * FOLLOW_UP / N_TIMES
    weights = {"weight": get_ipcw(event, seen), "weight_new_time": get_ipcw(event, seen, ends)}
    brier = BrierScore()(curve, event, seen, new_time=ends, **weights)
    found = brier_scores(state.curves, EDGES, state.histogram.sum(dim=2))
    assert found == pytest.approx(brier.tolist(), rel=0.02)
    auc = Auc()(risk.logit(), event, seen, auc_type="cumulative", new_time=ends, **weights)
    aucs = [auc_until(state.histogram, edge) for edge in EDGES]
    assert aucs == pytest.approx(auc.tolist(), abs=0.005)


def test_the_partial_likelihood_is_torchsurv_s(cohort):
    from torchsurv.loss.cox import neg_partial_log_likelihood

    seen, event, risk, _ = cohort
    score = risk.logit()
    ours = partial_likelihood(score, seen, event.long())
    theirs = neg_partial_log_likelihood(score, event, seen, ties_method="breslow")
    assert ours.item() == pytest.approx(-theirs.item())
