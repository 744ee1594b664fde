"""No site has more than its share of a weighted mean."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.study.specs import FederationSpec
from mmare.study.strategy_options import STRATEGY_OPTIONS, FedAvgOptions, strategy_options
from server.aggregation.mean import Contribution
from server.aggregation.site_weights import capped, site_weights
from server.aggregation.strategies import Gathered, strategy_of

WEIGHING = sorted(name for name, options in STRATEGY_OPTIONS.items() if issubclass(options, FedAvgOptions))
VOTES = st.dictionaries(
    st.sampled_from("abcdefgh"), st.one_of(st.integers(0, 100), st.floats(1e-3, 1e9)).map(float), min_size=1
)
MOST = st.one_of(st.floats(0.01, 1), st.sampled_from([0.2, 0.25, 1 / 3, 0.5, 1.0]))


def shares(votes):
    total = math.fsum(votes.values())
    return {site: vote / total for site, vote in votes.items()} if total else votes


@given(VOTES, MOST)
def test_no_share_is_above_the_cap_where_that_is_possible(votes, most):
    before, after = shares(votes), shares(capped(votes, most))
    voting = [site for site, vote in votes.items() if vote > 0]
    assert set(after) == set(votes)
    assert not voting or math.fsum(after.values()) == pytest.approx(1)
    assert all((after[site] > 0) is (site in voting) for site in votes)
    if len(voting) * most > 1 + 1e-9:
        assert max(after.values()) <= most * (1 + 1e-9)
    elif voting and len(voting) * most < 1 - 1e-9:
        assert [after[site] for site in voting] == pytest.approx([1 / len(voting)] * len(voting))
    if max(before.values()) <= most * (1 - 1e-12):
        assert capped(votes, most) == votes
    order = sorted(votes, key=lambda site: votes[site])
    assert [after[site] for site in order] == sorted(after.values())
    free = [site for site in voting if after[site] < max(after.values()) * (1 - 1e-9)]
    for site in free:  # among themselves they weigh what they did
        assert after[site] / after[free[0]] == pytest.approx(votes[site] / votes[free[0]], rel=1e-6)


def contributions(*samples):
    """Each site sends one value of its own: the n-th, 1 in place n."""
    return [
        Contribution(
            f"site{place}",
            count,
            {"all": count},
            ("all",),
            lambda place=place: {"w": torch.eye(len(samples), dtype=torch.float64)[place]},
        )
        for place, count in enumerate(samples)
    ]


@pytest.mark.parametrize("weighting", ["samples", "exposure"])
@given(samples=st.lists(st.integers(1, 10**8), min_size=2, max_size=6), most=MOST)
def test_shares_of_a_block_are_capped_and_sum_to_one(weighting, samples, most):
    sent = contributions(*samples)
    options = strategy_options("fedavg", {"weighting": weighting})
    weights = site_weights(["all"], sent, options, {}, most)["all"]
    found = shares(weights.sites)
    assert math.fsum(found.values()) + weights.stay == pytest.approx(1)
    assert len(samples) * most <= 1 + 1e-9 or max(found.values()) <= most * (1 + 1e-9)
    uncapped = site_weights(["all"], sent, options, {})["all"]
    assert max(shares(uncapped.sites).values()) > most * (1 - 1e-12) or weights == uncapped


def test_a_site_that_sends_nothing_holds_the_others_back_no_more_than_its_share():
    sent = contributions(1, 1, 10**9)
    silent = Contribution("site2", 10**9, {"all": 0}, (), dict)
    weights = site_weights(["all"], [*sent[:2], silent], FedAvgOptions(), {}, 0.5)["all"]
    assert weights.stay == pytest.approx(sum(weights.sites.values()))


@pytest.mark.parametrize("name", WEIGHING)
def test_every_strategy_that_weighs_keeps_to_the_study_s_cap(name):
    def moved(most):
        gathered = Gathered({"w": torch.zeros(3, dtype=torch.float64)}, {"all": ["w"]}, sent)
        return strategy_of(FederationSpec(strategy=name, max_share=most))(gathered)[0]["w"]

    sent = contributions(26_000_000, 20, 20)
    honest, held = moved(1.0), moved(0.4)
    sent = contributions(40, 30, 30)
    assert torch.allclose(held, moved(1.0))
    assert not torch.allclose(held, honest)
