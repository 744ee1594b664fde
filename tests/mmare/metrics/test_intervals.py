"""`mmare.metrics.intervals` against a bootstrap over the rows and against the binomial distribution."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from scipy import stats

from mmare.metrics.intervals import bootstrap_intervals
from mmare.metrics.state import N_BINS, MetricState

NAMES = {
    "accuracy",
    "balanced_accuracy",
    "auc",
    "f1",
    "precision",
    "recall",
    "macro_f1",
    "macro_precision",
    "macro_recall",
}


def random_rows(n_classes, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_classes, (n,), generator=generator)
    logits = torch.randn(n, n_classes, generator=generator)
    return logits + torch.nn.functional.one_hot(labels, n_classes), labels


def bootstrap_over_rows(logits, labels, resamples=2000):
    """Accuracy, f1 of class 1 and AUC of class 1 of rows drawn within their class, two classes."""
    draws = np.random.default_rng(0)
    score = logits.double().softmax(dim=1)[:, 1].numpy()
    guess, truth = logits.argmax(dim=1).numpy(), labels.numpy()
    negative, positive = (np.flatnonzero(truth == label) for label in (0, 1))
    wins = np.sign(score[positive][:, None] - score[negative][None, :]) / 2 + 0.5
    found = {"accuracy": [], "f1": [], "auc": []}
    for _ in range(resamples):
        low, high = (draws.integers(len(group), size=len(group)) for group in (negative, positive))
        hits = (guess[positive[high]] == 1).sum()
        false = (guess[negative[low]] == 1).sum()
        found["accuracy"].append((hits + len(low) - false) / len(truth))
        found["f1"].append(2 * hits / (len(high) + hits + false))
        found["auc"].append(wins[high][:, low].mean())
    return {name: np.quantile(values, [0.025, 0.975]) for name, values in found.items()}


def test_intervals_are_those_of_a_bootstrap_over_the_rows():
    rows = random_rows(2, 200)
    found = bootstrap_intervals(MetricState.of(*rows), positive=1, seed=3, resamples=2000)
    for name, interval in bootstrap_over_rows(*rows).items():
        assert found[name] == pytest.approx(interval, abs=0.012), name


@pytest.mark.parametrize("n_classes", [2, 3])
def test_recall_is_binomial(n_classes):
    """With every row of class 0 wrong or right, the mean recall moves with that one class only."""
    hits, n = 30, 80
    labels = torch.tensor([0] * n + list(range(1, n_classes)))
    logits = 4 * torch.nn.functional.one_hot(labels, n_classes).float()
    logits[hits:n] = logits[hits:n].roll(1, dims=1)
    interval = bootstrap_intervals(MetricState.of(logits, labels), None, seed=0, resamples=20_000)[
        "macro_recall"
    ]
    recall = stats.binom(n, hits / n).ppf([0.025, 0.975]) / n
    assert interval == pytest.approx((recall + n_classes - 1) / n_classes, abs=0.01)


def test_mean_auc_of_many_classes_is_covered():
    rows = random_rows(3, 150)
    state = MetricState.of(*rows)
    low, high = bootstrap_intervals(state, None, seed=0)["auc"]
    assert low < state.compute(None)["auc"] < high
    assert 0.02 < high - low < 0.2


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_intervals_hold_the_value_and_are_deterministic(n_classes):
    state = MetricState.of(*random_rows(n_classes, 120))
    found = bootstrap_intervals(state, 1, seed=0)
    assert set(found) == NAMES
    assert found == bootstrap_intervals(state, 1, seed=0)
    assert found != bootstrap_intervals(state, 1, seed=1)
    values = state.compute(1)
    for name, interval in found.items():
        if values[name] is None:
            assert interval is None
        else:
            assert 0 <= interval[0] <= values[name] <= interval[1] <= 1, name
    json.dumps(found, allow_nan=False)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    bootstrap_intervals(MetricState.of(*random_rows(2, 20)), 1, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_wider_level_and_fewer_rows_give_wider_intervals():
    many, few = (MetricState.of(*random_rows(2, n)) for n in (600, 60))

    def width(state, level):
        low, high = bootstrap_intervals(state, 1, seed=0, level=level)["auc"]
        return high - low

    assert width(many, 0.5) < width(many, 0.95) < width(few, 0.95)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_absent_class_and_no_rows(n_classes):
    nothing = bootstrap_intervals(MetricState.empty(n_classes), 1, seed=0)
    assert nothing == dict.fromkeys(NAMES)
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])[:, :n_classes]
    alone = bootstrap_intervals(MetricState.of(logits, torch.tensor([1, 1])), 1, seed=0)
    known = {"accuracy", "recall"} if n_classes == 2 else {"accuracy"}
    assert {name for name, interval in alone.items() if interval is not None} == known


def test_perfect_predictions_have_no_spread():
    labels = torch.tensor([0, 1, 0, 1, 1])
    state = MetricState.of(9 * torch.nn.functional.one_hot(labels, 2).float(), labels)
    found = bootstrap_intervals(state, 1, seed=0)
    assert all(interval == [1.0, 1.0] for interval in found.values())


def test_large_states_are_drawn_in_parts(monkeypatch):
    state = MetricState.of(*random_rows(2, 300))
    whole = bootstrap_intervals(state, 1, seed=0)
    monkeypatch.setattr("mmare.metrics.intervals._CELLS_AT_ONCE", 10_000)
    parts = bootstrap_intervals(state, 1, seed=0)
    for name, interval in whole.items():
        assert parts[name] == pytest.approx(interval, abs=0.02), name


def test_time_does_not_grow_with_the_rows_that_a_state_claims():
    n = 2**40
    entry = {"n": n, "log_loss": 0.0, "brier": 0.0}
    wrong = {
        **entry,
        "confusion": [n // 2, n // 2],
        "histogram": [[[0, n // 2]], [[N_BINS - 1, n // 2]]],
        "calibration": [[14, n, n // 2, float(n)]],
    }
    state = MetricState.from_dict({"bins": [N_BINS, 15], "classes": [wrong, wrong], "withheld": []}, 2)
    started = time.perf_counter()
    found = bootstrap_intervals(state, 1, seed=0)
    assert time.perf_counter() - started < 5
    assert found["accuracy"] == pytest.approx([0.5, 0.5], abs=1e-5)
    assert found["auc"] == pytest.approx([0.5, 0.5], abs=1e-5)
