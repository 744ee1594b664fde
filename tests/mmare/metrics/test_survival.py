"""Concordance from counts: as from all pairs, within its bound, whatever the order of merging."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.metrics.survival import N_RISKS, SurvivalState, concordance
from mmare.study.outcome import N_TIMES, time_code

FOLLOW_UP = 100.0


def cohort(n, seed):
    """Risks, times and events, of which the higher risk tends to be earlier."""
    random = torch.Generator().manual_seed(seed)
    risk = torch.rand(n, generator=random).double()
    time = (-torch.rand(n, generator=random).double().log() * 60 * (1.2 - risk)).clamp(max=FOLLOW_UP)
    return risk, time, torch.rand(n, generator=random) < 0.6


def state_of(risk, time, event, loss=None):
    pairs = zip(time.tolist(), event.tolist(), strict=True)
    codes = torch.tensor([time_code(*pair, FOLLOW_UP) for pair in pairs], dtype=torch.int64)
    loss = torch.ones(len(risk)) if loss is None else loss
    return SurvivalState.of(risk, codes // 2, codes % 2, loss, N_TIMES)


def over_all_pairs(risk, time, event):
    """Harrell's concordance, pair by pair."""
    right = pairs = 0.0
    for i in range(len(risk)):
        for j in range(len(risk)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j] and i != j)):
                pairs += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return right / pairs if pairs else None


@given(n=st.integers(2, 60), seed=st.integers(0, 10**6))
def test_concordance_is_that_of_all_pairs_within_its_bound(n, seed):
    risk, time, event = cohort(n, seed)
    state = state_of(risk, time, event)
    exact, found, bound = (
        over_all_pairs(risk, time, event),
        state.compute()["concordance"],
        state.concordance_error_bound(),
    )
    if found is None:
        assert bound is None
        return
    assert abs(found - exact) <= bound + 1e-12


def test_with_a_bin_for_each_time_and_risk_it_is_exact_and_the_bound_is_zero():
    place = torch.randperm(N_TIMES, generator=torch.Generator().manual_seed(0))
    time = (place + 0.5) * FOLLOW_UP / N_TIMES
    risk = (torch.randperm(N_TIMES, generator=torch.Generator().manual_seed(1)) * 2 + 0.5) / N_RISKS
    event = torch.arange(N_TIMES) % 3 > 0
    state = state_of(risk, time, event)
    assert state.compute()["concordance"] == pytest.approx(over_all_pairs(risk, time, event), abs=1e-12)
    assert state.concordance_error_bound() == pytest.approx(0, abs=1e-12)


def test_order_decides():
    risk, time = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([10.0, 40.0, 80.0])
    event = torch.tensor([True, True, False])
    assert state_of(risk, time, event).compute()["concordance"] == 1.0
    assert state_of(risk.flip(0), time, event).compute()["concordance"] == 0.0
    assert state_of(torch.full((3,), 0.3), time, event).compute()["concordance"] == 0.5
    assert state_of(risk, time, ~event).compute()["concordance"] is None  # the last alone has the event


@given(n=st.integers(0, 40), cut=st.integers(0, 40), seed=st.integers(0, 999))
def test_merged_states_are_the_state_of_all_rows(n, cut, seed):
    risk, time, event = cohort(n, seed)
    loss = torch.rand(n, generator=torch.Generator().manual_seed(seed)).double()
    whole = state_of(risk, time, event, loss)
    parts = [
        state_of(*(each[part] for each in (risk, time, event, loss)))
        for part in (slice(cut), slice(cut, None))
    ]
    merged = parts[0].merge(parts[1])
    assert torch.equal(merged.histogram, whole.histogram)
    torch.testing.assert_close(merged.losses, whole.losses)
    assert torch.equal(parts[1].merge(parts[0]).histogram, whole.histogram)


@given(n=st.integers(0, 40), seed=st.integers(0, 999), limit=st.integers(0, 6))
def test_a_state_goes_there_and_back(n, seed, limit):
    state = state_of(*cohort(n, seed)).withhold(limit).coarsened(limit)
    again = SurvivalState.from_dict(json.loads(json.dumps(state.to_dict())), N_TIMES)
    assert torch.equal(again.histogram, state.histogram)
    assert torch.equal(again.losses, state.losses)
    assert (again.withheld, again.coarse, again.compute()) == (state.withheld, state.coarse, state.compute())


@given(n=st.integers(0, 80), seed=st.integers(0, 999), limit=st.integers(2, 9))
def test_joined_cells_hold_enough_rows_and_no_row_is_lost(n, seed, limit):
    state = state_of(*cohort(n, seed)).withhold(limit)
    coarse = state.coarsened(limit)
    assert coarse.counts == state.counts
    assert torch.equal(coarse.losses, state.losses)
    assert (coarse.histogram[coarse.histogram > 0] >= limit).all()
    assert coarse.concordance_error_bound() is None


def test_curves_are_joined_by_time_and_keep_their_sums():
    risk, time, event = cohort(60, 3)
    codes = [time_code(*pair, FOLLOW_UP) for pair in zip(time.tolist(), event.tolist(), strict=True)]
    place, seen = torch.tensor(codes) // 2, torch.tensor(codes) % 2
    left = torch.stack([1 - risk, (1 - risk) ** 2], dim=1)
    state = SurvivalState.of(risk, place, seen, torch.ones(60), N_TIMES, left)
    coarse = state.coarsened(4)
    rows = coarse.curves[:, :, 0]
    assert (rows[rows > 0] >= 4).all()
    torch.testing.assert_close(coarse.curves.sum(dim=1), state.curves.sum(dim=1))
    again = SurvivalState.from_dict(json.loads(json.dumps(coarse.to_dict())), N_TIMES, 2)
    assert torch.equal(again.curves, coarse.curves)
    with pytest.raises(ValueError, match="a list of"):
        SurvivalState.from_dict(coarse.to_dict(), N_TIMES, 3)


def test_joined_cells_keep_most_of_the_order():
    state = state_of(*cohort(400, 0))
    found = [each.compute()["concordance"] for each in (state, state.coarsened(5))]
    assert found[1] == pytest.approx(found[0], abs=0.03)


def test_the_interval_is_about_the_value_and_narrows_with_rows():
    few, many = (state_of(*cohort(n, 1)) for n in (40, 400))
    widths = []
    for state in (few, many):
        low, high = state.intervals(seed=0, resamples=200)["concordance"]
        assert low < state.compute()["concordance"] < high
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 5  # the square root of 10
    assert state_of(*cohort(0, 0)).intervals(seed=0) == {"concordance": None}


def test_draws_are_scored_like_states():
    states = [state_of(*cohort(30, seed)) for seed in range(3)]
    together = concordance(torch.stack([state.histogram for state in states]))
    assert together.tolist() == pytest.approx([state.compute()["concordance"] for state in states])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bins": [64, 256]}, "other bins"),
        ({"strata": [None]}, "strata must be a list of 2"),
        ({"strata": [None, {"cells": [], "log_loss": 0.0, "curves": [[0, 1.0]]}]}, "stratum 1 has no rows"),
        (
            {"strata": [None, {"cells": [[0, 0, 0]], "log_loss": 0.0, "curves": [[0, 1.0]]}]},
            "a cell without rows",
        ),
        (
            {"strata": [None, {"cells": [[0, 5, 1], [0, 5, 1]], "log_loss": 0.0, "curves": [[0, 1.0]]}]},
            "cells do not rise",
        ),
        (
            {"strata": [None, {"cells": [[128, 0, 1]], "log_loss": 0.0, "curves": [[0, 1.0]]}]},
            "time must be a whole number",
        ),
        (
            {"strata": [None, {"cells": [[0, 256, 1]], "log_loss": 0.0, "curves": [[0, 1.0]]}]},
            "risk must be a whole number",
        ),
        (
            {"strata": [None, {"cells": [[0, 0, 1]], "log_loss": -1.0, "curves": [[0, 1.0]]}]},
            "log_loss must be a number from 0",
        ),
        (
            {"strata": [None, {"cells": [[0, 0, 1]], "log_loss": 1.0, "curves": []}]},
            "curves are of other rows",
        ),
        (
            {"strata": [None, {"cells": [[0, 0, 1]], "log_loss": 1.0, "curves": [[0, 1.0, 0.5]]}]},
            "a list of 2",
        ),
        ({"withheld": [1, 0]}, "withheld is not sorted"),
        ({"extra": 1}, "must be a table of bins, strata, withheld"),
    ],
)
def test_a_state_that_no_rows_have_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        SurvivalState.from_dict({**SurvivalState.empty(N_TIMES).to_dict(), **change}, N_TIMES)


def test_a_risk_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        state_of(torch.tensor([float("nan")]), torch.tensor([1.0]), torch.tensor([True]))
