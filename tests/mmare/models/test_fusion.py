"""Equation 4.9 and the mean against loops over patients; the three orders of merging."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.models.fusion import MergeOrder, PairwiseFusion, masked_mean, merge_order
from tests.mmare.models import formulas
from tests.mmare.models.examples import generator, patterns, random_presence

WIDTH = 8


def fusion_of(seed=0):
    """In double, with a LayerNorm that is not the identity."""
    module = PairwiseFusion(WIDTH).double()
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) / 2)
    return module


def embeddings(present, seed=0):
    """Random where present, NaN elsewhere."""
    values = torch.randn(*present.shape, WIDTH, generator=generator(seed), dtype=torch.float64)
    return torch.where(present.unsqueeze(-1), values, torch.nan)


def loop(module, embedding, present, slots):
    weights = {f"fusion.{name}": value for name, value in module.named_parameters()}
    rows = []
    for patient, there, order in zip(embedding, present.tolist(), slots.tolist(), strict=True):
        own = [patient[slot] for slot in order if there[slot]]
        rows.append(formulas.fuse_pairwise(weights, own))
    return torch.stack(rows)


@given(st.integers(1, 5), st.integers(1, 12), st.sampled_from(MergeOrder), st.integers(0, 99))
def test_pairwise_equals_the_loop_over_patients(modalities, patients, order, seed):
    module, present = fusion_of(seed), random_presence(patients, modalities, seed)
    embedding = embeddings(present, seed)
    slots = merge_order(present, order, generator(seed))
    torch.testing.assert_close(module(embedding, present, slots), loop(module, embedding, present, slots))


@pytest.mark.parametrize("order", MergeOrder)
def test_gradients_equal_those_of_the_loop(order):
    module, present = fusion_of(), random_presence(40, 4)
    slots = merge_order(present, order, generator())
    embedding = embeddings(present)
    weight = torch.randn(len(present), WIDTH, generator=generator(1), dtype=torch.float64)
    found = []
    for fuse in (module, lambda *inputs: loop(module, *inputs)):
        leaf = embedding.clone().requires_grad_()
        loss = (weight * fuse(leaf, present, slots)).sum()
        found.append(torch.autograd.grad(loss, [*module.parameters(), leaf]))
    torch.testing.assert_close(found[0], found[1])
    assert not found[0][-1][~present].any()  # absent rows get no gradient at all


@pytest.mark.parametrize("order", MergeOrder)
def test_one_modality_is_kept_to_the_bit(order):
    present = torch.eye(4, dtype=torch.bool)
    embedding = embeddings(present)
    fused = fusion_of()(embedding, present, merge_order(present, order, generator()))
    assert torch.equal(fused, embedding[present])


def test_the_order_of_merging_matters():
    """Equation 4.9 is not permutation invariant, though the thesis (4.2.6) says so: hence a fixed order."""
    module, present = fusion_of(), torch.ones(1, 3, dtype=torch.bool)
    embedding = embeddings(present)
    fused = [module(embedding, present, torch.tensor([order])) for order in itertools.permutations(range(3))]
    for one, other in itertools.combinations(fused, 2):
        assert not torch.allclose(one, other, rtol=0.01)


def test_permuting_slots_and_order_together_changes_nothing():
    module, present = fusion_of(), patterns(3)
    embedding, slots = embeddings(present), merge_order(present, MergeOrder.FIXED, None)
    swap = torch.tensor([2, 0, 1])  # new slot s holds what slot swap[s] held
    moved = module(embedding[:, swap], present[:, swap], swap.argsort()[slots])
    torch.testing.assert_close(moved, module(embedding, present, slots))


@given(st.integers(1, 5), st.integers(1, 12), st.sampled_from(MergeOrder), st.integers(0, 99))
def test_an_order_is_a_permutation_with_the_missing_last(modalities, patients, order, seed):
    present = random_presence(patients, modalities, seed)
    slots = merge_order(present, order, generator(seed))
    assert slots.dtype == torch.int64
    assert slots.sort(dim=1).values.tolist() == [list(range(modalities))] * patients
    arranged = present.gather(1, slots).long()
    assert bool((arranged.diff(dim=1) <= 0).all())


def orders_of_complete_patients(order, patients=600, seed=0):
    slots = merge_order(torch.ones(patients, 3, dtype=torch.bool), order, generator(seed))
    return [tuple(row) for row in slots.tolist()]


def test_fixed_is_slot_order_and_needs_no_generator():
    slots = merge_order(patterns(3), MergeOrder.FIXED, None)
    for there, order in zip(patterns(3).tolist(), slots.tolist(), strict=True):
        assert order[: sum(there)] == [slot for slot in range(3) if there[slot]]


def test_batch_is_one_order_for_the_batch_and_all_orders_over_batches():
    drawn = [set(orders_of_complete_patients(MergeOrder.BATCH, 20, seed)) for seed in range(100)]
    assert all(len(orders) == 1 for orders in drawn)
    assert set.union(*drawn) == set(itertools.permutations(range(3)))


def test_batch_orders_incomplete_patients_like_the_complete_ones():
    present = patterns(4)  # the first is complete
    slots = merge_order(present, MergeOrder.BATCH, generator(3)).tolist()
    for there, order in zip(present.tolist(), slots, strict=True):
        assert order[: sum(there)] == [slot for slot in slots[0] if there[slot]]


def test_sample_draws_every_order_for_every_patient_evenly():
    drawn = orders_of_complete_patients(MergeOrder.SAMPLE)
    for order in itertools.permutations(range(3)):
        assert drawn.count(order) == pytest.approx(100, abs=40)  # 600 draws of 6: deviation 9


@pytest.mark.parametrize("order", MergeOrder)
def test_orders_draw_only_from_their_generator(order):
    present, before = patterns(4), torch.random.get_rng_state()
    assert torch.equal(merge_order(present, order, generator(1)), merge_order(present, order, generator(1)))
    assert torch.equal(before, torch.random.get_rng_state())


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 99))
def test_masked_mean_equals_the_loop_over_patients(modalities, patients, seed):
    present = random_presence(patients, modalities, seed)
    embedding = embeddings(present, seed)
    expected = torch.stack(
        [patient[there].mean(dim=0) for patient, there in zip(embedding, present, strict=True)]
    )
    torch.testing.assert_close(masked_mean(embedding, present), expected)


@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf], ids=str)
def test_masked_mean_gives_absent_rows_no_value_and_no_gradient(filler):
    present = torch.tensor([[True, False, True]])
    embedding = torch.tensor([[[1.0], [filler], [4.0]]], requires_grad=True)
    mean = masked_mean(embedding, present)
    assert mean.item() == 2.5
    (gradient,) = torch.autograd.grad(mean.sum(), embedding)
    assert gradient.flatten().tolist() == [0.5, 0.0, 0.5]


def test_layers_of_the_merge_start_kaiming_normal():
    module = PairwiseFusion(512)
    for layer in (module.first, module.second):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.in_features), rel=0.02)
