"""What every model of the registry keeps; a new model is tested here without being asked."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmare.batch import Batch
from mmare.blocks import exposures
from mmare.flat import global_tensors, layout_of, pack, trained_tensors, unpack
from mmare.model import MultimodalModel
from mmare.registry import MODELS, build_model
from mmare.study import Scaling
from tests.mmare.examples import a_batch, a_study, generator, patterns, random_presence, small_options

WIDTHS = (32, 12, 32)  # the middle one needs an adapter
CLASSES = 3
EVERY = pytest.mark.parametrize("name", sorted(MODELS))


def study_of(name, seed=0, scalings=tuple(Scaling)):
    options = small_options(name, width=32)
    return a_study(WIDTHS, classes=CLASSES, seed=seed, scalings=scalings, model=name, **options)


def model_of(name, seed=0):
    model = build_model(study_of(name, seed))
    for slot, width in enumerate(WIDTHS):
        source = generator(slot)
        model.scaling.set_moments(
            slot, torch.randn(width, generator=source), 0.5 + torch.rand(width, generator=source)
        )
    return model


def batch_of(present, seed=0):
    return a_batch(WIDTHS, present, classes=CLASSES, seed=seed)


def refilled(batch, values):
    """The batch with other values in its absent rows."""
    filler = itertools.cycle(values)
    embedding = []
    for slot, part in enumerate(batch.embedding):
        changed = part.clone()
        for row in (~batch.present[:, slot]).nonzero().flatten().tolist():
            changed[row] = next(filler)
        embedding.append(changed)
    return Batch(tuple(embedding), batch.present, batch.label)


def train_once(model, batch, source):
    """Loss and gradients of one training step; a parameter without a gradient has gradient zero."""
    model.train().zero_grad(set_to_none=True)
    loss = model.loss(model.scaling(batch.embedding, batch.present), batch.present, batch.label, source)
    loss.backward()
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in model.named_parameters()
    }
    return loss.detach(), gradients


def evaluate(model, batch):
    with torch.no_grad():
        return model.eval()(batch)


def same_bits(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@EVERY
def test_any_subset_of_modalities_gives_finite_logits(name):
    batch = batch_of(patterns(3))
    logits = evaluate(model_of(name), batch)
    assert logits.shape == (len(batch), CLASSES)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())


@EVERY
def test_a_single_modality_and_a_single_patient_are_enough(name):
    options = small_options(name, width=16)
    model = build_model(a_study((16,), model=name, **options))
    batch = a_batch((16,), torch.ones(1, 1, dtype=torch.bool))
    assert evaluate(model, batch).shape == (1, 2)
    loss, _ = train_once(model, batch, generator())
    assert bool(loss.isfinite())


FILLERS = st.lists(
    st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0, 1e38, -3.0]), min_size=1, max_size=4
)


@EVERY
@settings(max_examples=25)
@given(patients=st.integers(1, 10), seed=st.integers(0, 99), one=FILLERS, other=FILLERS)
def test_what_stands_in_absent_rows_changes_nothing(name, patients, seed, one, other):
    model, batch = model_of(name), batch_of(random_presence(patients, 3, seed), seed)
    first, second = refilled(batch, one), refilled(batch, other)
    logits = evaluate(model, first)
    assert bool(logits.isfinite().all())
    assert torch.equal(logits, evaluate(model, second))
    loss, gradients = train_once(model, first, generator(seed))
    again, gradients_again = train_once(model, second, generator(seed))
    assert bool(loss.isfinite())
    assert torch.equal(loss, again)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert same_bits(gradients, gradients_again)


@EVERY
@settings(max_examples=25)
@given(patients=st.integers(2, 10), seed=st.integers(0, 99))
def test_a_prediction_does_not_depend_on_batch_mates(name, patients, seed):
    model, batch = model_of(name), batch_of(random_presence(patients, 3, seed), seed)
    together = evaluate(model, batch)
    for row in range(patients):
        own = slice(row, row + 1)
        alone = Batch(tuple(part[own] for part in batch.embedding), batch.present[own])
        torch.testing.assert_close(evaluate(model, alone), together[own], rtol=1e-4, atol=1e-5)


@EVERY
@given(order=st.permutations(range(9)), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_permuting_patients_permutes_predictions(name, order, seed):
    model, batch = model_of(name), batch_of(random_presence(9, 3, seed), seed)
    moved = Batch(tuple(part[order] for part in batch.embedding), batch.present[order])
    torch.testing.assert_close(evaluate(model, moved), evaluate(model, batch)[order], rtol=1e-4, atol=1e-5)


@EVERY
def test_present_rows_do_change_predictions(name):
    """Else the tests above would hold of a constant."""
    model, present = model_of(name), torch.ones(6, 3, dtype=torch.bool)
    one, other = (evaluate(model, batch_of(present, seed)) for seed in (0, 1))
    assert not torch.allclose(one, other, atol=1e-3)


@EVERY
def test_evaluation_is_deterministic_and_draws_nothing(name):
    model, batch = model_of(name), batch_of(patterns(3))
    before = torch.random.get_rng_state()
    first, second = evaluate(model, batch), evaluate(model, batch)
    assert torch.equal(first, second)
    assert torch.equal(model.predict(batch), first.softmax(dim=1))
    assert torch.equal(before, torch.random.get_rng_state())


@EVERY
def test_training_draws_only_from_the_generator_given(name):
    batch = batch_of(random_presence(16, 3))
    before = torch.random.get_rng_state()
    loss, gradients = train_once(model_of(name), batch, generator(5))
    assert torch.equal(before, torch.random.get_rng_state())
    model = model_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.rand(17)  # elsewhere somebody drew from torch's own state
        again, gradients_again = train_once(model, batch, generator(5))
    assert torch.equal(loss, again)
    assert same_bits(gradients, gradients_again)
    assert torch.equal(before, torch.random.get_rng_state())


@EVERY
def test_some_steps_of_adam_fit_a_batch(name):
    model, present = model_of(name), torch.ones(24, 3, dtype=torch.bool)
    batch, source = batch_of(present), generator()
    before = torch.nn.functional.cross_entropy(evaluate(model, batch), batch.label)
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(60):
        train_once(model, batch, source)
        optimizer.step()
    after = torch.nn.functional.cross_entropy(evaluate(model, batch), batch.label)
    assert after < before / 2


@EVERY
def test_a_saved_state_predicts_the_same_bits(name):
    batch, model, other = batch_of(patterns(3)), model_of(name), build_model(study_of(name, seed=1))
    assert not torch.equal(evaluate(other, batch), evaluate(model, batch))
    other.load_state_dict(model.state_dict())
    assert torch.equal(evaluate(other, batch), evaluate(model, batch))


@EVERY
def test_what_the_server_sends_is_the_whole_model(name):
    batch, model, other = batch_of(patterns(3)), model_of(name), build_model(study_of(name, seed=1))
    sent = global_tensors(model)
    other.load_state_dict(unpack(pack(sent), layout_of(sent)))
    assert torch.equal(evaluate(other, batch), evaluate(model, batch))
    assert set(trained_tensors(model)) <= set(sent)
    assert not any(key.startswith("scaling.") for key in trained_tensors(model))


@EVERY
def test_every_parameter_element_is_in_exactly_one_block(name):
    model = model_of(name)
    parameters = dict(model.named_parameters())
    times = {key: torch.zeros_like(value, dtype=torch.int64) for key, value in parameters.items()}
    for block in model.blocks():
        for key in block.parameters:
            if block.column is None:
                times[key] += 1
            else:
                times[key][:, block.column] += 1
    for key, count in times.items():
        assert bool((count == 1).all()), key
    names = [block.name for block in model.blocks()]
    assert len(set(names)) == len(names)


def gradient_of(block, gradients):
    parts = [gradients[key] for key in block.parameters]
    return torch.cat([(part if block.column is None else part[:, block.column]).flatten() for part in parts])


@EVERY
@pytest.mark.parametrize("pattern", patterns(3).tolist(), ids=lambda row: "".join(str(int(x)) for x in row))
def test_a_block_without_exposure_is_one_without_a_gradient(name, pattern):
    model, present = model_of(name), torch.tensor([pattern] * 32)
    _, gradients = train_once(model, batch_of(present), generator())
    exposed = exposures(model.blocks(), present)
    for block in model.blocks():
        moved = bool(gradient_of(block, gradients).any())
        assert moved == (exposed[block.name] > 0), block.name


@EVERY
def test_exposures_add_up_over_any_split_of_the_samples(name):
    model, present = model_of(name), random_presence(40, 3)
    parts = [exposures(model.blocks(), part) for part in present.split([1, 14, 25])]
    whole = exposures(model.blocks(), present)
    assert whole == {block: sum(part[block] for part in parts) for block in whole}


@EVERY
def test_weights_come_from_the_studys_seed_alone(name):
    before = torch.random.get_rng_state()
    one = build_model(study_of(name)).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.rand(17)
        again = build_model(study_of(name)).state_dict()
    assert same_bits(one, again)
    scaled_otherwise = build_model(study_of(name, scalings=(Scaling.L2,))).state_dict()
    assert same_bits(one, scaled_otherwise)
    other = build_model(study_of(name, seed=1)).state_dict()
    assert not same_bits(one, other)


@EVERY
def test_a_registered_model_is_one_and_its_options_have_defaults(name):
    assert issubclass(MODELS[name], MultimodalModel)
    assert isinstance(build_model(a_study((8, 8), model=name)), MODELS[name])
    MODELS[name].Options()
