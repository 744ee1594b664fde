"""Curves, log-rank test and AUC from counts: those of scipy, and of a loop over pairs."""

import numpy as np
import pytest
import torch
from scipy import stats

from mmare.metrics.survival_curves import (
    auc_until,
    brier_scores,
    censoring_curve,
    integrated,
    kaplan_meier,
    log_rank,
    risk_groups,
)

T, R = 40, 64


def cohort(n, seed):
    """Bins of time and risk, and events; the higher the risk, the earlier."""
    random = np.random.default_rng(seed)
    risk = random.integers(0, R, n)
    time = np.minimum(random.exponential(30 * np.exp(-risk / R * 2)), T - 1).astype(int)
    return time, (random.random(n) < 0.6).astype(int), risk


def histogram(time, event, risk):
    found = torch.zeros(2, T, R, dtype=torch.int64)
    found.index_put_(
        tuple(map(torch.from_numpy, (event, time, risk))),
        torch.ones(len(time), dtype=torch.int64),
        accumulate=True,
    )
    return found


def censored_data(time, event):
    return stats.CensoredData(uncensored=time[event == 1], right=time[event == 0])


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_scipy_s(seed):
    time, event, risk = cohort(80, seed)
    censored, events = histogram(time, event, risk).sum(dim=2).double()
    curve = kaplan_meier(events, censored)
    expected = stats.ecdf(censored_data(time, event)).sf.evaluate(np.arange(T))
    assert curve[1:].numpy() == pytest.approx(expected)
    assert curve[0] == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_log_rank_test_of_two_groups_is_scipy_s(seed):
    time, event, risk = cohort(90, seed)
    high = risk >= R // 2
    tables = torch.stack(
        [
            histogram(*(each[part] for each in (time, event, risk))).sum(dim=2).double()
            for part in (high, ~high)
        ]
    )
    found = log_rank(tables)
    expected = stats.logrank(*(censored_data(time[part], event[part]) for part in (high, ~high)))
    assert found["statistic"] == pytest.approx(expected.statistic**2)
    assert (found["freedom"], found["p"]) == (1, pytest.approx(expected.pvalue))


def test_groups_that_do_not_differ_are_seldom_told_apart():
    random = np.random.default_rng(0)
    small = 0
    for _ in range(200):
        time, event = random.integers(0, T, 60), (random.random(60) < 0.7).astype(int)
        found = risk_groups(histogram(time, event, random.integers(0, R, 60)))
        small += found["p"] < 0.05
    assert 2 <= small <= 22  # one in twenty of 200


def test_groups_are_equally_large_and_ordered():
    found = risk_groups(histogram(*cohort(300, 1)))
    assert [group["n"] for group in found["groups"]] == pytest.approx([100] * 3, abs=6)
    ends = [group["curve"][T // 2] for group in found["groups"]]
    assert ends == sorted(ends, reverse=True)
    assert (found["freedom"], found["p"] < 1e-4) == (2, True)


def test_alike_risks_make_no_groups():
    time, event, risk = cohort(20, 0)
    assert risk_groups(histogram(time, event, np.zeros_like(risk))) is None
    assert risk_groups(torch.zeros(2, T, R, dtype=torch.int64)) is None
    none = log_rank(torch.ones(2, 2, 3, dtype=torch.float64) * torch.tensor([1.0, 0.0])[None, :, None])
    assert none == {"statistic": None, "freedom": 1, "p": None}


@pytest.mark.parametrize(("seed", "edge"), [(0, 10), (1, 20), (2, 30)])
def test_the_auc_is_that_of_weighted_pairs(seed, edge):
    time, event, risk = cohort(70, seed)
    counts = histogram(time, event, risk)
    right = pairs = 0.0
    for case in np.flatnonzero((event == 1) & (time < edge)):
        known = 1.0  # probability of not being censored before the case's bin
        for t in range(time[case]):
            at_risk = ((time > t) | ((time == t) & (event == 0))).sum()
            known *= 1 - ((time == t) & (event == 0)).sum() / max(at_risk, 1)
        for control in np.flatnonzero(time >= edge):
            pairs += 1 / known
            right += (float(risk[case] > risk[control]) + (risk[case] == risk[control]) / 2) / known
    assert auc_until(counts, edge) == pytest.approx(right / pairs)


def test_without_censoring_it_is_the_plain_auc():
    from sklearn.metrics import roc_auc_score

    time, _, risk = cohort(70, 4)
    event = np.ones_like(time)
    assert auc_until(histogram(time, event, risk), 12) == pytest.approx(roc_auc_score(time < 12, risk))
    assert auc_until(histogram(time, event, risk), 0) is None


def test_weights_of_all_sites_count():
    first, second = (histogram(*cohort(60, seed)) for seed in (0, 1))
    both = first + second
    own, pooled = auc_until(first, 20), auc_until(first, 20, both)
    assert own == pytest.approx(pooled, abs=0.05)
    assert own != pooled
    censored, events = both.sum(dim=2).double()
    curve = censoring_curve(events, censored)
    assert (curve.diff() <= 0).all()
    assert curve[0] == 1


def weighted_brier(time, event, left, edge):
    """Patient by patient, with the inverse probability of being observed."""

    def known(until):
        found = 1.0
        for t in range(until):
            lost = ((time == t) & (event == 0)).sum()
            at_risk = (time > t).sum() + lost
            found *= 1 - lost / max(at_risk, 1)
        return found

    total = 0.0
    for t, died, probability in zip(time, event, left, strict=True):
        if died and t < edge:
            total += probability**2 / known(t)
        elif t >= edge:
            total += (1 - probability) ** 2 / known(edge)
    return total / len(time)


@pytest.mark.parametrize("seed", range(3))
def test_the_brier_score_is_that_of_weighted_patients(seed):
    time, event, risk = cohort(60, seed)
    edges = [5, 12, 25]
    left = np.stack([np.exp(-(risk + 1) / R * edge / 20) for edge in edges], axis=1)
    curves = torch.zeros(2, T, 1 + 2 * len(edges), dtype=torch.float64)
    columns = torch.from_numpy(np.concatenate([np.ones((60, 1)), left, left**2], axis=1))
    curves.index_put_((torch.from_numpy(event), torch.from_numpy(time)), columns, accumulate=True)
    found = brier_scores(curves, edges, curves[:, :, 0])
    assert found == pytest.approx(
        [weighted_brier(time, event, left[:, k], edge) for k, edge in enumerate(edges)]
    )
    area = (found[0] * 5 / 2 + (found[0] + found[1]) * 7 / 2 + (found[1] + found[2]) * 13 / 2) / 25
    assert integrated(found, edges) == pytest.approx(area)


def test_nobody_observed_that_long_has_no_brier_score():
    curves = torch.zeros(2, T, 3, dtype=torch.float64)
    curves[0, 3] = torch.tensor([4.0, 2.0, 1.0])  # all are censored early
    assert brier_scores(curves, [20], curves[:, :, 0]) == [None]
    assert integrated([None], [20]) is None
    assert brier_scores(torch.zeros(2, T, 3), [20], torch.zeros(2, T)) == [None]
