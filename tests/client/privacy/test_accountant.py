"""The noise that a budget asks for, against published values and closed forms."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from client.privacy.accountant import BudgetError, epsilon_of, plan_of, public_rows
from tests.federations import tiny_study

SETTINGS = {
    "modality": [{"name": "ct", "kind": "features", "width": 8, "scaling": "l2"}],
    "training": {"rounds": 5, "batch_size": 8, "noise_probability": 0.0},
}


def study_of(epsilon=8.0, delta=1e-5, **training):
    settings = {**SETTINGS, "training": {**SETTINGS["training"], **training}}
    return tiny_study(**settings, privacy={"dp": {"epsilon": epsilon, "delta": delta}})


def test_epsilon_is_the_published_one():
    """Noise 1, rate .01, 1000 steps, delta 1e-5: 1.828 by loss distributions, 2.10 by Renyi divergences."""
    assert epsilon_of(1.0, 0.01, 1000, 1e-5) == pytest.approx(1.828, abs=0.002)


def test_of_the_whole_site_epsilon_is_that_of_the_gaussian_mechanism():
    noise, delta = 3.0, 1e-5

    def excess(epsilon):  # Balle and Wang 2018, theorem 8
        half = 1 / (2 * noise)
        return norm.cdf(half - epsilon * noise) - np.exp(epsilon) * norm.cdf(-half - epsilon * noise) - delta

    assert epsilon_of(noise, 1.0, 1, delta) == pytest.approx(brentq(excess, 0.1, 10), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "rows"), [(8.0, 80), (1.0, 80), (8.0, 8)])
def test_the_noise_is_the_least_that_keeps_a_study_within_its_budget(epsilon, rows):
    plan = plan_of(study_of(epsilon), rows)
    steps = 5 * plan.steps
    assert plan.rate == min(8 / plan.rows, 1)
    assert (
        epsilon_of(plan.noise, plan.rate, steps, 1e-5) <= epsilon * 1.002
    )  # 1e-3 is the accountant's own step
    assert epsilon_of(0.98 * plan.noise, plan.rate, steps, 1e-5) > epsilon
    assert epsilon_of(plan.histogram_noise, 1.0, 2, 1e-5) == pytest.approx(epsilon, rel=0.01)


@pytest.mark.slow
def test_more_rounds_need_more_noise_and_more_patients_less():
    base = plan_of(study_of(), 80).noise
    assert plan_of(study_of(rounds=20), 80).noise > base
    assert plan_of(study_of(local_epochs=4), 80).noise == plan_of(study_of(rounds=20), 80).noise
    assert plan_of(study_of(), 400).noise < base


@pytest.mark.parametrize("rows", [1, 9, 10, 19, 20, 128])
def test_rows_are_told_in_tens(rows):
    assert public_rows(rows) == max(10, 10 * (rows // 10))


def test_a_budget_that_the_data_cannot_carry_names_the_sizes():
    sentence = (
        r"epsilon 0\.1 .* 20 train rows can carry: each of 15 steps needs noise of .* clips, expected at most"
    )
    with pytest.raises(BudgetError, match=sentence):
        plan_of(study_of(0.1), 20)
    assert plan_of(study_of(0.1), 0).rate == 0.8  # a site that only evaluates trains on nobody


def test_a_delta_that_is_no_small_risk_is_refused():
    with pytest.raises(BudgetError, match=r"delta 0\.05 .* below one in its 20 train rows"):
        plan_of(study_of(delta=0.05), 20)
