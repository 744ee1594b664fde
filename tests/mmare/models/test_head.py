import math

import pytest
import torch

from mmare.models.head import TaskHead, dropout
from tests.mmare.models.examples import generator


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.8])
def test_dropout_keeps_its_share_and_the_expectation(probability):
    n = 40_000
    values = dropout(torch.full((n,), 3.0), probability, generator())
    kept = values != 0
    tolerance = 4 * math.sqrt(probability * (1 - probability) / n)
    assert kept.double().mean().item() == pytest.approx(1 - probability, abs=tolerance)
    torch.testing.assert_close(values[kept], torch.full((int(kept.sum()),), 3.0 / (1 - probability)))
    assert values.mean().item() == pytest.approx(3.0, abs=3 * tolerance / (1 - probability))


def test_dropout_of_nothing_is_the_identity():
    values = torch.randn(7, 5, generator=generator())
    assert torch.equal(dropout(values, 0.0, generator()), values)


def test_dropout_draws_only_from_its_generator():
    values, before = torch.ones(100), torch.random.get_rng_state()
    one, same, other = (dropout(values, 0.5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def head_by_formula(head, fused):
    hidden = fused
    for layer in (head.hidden[0], head.hidden[2]):
        hidden = (hidden @ layer.weight.T + layer.bias).clamp_min(0)
    return hidden, head.out.weight, head.out.bias


def test_head_is_two_hidden_layers_of_half_and_quarter():
    head = TaskHead(16, 3, 0.3).eval()
    fused = torch.randn(5, 16, generator=generator())
    hidden, weight, bias = head_by_formula(head, fused)
    assert hidden.shape == (5, 4)
    torch.testing.assert_close(head(fused), hidden @ weight.T + bias)


def test_dropout_comes_once_after_the_second_relu_and_only_in_training():
    head = TaskHead(16, 3, 0.5).train()
    fused = torch.randn(50, 16, generator=generator())
    hidden, weight, bias = head_by_formula(head, fused)
    kept = torch.rand(hidden.shape, generator=generator(7)) >= 0.5
    torch.testing.assert_close(head(fused, generator(7)), (hidden * kept * 2) @ weight.T + bias)
    assert not torch.allclose(head(fused, generator(7)), hidden @ weight.T + bias)
    assert torch.equal(TaskHead.forward(head.eval(), fused, generator(7)), head(fused))


def test_without_dropout_training_is_evaluation():
    head = TaskHead(16, 3, 0.0)
    fused = torch.randn(5, 16, generator=generator())
    assert torch.equal(head.train()(fused), head.eval()(fused))


def test_hidden_layers_start_kaiming_normal_and_without_bias():
    head = TaskHead(512, 2, 0.3)
    for layer in (head.hidden[0], head.hidden[2]):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.in_features), rel=0.03)
        assert layer.weight.abs().max().item() > math.sqrt(6 / layer.in_features)  # not a uniform law
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("width", "probability", "words"),
    [
        pytest.param(3, 0.3, "width must be at least 4, found 3", id="width"),
        pytest.param(16, 1.0, "dropout must be at least 0 and below 1, found 1.0", id="all dropped"),
        pytest.param(16, -0.1, "dropout must be at least 0 and below 1, found -0.1", id="negative"),
        pytest.param(16, math.nan, "dropout must be at least 0 and below 1, found nan", id="nan"),
    ],
)
def test_an_invalid_head_is_refused(width, probability, words):
    with pytest.raises(ValueError, match=words):
        TaskHead(width, 2, probability)
