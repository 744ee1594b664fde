"""Stratified splits: sizes, proportions, and the fallback of small strata."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import DataError
from mmare.wire.messages import Split
from sites.splits import strata, stratified_split, three_way
from tests.properties import examples

cohorts = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("0123")), min_size=2, max_size=120)


def keys_of(cohort):
    return [["".join(patient) for patient in cohort], [patient[0] for patient in cohort]]


@given(cohorts, st.sampled_from([0.1, 0.125, 1 / 7, 0.2, 0.3, 1 / 3, 0.5, 0.7, 0.9]), st.integers(0, 5))
@examples(150)
def test_a_split_has_the_right_size_and_no_empty_side(cohort, fraction, seed):
    drawn = stratified_split(keys_of(cohort), fraction, seed)
    assert drawn.shape == (len(cohort),)
    assert abs(int(drawn.sum()) - fraction * len(cohort)) <= 1
    assert 0 < drawn.sum() < len(cohort)


@given(cohorts, st.integers(0, 5))
@examples(50)
def test_each_stratum_gives_its_share(cohort, seed):
    keys = keys_of(cohort)
    drawn = stratified_split(keys, 0.2, seed)
    names = strata(keys, smallest=5)
    for name, size in Counter(names).items():
        from_it = sum(bool(taken) for taken, other in zip(drawn, names, strict=True) if other == name)
        assert abs(from_it - 0.2 * size) < 2


@given(cohorts, st.integers(1, 8))
def test_strata_are_large_enough_and_as_detailed_as_possible(cohort, smallest):
    keys = keys_of(cohort)
    names = strata(keys, smallest)
    sizes = Counter(names)
    assert all(size >= smallest for size in sizes.values()) or len(sizes) == 1
    detailed = Counter(keys[0])
    for patient, name in enumerate(names):
        if detailed[keys[0][patient]] >= smallest:
            assert name == f"0:{keys[0][patient]}"
        else:
            assert name.startswith("1:") or name == "rest" or detailed[name[2:]] >= smallest


def test_few_leftover_patients_join_the_largest_stratum():
    assert strata([["a"] * 6 + ["b"] * 5 + ["c"]], smallest=5) == ["0:a"] * 6 + ["0:b"] * 5 + ["0:a"]
    assert strata([["a"] * 5 + ["b", "c", "d"]], smallest=3) == ["0:a"] * 5 + ["rest"] * 3


def test_same_seed_same_draw_other_seed_other_draw():
    keys = [["a"] * 50 + ["b"] * 50]
    assert (stratified_split(keys, 0.2, 1) == stratified_split(keys, 0.2, 1)).all()
    assert (stratified_split(keys, 0.2, 1) != stratified_split(keys, 0.2, 2)).any()


def test_617_patients_become_431_62_124():
    keys = [["dead"] * 74 + ["alive"] * 543]
    splits = three_way(keys, seed=0)
    assert Counter(splits.tolist()) == {Split.TRAIN: 431, Split.VAL: 62, Split.TEST: 124}
    dead = Counter(splits[:74].tolist())
    assert [dead[split] for split in Split] == pytest.approx([52, 7.4, 14.8], abs=1)


@pytest.mark.parametrize("n_patients", range(1, 12))
def test_tiny_cohorts_keep_a_train_patient(n_patients):
    splits = three_way([[str(patient % 3) for patient in range(n_patients)]], 0, 0.3, 1 / 7)
    assert Split.TRAIN in splits
    assert set(splits.tolist()) <= set(Split)
    assert (splits == Split.TEST).sum() == (math.ceil(0.3 * n_patients) if n_patients > 1 else 0)


def test_a_sole_patient_is_not_drawn():
    assert not stratified_split([["a"]], 0.5, 0).any()
    assert np.array_equal(stratified_split([[]], 0.5, 0), np.zeros(0, dtype=bool))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_fractions_out_of_range_are_refused(fraction):
    with pytest.raises(DataError, match="expected a number between 0 and 1"):
        stratified_split([["a", "b"]], fraction, 0)


def test_levels_of_different_length_are_refused():
    with pytest.raises(DataError, match=r"lengths \[2, 1\]"):
        stratified_split([["a", "b"], ["a"]], 0.5, 0)
