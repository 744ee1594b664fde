import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import chisquare

from mmare.models.hiding.subsets import hide_modalities
from mmare.tasks.classification import agreement
from tests.mmare.models.examples import generator, random_presence


@given(
    patients=st.integers(1, 30),
    modalities=st.integers(1, 4),
    seed=st.integers(0, 999),
    probability=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_hiding_keeps_at_least_one_present_modality(patients, modalities, seed, probability):
    present = random_presence(patients, modalities, seed)
    left = hide_modalities(present, torch.tensor(probability[:modalities]), generator(seed))
    assert left.dtype == torch.bool
    assert not bool((left & ~present).any())
    assert bool(left.any(dim=1).all())


@given(patients=st.integers(1, 30), seed=st.integers(0, 99))
def test_nothing_is_hidden_with_probability_zero(patients, seed):
    present = random_presence(patients, 3, seed)
    assert torch.equal(hide_modalities(present, torch.zeros(3), generator(seed)), present)


def test_the_same_generator_hides_the_same_and_another_hides_others():
    present = random_presence(200, 3)
    one, again, other = (
        hide_modalities(present, torch.full((3,), 0.5), generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_subset_frequencies_match_independent_hiding():
    """Of (p, q) = (0.2, 0.7): both stay .8 * .3; the rescue of .2 * .7 is shared in halves."""
    draws = 20_000
    present = torch.ones(draws, 2, dtype=torch.bool)
    left = hide_modalities(present, torch.tensor([0.2, 0.7]), generator(5))
    code = (left[:, 0] * 2 + left[:, 1]).numpy()  # 1: second alone, 2: first alone, 3: both
    wanted = {1: 0.2 * 0.3 + 0.07, 2: 0.8 * 0.7 + 0.07, 3: 0.8 * 0.3}
    counts = [int((code == key).sum()) for key in wanted]
    assert chisquare(counts, [share * draws for share in wanted.values()]).pvalue > 1e-6


def test_a_patient_who_would_lose_all_keeps_one_at_random():
    draws = 9_000
    present = torch.tensor([True, False, True, True]).expand(draws, 4)
    left = hide_modalities(present, torch.ones(4), generator(6))
    assert bool((left.sum(dim=1) == 1).all())
    counts = left.sum(dim=0).tolist()
    assert counts[1] == 0
    assert chisquare([counts[slot] for slot in (0, 2, 3)]).pvalue > 1e-6


def test_patients_are_drawn_independently():
    left = hide_modalities(torch.ones(400, 3, dtype=torch.bool), torch.full((3,), 0.5), generator(7))
    assert len({tuple(row) for row in left.tolist()}) == 7


def logits(seed, patients=5, classes=3):
    return torch.randn(patients, classes, generator=generator(seed)) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_agreement_is_the_scaled_divergence(temperature):
    whole, subset = logits(0), logits(1)
    teacher, student = (log_softmax(each.double().numpy() / temperature, axis=1) for each in (whole, subset))
    divergence = (np.exp(teacher) * (teacher - student)).sum(axis=1).mean()
    assert agreement(whole, subset, temperature).item() == pytest.approx(
        temperature**2 * divergence, rel=1e-5
    )


@given(seed=st.integers(0, 99), shift=st.floats(-5, 5))
def test_agreement_is_zero_only_where_both_say_the_same(seed, shift):
    whole = logits(seed)
    assert agreement(whole, whole + shift, 2.0).item() == pytest.approx(0.0, abs=1e-5)
    assert agreement(whole, logits(seed + 100), 2.0).item() > 1e-3


def test_the_teacher_gets_no_gradient():
    whole, subset = logits(0).requires_grad_(), logits(1).requires_grad_()
    agreement(whole, subset, 2.0).backward()
    assert whole.grad is None
    expected = 2.0 * (subset.detach() / 2).softmax(1) - 2.0 * (whole.detach() / 2).softmax(1)
    torch.testing.assert_close(subset.grad, expected / len(subset))


def test_the_gradient_keeps_its_size_when_the_temperature_grows():
    """At high temperature it tends to the difference of centred logits over K (Hinton et al., equation 4)."""
    whole, subset = logits(0), logits(1).requires_grad_()
    agreement(whole, subset, 1e3).backward()
    centred = [each - each.mean(dim=1, keepdim=True) for each in (subset.detach(), whole)]
    torch.testing.assert_close(subset.grad, (centred[0] - centred[1]) / 3 / len(whole), rtol=0.02, atol=2e-3)
