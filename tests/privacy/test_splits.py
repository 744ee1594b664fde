"""Tables without a split column: which rows train must not follow from what the coordinator chooses."""

from dataclasses import replace

import numpy as np
import pytest

from client.data.dataset import load_data
from client.data.site_secret import split_seed
from mmare.errors import SiteCode
from mmare.wire.messages import Split, Statistics, Task
from tests.privacy.hospital import STUDY, Hospital

SEEDS = 60


@pytest.fixture
def hospital(tmp_path):
    return Hospital(tmp_path / "federation", patients=40, missing=0.0, split=False)


def sums(hospital, seed):
    answer = hospital.ask(Task.STATISTICS, study=replace(STUDY, seed=seed))
    return (answer.moments[0].n, answer.moments[0].total) if isinstance(answer, Statistics) else answer


@pytest.mark.slow
def test_seeds_give_no_second_train_set(hospital):
    """48 seeds gave 48 sums over other train rows, whose coefficients the coordinator knew: every patient."""
    own = sums(hospital, STUDY.seed)
    assert own[0] == 24
    assert {sums(hospital, seed) for seed in range(100, 100 + SEEDS)} == {SiteCode.STUDY}
    hospital.approvals.record(STUDY, None, seeds=range(100, 100 + SEEDS))  # and where all are approved
    assert {sums(hospital, seed) for seed in range(100, 100 + SEEDS)} == {own}
    hospital.restart()
    assert sums(hospital, 100) == own


def test_the_seed_does_not_tell_who_trains(hospital):
    guess = load_data(hospital.site, STUDY).rows[Split.TRAIN]  # what the coordinator can compute
    truth = load_data(hospital.site, STUDY, lambda: split_seed(hospital.site.folder)).rows[Split.TRAIN]
    assert len(guess) == len(truth) == 24
    assert set(guess.tolist()) != set(truth.tolist())
    _, total = sums(hospital, STUDY.seed)
    embedding = load_data(hospital.site, STUDY).embedding[0].double().numpy()
    assert np.allclose(embedding[truth].sum(axis=0), total)
    assert not np.allclose(embedding[guess].sum(axis=0), total)
