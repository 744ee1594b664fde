"""Equation 4.8 against a loop over patients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.models.conditioning import MissingAwareConditioning
from tests.mmare.models import formulas
from tests.mmare.models.examples import generator, patterns, random_presence

WIDTH = 8


def conditioning_of(modalities, *, enabled=True, seed=0):
    """In double, with a LayerNorm that is not the identity."""
    module = MissingAwareConditioning(modalities, WIDTH, enabled=enabled).double()
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    return module


def named(module):
    return {f"conditioning.{name}": value for name, value in module.named_parameters()}


def loop(module, embedding, present):
    weights = named(module)
    return torch.stack(
        [
            torch.stack([formulas.condition(weights, values, there) for values in patient])
            for patient, there in zip(embedding, present.tolist(), strict=True)
        ]
    )


@given(st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_equals_the_loop_over_patients(modalities, patients, enabled, seed):
    module = conditioning_of(modalities, enabled=enabled, seed=seed)
    present = random_presence(patients, modalities, seed)
    embedding = torch.randn(patients, modalities, WIDTH, generator=generator(seed), dtype=torch.float64)
    torch.testing.assert_close(module(embedding, present), loop(module, embedding, present))


def test_gradients_equal_those_of_the_loop():
    module, present = conditioning_of(3), patterns(3)
    embedding = torch.randn(len(present), 3, WIDTH, generator=generator(), dtype=torch.float64)
    weight = torch.randn(embedding.shape, generator=generator(1), dtype=torch.float64)
    parameters = list(module.parameters())
    ours = torch.autograd.grad((weight * module(embedding, present)).sum(), parameters)
    theirs = torch.autograd.grad((weight * loop(module, embedding, present)).sum(), parameters)
    torch.testing.assert_close(ours, theirs)


def test_gamma_and_beta_are_a_twentieth_and_the_same_for_every_modality():
    module = conditioning_of(2)
    module.norm = torch.nn.Identity()
    ones = torch.ones(1, 2, WIDTH, dtype=torch.float64)
    conditioned = module(ones, torch.tensor([[False, True]]))
    missing = torch.tensor([1.0, 0.0], dtype=torch.float64)
    gamma, beta = 0.05 * module.gamma(missing), 0.05 * module.beta(missing)
    torch.testing.assert_close(conditioned, (1 + gamma + beta).expand(1, 2, WIDTH))


def test_a_complete_patient_sees_the_biases_only():
    module = conditioning_of(3)
    embedding = torch.randn(1, 3, WIDTH, generator=generator(), dtype=torch.float64)
    present = torch.ones(1, 3, dtype=torch.bool)
    before = module(embedding, present)
    with torch.no_grad():
        module.gamma.weight.add_(1.0)
        module.beta.weight.add_(1.0)
    assert torch.equal(module(embedding, present), before)
    assert not torch.allclose(module(embedding, ~present), before)


def test_off_leaves_the_layer_norm_and_nothing_else():
    module = conditioning_of(3, enabled=False)
    assert [name for name, _ in module.named_parameters()] == ["norm.weight", "norm.bias"]
    embedding = torch.randn(2, 3, WIDTH, generator=generator(), dtype=torch.float64)
    everything = torch.ones(2, 3, dtype=torch.bool)
    expected = torch.nn.functional.layer_norm(embedding, (WIDTH,), module.norm.weight, module.norm.bias)
    torch.testing.assert_close(module(embedding, everything), expected)
    assert torch.equal(module(embedding, everything), module(embedding, ~everything))


@pytest.mark.parametrize("enabled", [True, False])
def test_patients_are_independent(enabled):
    module = conditioning_of(3, enabled=enabled)
    present = patterns(3)
    embedding = torch.randn(len(present), 3, WIDTH, generator=generator(), dtype=torch.float64)
    together = module(embedding, present)
    alone = torch.cat(
        [module(embedding[row : row + 1], present[row : row + 1]) for row in range(len(present))]
    )
    torch.testing.assert_close(together, alone)
