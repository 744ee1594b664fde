"""Paired differences from sums: those of all pairs and rows, and the bootstrap's intervals."""

import numpy as np
import pytest
import torch

from mmare.metrics.paired import N_SUMS, difference_of, error_sums, pair_sums


def cohort(n, seed=0):
    """A good and a poor risk, times and events."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=n)
    time = random.exponential(np.exp(-truth))
    return (
        truth + random.normal(size=n) * 0.7,
        truth + random.normal(size=n) * 2,
        time,
        random.random(n) < 0.6,
    )


def concordance(risk, time, event):
    pairs = event[:, None] & (time[:, None] < time[None])
    return (pairs * (risk[:, None] > risk[None])).sum() / pairs.sum()


def sums_of(good, poor, time, event):
    tensors = [torch.from_numpy(np.asarray(each)) for each in (good, poor, time, event.astype(int))]
    return pair_sums((tensors[0], tensors[1]), tensors[2], tensors[3])


def test_the_difference_of_concordances_is_that_of_all_pairs():
    good, poor, time, event = cohort(60)
    found = difference_of(sums_of(good, poor, time, event), of_pairs=True)
    assert found["n"] == 60
    assert found["first"] == pytest.approx(concordance(good, time, event))
    assert found["difference"] == pytest.approx(
        concordance(good, time, event) - concordance(poor, time, event)
    )


def test_its_interval_is_the_bootstrap_s():
    good, poor, time, event = cohort(150, seed=4)
    random = np.random.default_rng(1)
    drawn = []
    for _ in range(500):
        rows = random.integers(150, size=150)
        scores = [concordance(risk[rows], time[rows], event[rows]) for risk in (good, poor)]
        drawn.append(scores[0] - scores[1])
    found = difference_of(sums_of(good, poor, time, event), of_pairs=True)["ci95"]
    assert found == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.025)


def test_equal_models_do_not_differ_and_ties_count_half():
    _, poor, time, event = cohort(30)
    assert difference_of(sums_of(poor, poor, time, event), of_pairs=True)["difference"] == 0
    found = difference_of(sums_of(poor * 0, poor, time, event), of_pairs=True)
    assert found["first"] == 0.5


def test_errors_are_paired_by_row():
    target = torch.arange(8.0)
    better, worse = target + torch.tensor([0.5, -0.5] * 4), target + torch.tensor([1.0, -2.0] * 4)
    parts = [error_sums((better[half], worse[half]), target[half]) for half in (slice(0, 3), slice(3, 8))]
    found = difference_of([sum(pair) for pair in zip(*parts, strict=True)], of_pairs=False)
    assert (found["first"], found["second"], found["difference"]) == (-0.5, -1.5, 1.0)
    reach = 1.959964 * 0.5 / 8**0.5
    assert found["ci95"] == pytest.approx([1 - reach, 1 + reach], rel=1e-6)


def test_without_a_pair_nothing_is_said():
    nothing = difference_of((), of_pairs=True)
    assert (nothing["n"], nothing["difference"], nothing["ci95"]) == (0, None, None)
    alone = sums_of(*(each[:1] for each in cohort(3)))
    assert len(alone) == N_SUMS
    assert difference_of(alone, of_pairs=True)["difference"] is None
