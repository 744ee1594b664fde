"""The exclusive pattern: each site lacks a modality that another one keeps."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import StudyError
from sites.missing.masks import exclusive


@given(n_sites=st.integers(2, 9), n_modalities=st.integers(2, 6), seed=st.integers(0, 50))
def test_every_site_loses_one_and_every_modality_stays_somewhere(n_sites, n_modalities, seed):
    available = np.ones((n_sites, n_modalities), dtype=bool)
    lost = exclusive(available, available, seed)
    assert (lost.sum(axis=1) == 1).all()
    assert (available & ~lost).any(axis=0).all()
    assert np.ptp(lost.sum(axis=0)) <= 1  # as evenly as can be
    assert (lost == exclusive(available, available, seed)).all()


def test_the_seed_decides_who_loses_what():
    available = np.ones((4, 4), dtype=bool)
    assert len({exclusive(available, available, seed).tobytes() for seed in range(10)}) > 3


def test_sites_that_already_lack_one_lose_none():
    available = np.array([[True, True, True], [True, True, False], [True, True, True]])
    lost = exclusive(available, available, 0)
    assert lost.sum(axis=1).tolist() == [1, 0, 1]
    assert (available & ~lost).any(axis=0).all()


def feasible(available, spare):
    """By trying everything: is there a choice at all?"""
    options = [np.flatnonzero(row) if has.all() else [-1] for row, has in zip(spare, available, strict=True)]
    for choice in itertools.product(*options):
        left = available.copy()
        for site, slot in enumerate(choice):
            left[site, slot] &= slot < 0
        if left.any(axis=0).all():
            return True
    return False


@given(st.data())
def test_a_choice_is_found_whenever_there_is_one(data):
    shape = (data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4)))
    cells = st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    spare = np.array(data.draw(cells)).reshape(shape)
    available = np.ones(shape, dtype=bool)
    if feasible(available, spare):
        lost = exclusive(available, spare, data.draw(st.integers(0, 9)))
        assert (lost <= spare).all()
        assert (lost.sum(axis=1) == 1).all()
        assert (~lost).any(axis=0).all()
    else:
        with pytest.raises(StudyError, match="not every site can lack one"):
            exclusive(available, spare, 0)


@pytest.mark.parametrize("shape", [(1, 3), (3, 1)])
def test_one_site_or_one_modality_cannot_be_exclusive(shape):
    whole = np.ones(shape, dtype=bool)
    with pytest.raises(StudyError, match="needs at least two sites and two modalities, found"):
        exclusive(whole, whole, 0)
