import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.study.choices import Schedule
from mmare.study.schedule import Plateau, is_rate_factor, rate_factor
from mmare.study.specs import TrainingSpec

LOSSES = st.lists(st.none() | st.floats(1e-6, 10.0), max_size=40)


def training(schedule, rounds=10):
    return TrainingSpec(schedule=Schedule(schedule), rounds=rounds)


def reference(patience=3, factor=0.3):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience, factor=factor, eps=0.0
    )


@given(losses=LOSSES)
def test_a_plateau_is_torchs(losses):
    """A loss that is not known is one that did not fall: torch's reads infinity there."""
    optimizer, scheduler = reference()
    state = Plateau()
    for loss in losses:
        state = state.after(loss)
        scheduler.step(math.inf if loss is None else loss)
        assert state.factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


@given(losses=LOSSES, cut=st.integers(0, 40))
def test_a_plateau_goes_on_from_a_checkpoint(losses, cut):
    straight, broken = Plateau(), Plateau()
    for index, loss in enumerate(losses):
        straight = straight.after(loss)
        if index == cut:
            broken = Plateau.from_dict(json.loads(json.dumps(broken.to_dict())))
        broken = broken.after(loss)
    assert broken == straight


def test_a_plateau_starts_where_a_checkpoint_says_nothing():
    assert Plateau.from_dict({}) == Plateau()


def test_a_loss_must_fall_by_more_than_the_threshold():
    state = Plateau().after(1.0)
    assert state.after(1 - 2e-4).bad == 0
    assert state.after(1 - 0.5e-4).bad == 1


@given(rounds=st.integers(1, 200))
def test_the_cosine_is_torchs(rounds):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=rounds, eta_min=0.005)
    for number in range(1, min(rounds, 12) + 1):
        found = rate_factor(training("cosine", rounds), number, Plateau())
        assert found == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()


@given(rounds=st.integers(2, 200))
def test_the_cosine_starts_at_one_and_falls_in_every_round(rounds):
    factors = [
        rate_factor(training("cosine", rounds), number, Plateau(factor=0.1))
        for number in range(1, rounds + 1)
    ]
    assert factors[0] == 1.0
    assert all(one > other > 0.005 for one, other in pairwise(factors))


@pytest.mark.parametrize(
    ("schedule", "factor"), [("constant", 1.0), ("plateau", 0.09)], ids=["constant", "plateau"]
)
def test_only_a_plateau_reads_the_state(schedule, factor):
    state = replace(Plateau(), factor=0.09)
    assert {rate_factor(training(schedule), number, state) for number in (1, 5, 10)} == {factor}


@given(LOSSES, st.sampled_from(list(Schedule)))
def test_every_factor_of_a_run_is_one_that_a_site_expects(losses, schedule):
    """Losses are those of the models after rounds 1, 2, …: round n starts after n - 2 of them."""
    spec, state = training(schedule, rounds=len(losses) + 2), Plateau()
    for number in range(1, len(losses) + 3):
        if number > 2:
            state = state.after(losses[number - 3])
        factor = rate_factor(spec, number, state)
        assert is_rate_factor(spec, number, factor)
        assert not is_rate_factor(spec, number, factor * 1.001)
        assert not is_rate_factor(spec, number, math.nan)
