"""Metrics of predicted numbers from sums: those of scikit-learn, whatever the order of merging."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from mmare.metrics.regression import RegressionState


def rows(n, seed):
    random = torch.Generator().manual_seed(seed)
    target = torch.randn(n, generator=random).double()
    return target * 0.6 + 0.3 * torch.randn(n, generator=random).double() + 0.1, target


@given(n=st.integers(2, 60), seed=st.integers(0, 999), spread=st.floats(0.1, 30))
def test_metrics_are_those_of_scikit_learn(n, seed, spread):
    predicted, target = rows(n, seed)
    found = RegressionState.of(predicted, target).compute(spread)
    y, p = target.numpy() * spread, predicted.numpy() * spread
    assert found["mae"] == pytest.approx(mean_absolute_error(y, p))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(y, p))
    assert found["r2"] == pytest.approx(r2_score(y, p), abs=1e-6)
    assert found["slope"] == pytest.approx(np.polyfit(p, y, 1)[0], rel=1e-5, abs=1e-6)
    assert found["log_loss"] == pytest.approx(np.mean((y - p) ** 2) / spread**2 / 2)


@given(n=st.integers(0, 30), cut=st.integers(0, 30), seed=st.integers(0, 99))
def test_merged_states_are_the_state_of_all_rows(n, cut, seed):
    predicted, target = rows(n, seed)
    parts = [RegressionState.of(predicted[part], target[part]) for part in (slice(cut), slice(cut, None))]
    merged, whole = parts[0].merge(parts[1]), RegressionState.of(predicted, target)
    assert merged.n == whole.n
    torch.testing.assert_close(merged.sums, whole.sums)


@given(n=st.integers(0, 30), seed=st.integers(0, 99), limit=st.integers(0, 9))
def test_a_state_goes_there_and_back(n, seed, limit):
    state = RegressionState.of(*rows(n, seed)).withhold(limit)
    again = RegressionState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert (again.n, again.withheld) == (state.n, state.withheld)
    assert torch.equal(again.sums, state.sums)
    assert (state.n == 0) == (n < limit or n == 0)


def test_what_is_not_defined_is_none():
    assert set(RegressionState.empty().compute(1.0).values()) == {0, None}
    alike = RegressionState.of(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])).compute(1.0)
    assert (alike["r2"], alike["slope"], alike["mae"]) == (None, None, 1.0)
    assert RegressionState.empty().intervals(1.0) == {"mae": None, "rmse": None}


def test_intervals_hold_the_truth_about_nineteen_times_in_twenty():
    held = {"mae": 0, "rmse": 0}
    truth = {"mae": np.sqrt(2 / np.pi), "rmse": 1.0}
    random = torch.Generator().manual_seed(0)
    for _ in range(300):
        error = torch.randn(60, generator=random).double()
        for name, (low, high) in RegressionState.of(error, torch.zeros(60)).intervals(1.0).items():
            held[name] += low <= truth[name] <= high
    assert all(0.91 <= count / 300 <= 0.98 for count in held.values())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n": -1}, "n must be a whole number"),
        ({"sums": [0.0]}, "sums must be a list of 8"),
        ({"n": 0}, "sums without rows"),
        ({"sums": [1.0, -1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]}, "below zero"),
        ({"sums": [9.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]}, "sums that no rows have"),
        ({"sums": [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]}, "not those of the predictions"),
        ({"withheld": [1]}, "withheld must be a whole number"),
    ],
)
def test_a_state_that_no_rows_have_is_refused(change, sentence):
    state = RegressionState.of(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match=sentence):
        RegressionState.from_dict(state.to_dict() | change)


def test_a_prediction_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        RegressionState.of(torch.tensor([float("inf")]), torch.tensor([1.0]))
