"""Masks: the expected rates, the intended drivers, and a modality left for every patient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from mmare.errors import StudyError
from mmare.wire.messages import Split
from sites.missing.masks import achieved_rate, amputate, loss_probability, mcar


def driven(present, scores, rate, slope, generator):
    """mar, or mnar, by what the scores are."""
    return mcar(present, loss_probability(present, scores, rate, slope), generator)


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


def test_losses_are_independent_except_for_the_repair():
    kept = mcar(np.ones((20_000, 4), dtype=bool), 0.3, np.random.default_rng(2))
    assert (~kept[:, 0] & ~kept[:, 1]).mean() == pytest.approx(0.09, abs=0.01)


def test_losses_do_not_depend_on_what_others_lack():
    present = np.ones((50, 3), dtype=bool)
    fewer = present.copy()
    fewer[7, :2] = False
    full, less = (mcar(mask, 0.5, np.random.default_rng(3)) for mask in (present, fewer))
    others = np.arange(50) != 7
    assert (full[others] == less[others]).all()


def test_rate_zero_removes_nothing_and_rates_per_cell_are_respected():
    present = np.ones((400, 2), dtype=bool)
    assert mcar(present, 0.0, np.random.default_rng(0)).all()
    kept = mcar(present, np.array([0.0, 1.0]), np.random.default_rng(0))
    assert kept.all(axis=0).tolist() == [True, False]
    assert not kept[:, 1].any()


def test_a_split_is_amputated_on_its_own_and_the_same_for_one_seed():
    present = np.ones((90, 4), dtype=bool)
    splits = np.array([split.value for split in Split] * 30, dtype="<U5")
    kept = amputate(present, splits, 0.4, seed=5).kept
    assert (kept == amputate(present, splits, 0.4, seed=5).kept).all()
    assert (kept != amputate(present, splits, 0.4, seed=6).kept).any()
    train = splits == "train"
    alone = amputate(present[train], splits[train], 0.4, seed=5).kept
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


SCORES = arrays(
    float, st.integers(1, 30), elements=st.floats(-1e6, 1e6, allow_subnormal=False) | st.just(float("nan"))
)


@given(scores=SCORES, rate=st.floats(0, 1), slope=st.floats(-100, 100), seed=st.integers(0, 99))
def test_the_mean_probability_is_the_rate(scores, rate, slope, seed):
    present = np.random.default_rng(seed).random((len(scores), 3)) < 0.7
    probability = loss_probability(present, scores, rate, slope)
    assert (probability[~present] == 0).all()
    assert ((probability >= 0) & (probability <= 1)).all()
    for slot in np.flatnonzero(present.any(axis=0)):
        assert probability[present[:, slot], slot].mean() == pytest.approx(rate, abs=1e-6)


def test_the_probability_is_a_logit_of_the_standardised_score():
    """Against scipy: the logits differ by the slope times the standardised score, and by nothing else."""
    scores = np.random.default_rng(1).normal(50, 12, size=(200, 2))
    probability = loss_probability(np.ones((200, 2), dtype=bool), scores, 0.35, 1.7)
    expected = 1.7 * (scores - scores.mean(axis=0)) / scores.std(axis=0)
    intercept = np.log(probability / (1 - probability)) - expected
    assert np.ptp(intercept, axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert probability == pytest.approx(expit(intercept[0] + expected), abs=1e-9)


def test_units_do_not_matter_and_slope_zero_is_uniform():
    present, scores = np.ones((40, 1), dtype=bool), np.arange(40.0)
    assert loss_probability(present, scores, 0.3, 2) == pytest.approx(
        loss_probability(present, 7 * scores - 90, 0.3, 2)
    )
    assert loss_probability(present, scores, 0.3, 0) == pytest.approx(np.full((40, 1), 0.3))
    assert loss_probability(present, np.full(40, 0.1), 0.3, 5) == pytest.approx(np.full((40, 1), 0.3))


def test_an_unknown_score_counts_as_the_mean():
    scores = np.array([1.0, 2.0, 3.0])
    unknown = loss_probability(np.ones((4, 1), dtype=bool), np.append(scores, np.nan), 0.3, 3)
    mean = loss_probability(np.ones((4, 1), dtype=bool), np.append(scores, 2.0), 0.3, 0)
    assert unknown[0] < unknown[1] < unknown[2]
    assert unknown[3] == pytest.approx(unknown[1])
    assert mean.mean() == pytest.approx(unknown.mean())


def test_driven_masks_are_predictable_and_mcar_is_not():
    generator = np.random.default_rng(3)
    present = np.ones((4000, 3), dtype=bool)
    covariate, shown = generator.standard_normal(4000), generator.standard_normal((4000, 3))
    masks = {
        "mar": driven(present, covariate, 0.4, 2, np.random.default_rng(0)),
        "mnar": driven(present, shown, 0.4, 2, np.random.default_rng(0)),
        "mcar": mcar(present, 0.4, np.random.default_rng(0)),
    }
    for slot in range(3):
        assert roc_auc_score(~masks["mar"][:, slot], covariate) > 0.7
        assert roc_auc_score(~masks["mnar"][:, slot], shown[:, slot]) > 0.7
        for score in (covariate, shown[:, slot]):
            assert roc_auc_score(~masks["mcar"][:, slot], score) == pytest.approx(0.5, abs=0.04)
        other = shown[:, (slot + 1) % 3]
        # Only the repair, which gives back what others lack, lets one modality say anything of another.
        assert roc_auc_score(~masks["mnar"][:, slot], other) == pytest.approx(0.5, abs=0.06)


@given(present=PRESENT, rate=st.floats(0, 1), seed=st.integers(0, 99))
def test_driven_losses_leave_every_patient_a_modality(present, rate, seed):
    scores = np.random.default_rng(seed).standard_normal(present.shape)
    for kept in (
        driven(present, scores, rate, 3, np.random.default_rng(seed)),
        driven(present, scores[:, 0], rate, -3, np.random.default_rng(seed)),
    ):
        assert not (kept & ~present).any()
        assert (kept.any(axis=1) == present.any(axis=1)).all()


def test_drawn_and_kept_are_both_returned():
    present = np.ones((60, 2), dtype=bool)
    losses = amputate(present, np.full(60, "train"), 0.9, seed=0)
    assert (losses.drawn <= losses.kept).all()
    assert not losses.drawn.any(axis=1).all()
    assert losses.kept.any(axis=1).all()
    having = losses.drawn.any(axis=1)
    assert (losses.drawn[having] == losses.kept[having]).all()
