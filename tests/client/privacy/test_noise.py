"""Noise that is Gaussian to its tails, the same only where all is the same."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import kstest, norm

from client.privacy.noise import Noise, noise_source
from mmare.wire.messages import Request, Task
from tests.federations import tiny_study

MANY = 2_000_000
TENSORS = {"w": torch.arange(3.0)}


def test_normal_numbers_are_normal_to_their_tails():
    found = Noise(b"secret", "normal").normal(MANY)
    assert found.dtype == torch.float32
    assert kstest(found.numpy(), "norm").pvalue > 1e-3
    for limit in (1.0, 2.5, 2.5758, 2.65, 3.5, 4.5):  # on both sides of where the tail is drawn apart
        expected = MANY * norm.sf(limit)
        for side in (found, -found):
            assert abs(int((side > limit).sum()) - expected) < 5 * expected**0.5


def test_uniform_numbers_are_uniform():
    found = Noise(b"secret", "uniform").uniform(MANY)
    assert kstest(found.numpy(), "uniform").pvalue > 1e-3
    assert 0 < found.min() < found.max() < 1


def test_a_stream_goes_on():
    stream = Noise(b"secret", "on")
    first, second = stream.normal(1000), stream.normal(1000)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.15
    assert len(stream.normal(0)) == len(stream.uniform(0)) == 0


REQUEST = Request(Task.TRAIN, "run", {}, round=3)


def drawn(secret=b"secret", site="ash", request=REQUEST, seed=0, tensors=TENSORS, what="train"):
    study = replace(tiny_study(), seed=seed)
    source = noise_source(lambda: secret, site, request, study, [tensors])
    return source(what).normal(4).tolist()


@pytest.mark.parametrize(
    "other",
    [
        {"secret": b"another"},
        {"site": "birch"},
        {"seed": 1},
        {"request": replace(REQUEST, round=4)},
        {"request": replace(REQUEST, task=Task.EVALUATE)},
        {"request": replace(REQUEST, run="again")},
        {"request": replace(REQUEST, final=True)},
        {"tensors": {"w": torch.tensor([0.0, 1.0, 2.0000002])}},
        {"tensors": {"v": TENSORS["w"]}},
        {"what": "val"},
    ],
    ids=str,
)
def test_another_answer_has_other_noise(other):
    assert drawn(**other) != drawn()
    assert drawn() == drawn()


def test_in_a_simulation_the_seed_alone_decides():
    assert drawn(b"", request=replace(REQUEST, run="again")) == drawn(b"")
