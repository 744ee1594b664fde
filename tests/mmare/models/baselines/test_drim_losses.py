"""Auxiliary losses against loops over pairs and at values that are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from mmare.models.baselines.drim_losses import (
    independence_discrimination,
    independence_fooling,
    same_patient_contrastive,
)
from tests.mmare.models.examples import generator, random_presence
from tests.properties import examples

WIDTH = 5


def embeddings(present, seed=0):
    """Of length 1 where present, NaN elsewhere."""
    values = torch.randn(*present.shape, WIDTH, generator=generator(seed), dtype=torch.float64)
    return torch.where(present.unsqueeze(-1), functional.normalize(values, dim=-1), torch.nan)


def contrastive_loop(embedding, present, temperature, over_missing):
    """One anchor and one positive after the other."""
    known = [
        (patient, slot)
        for patient, row in enumerate(present.tolist())
        for slot, there in enumerate(row)
        if there
    ]

    def alike(one, other):
        return embedding[one] @ embedding[other] / temperature

    losses = []
    for anchor in known:
        others = [key for key in known if key != anchor]
        positives = [key for key in others if key[0] == anchor[0]]
        if positives:
            total = sum(alike(anchor, key).exp() for key in others)
            terms = [-(alike(anchor, key).exp() / total).log() for key in positives]
            losses.append(sum(terms) / len(terms))
    count = present.numel() if over_missing else len(losses)
    return sum(losses) / count if losses else embedding.new_zeros(())


@examples(40)
@given(
    patients=st.integers(1, 6),
    modalities=st.integers(1, 4),
    temperature=st.sampled_from([0.07, 0.5, 2.0]),
    over_missing=st.booleans(),
    seed=st.integers(0, 99),
)
def test_contrastive_equals_the_loop_over_anchors(patients, modalities, temperature, over_missing, seed):
    present = random_presence(patients, modalities, seed)
    embedding = embeddings(present, seed)
    torch.testing.assert_close(
        same_patient_contrastive(embedding, present, temperature, over_missing=over_missing),
        contrastive_loop(embedding, present, temperature, over_missing),
    )


@pytest.mark.parametrize("over_missing", [True, False])
def test_gradients_of_contrastive_equal_those_of_the_loop(over_missing):
    present = random_presence(7, 3, seed=1)
    gradients = []
    for loss in (
        lambda leaf: same_patient_contrastive(leaf, present, 0.07, over_missing=over_missing),
        lambda leaf: contrastive_loop(leaf, present, 0.07, over_missing),
    ):
        leaf = embeddings(present).requires_grad_()
        gradients.append(torch.autograd.grad(loss(leaf), leaf)[0])
    torch.testing.assert_close(*gradients)
    assert not gradients[0][~present].any()
    assert bool(gradients[0].any())


@pytest.mark.parametrize("present", [torch.ones(1, 1, dtype=torch.bool), torch.eye(3, dtype=torch.bool)])
@pytest.mark.parametrize("over_missing", [True, False])
def test_contrastive_is_zero_without_a_pair_of_one_patient(present, over_missing):
    leaf = embeddings(present).requires_grad_()
    loss = same_patient_contrastive(leaf, present, 0.07, over_missing=over_missing)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, leaf)[0].any()


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_contrastive_of_embeddings_all_alike_is_the_logarithm_of_how_many_others_there_are(temperature):
    present = torch.tensor(
        [[True, True, True], [True, True, False], [False, True, True]]
    )  # seven, all anchors
    alike = torch.ones(3, 3, WIDTH, dtype=torch.float64) / math.sqrt(WIDTH)
    loss = same_patient_contrastive(alike, present, temperature, over_missing=False)
    assert loss.item() == pytest.approx(math.log(6))
    over_all = same_patient_contrastive(alike, present, temperature, over_missing=True)
    assert over_all.item() == pytest.approx(math.log(6) * 7 / 9)


def test_contrastive_of_one_complete_pair_is_zero_as_there_is_nothing_else():
    present = torch.ones(1, 2, dtype=torch.bool)
    assert same_patient_contrastive(embeddings(present), present, 0.07, over_missing=True).item() == 0


def test_contrastive_stays_exact_where_all_others_are_far_away():
    """The 1e-6 of the released code would hide them: they lie ``exp(-2 / 0.07)`` below the anchor itself."""
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    embedding = torch.stack([torch.stack([one, -one]), torch.stack([-one, -one])])
    present = torch.ones(2, 2, dtype=torch.bool)
    expected = (math.log(3) + 3 * math.log(2 + math.exp(-2 / 0.07)) + 2 / 0.07) / 4
    loss = same_patient_contrastive(embedding, present, 0.07, over_missing=True)
    torch.testing.assert_close(loss, contrastive_loop(embedding, present, 0.07, over_missing=True))
    assert loss.item() == pytest.approx(expected)


@given(order=st.permutations(range(6)), slots=st.permutations(range(3)), seed=st.integers(0, 99))
def test_order_of_patients_and_modalities_does_not_matter_to_contrastive(order, slots, seed):
    present = random_presence(6, 3, seed)
    embedding = embeddings(present, seed)
    moved = same_patient_contrastive(
        embedding[order][:, slots], present[order][:, slots], 0.07, over_missing=True
    )
    torch.testing.assert_close(moved, same_patient_contrastive(embedding, present, 0.07, over_missing=True))


def test_losses_of_independence_are_cross_entropies():
    source = generator()
    shuffled, joint = (3 * torch.randn(20, generator=source) for _ in range(2))

    def entropy(logits, target):
        return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    torch.testing.assert_close(
        independence_discrimination(shuffled, joint), entropy(shuffled, 1.0) + entropy(joint, 0.0)
    )
    torch.testing.assert_close(independence_fooling(joint), entropy(joint, 1.0))


def test_the_best_discriminator_reaches_the_jensen_shannon_divergence():
    independent, together = torch.tensor([5.0, 3.0, 2.0]) / 10, torch.tensor([1.0, 3.0, 6.0]) / 10
    logit = (independent / together).log()
    draws = [(10 * shares).round().long() for shares in (independent, together)]
    shuffled, joint = (torch.repeat_interleave(logit, count) for count in draws)
    middle = (independent + together) / 2
    divergence = sum((shares * (shares / middle).log()).sum() for shares in (independent, together)) / 2
    loss = independence_discrimination(shuffled, joint)
    assert loss.item() == pytest.approx(2 * math.log(2) - 2 * divergence.item())
    worse = independence_discrimination(shuffled + 0.1, joint + 0.1)
    assert worse > loss


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_certain_discriminators_give_finite_losses_and_gradients(size):
    logits = torch.full((3,), size, requires_grad=True)
    for loss in (independence_discrimination(logits, logits), independence_fooling(logits)):
        assert bool(loss.isfinite())
        assert bool(torch.autograd.grad(loss, logits)[0].isfinite().all())
