"""Modalities taken away at random: the rate that theory gives, nobody left bare, nothing given anew."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmare.errors import StudyError
from mmare.exchange import Split
from sites.amputation import achieved_rate, amputate, mcar

PRESENT = arrays(bool, st.tuples(st.integers(0, 12), st.integers(1, 5)))


@given(present=PRESENT, rate=st.floats(0, 1), seed=st.integers(0, 99))
def test_nobody_gains_a_modality_or_loses_the_last_one(present, rate, seed):
    before = present.copy()
    kept = mcar(present, rate, np.random.default_rng(seed))
    assert not (kept & ~present).any()
    assert (kept.any(axis=1) == present.any(axis=1)).all()
    assert (present == before).all()


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.2, 0.2 - 0.2**4 / 4), (0.6, 0.6 - 0.6**4 / 4), (1.0, 0.75)]
)
def test_the_achieved_rate_is_the_expected_one(rate, expected):
    present = np.ones((20_000, 4), dtype=bool)
    kept = mcar(present, rate, np.random.default_rng(1))
    assert achieved_rate(present, kept) == pytest.approx(expected, abs=0.006)
    assert (1 - kept.mean(axis=0)) == pytest.approx([expected] * 4, abs=0.012)  # every modality alike


def test_losses_are_independent_of_one_another_but_for_the_repair():
    kept = mcar(np.ones((20_000, 4), dtype=bool), 0.3, np.random.default_rng(2))
    assert (~kept[:, 0] & ~kept[:, 1]).mean() == pytest.approx(0.09, abs=0.01)


def test_who_lacks_what_does_not_move_the_losses_of_others():
    present = np.ones((50, 3), dtype=bool)
    fewer = present.copy()
    fewer[7, :2] = False
    full, less = (mcar(mask, 0.5, np.random.default_rng(3)) for mask in (present, fewer))
    others = np.arange(50) != 7
    assert (full[others] == less[others]).all()


def test_no_rate_takes_nothing_and_a_rate_per_cell_is_kept_to():
    present = np.ones((400, 2), dtype=bool)
    assert mcar(present, 0.0, np.random.default_rng(0)).all()
    kept = mcar(present, np.array([0.0, 1.0]), np.random.default_rng(0))
    assert kept.all(axis=0).tolist() == [True, False]
    assert not kept[:, 1].any()


def test_a_split_is_amputated_on_its_own_and_the_same_for_one_seed():
    present = np.ones((90, 4), dtype=bool)
    splits = np.array([split.value for split in Split] * 30, dtype="<U5")
    kept = amputate(present, splits, 0.4, seed=5)
    assert (kept == amputate(present, splits, 0.4, seed=5)).all()
    assert (kept != amputate(present, splits, 0.4, seed=6)).any()
    train = splits == "train"
    alone = amputate(present[train], splits[train], 0.4, seed=5)
    assert (kept[train] == alone).all()
    assert (kept[train] != kept[splits == "test"]).any()
    assert present.all()


def test_nothing_to_lose_is_no_loss():
    nothing = np.zeros((2, 3), dtype=bool)
    assert achieved_rate(nothing, nothing) == 0


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(StudyError, match=r"--missing-rate is .*, expected a number between 0 and 1"):
        mcar(np.ones((2, 2), dtype=bool), rate, np.random.default_rng(0))
