"""What every model of the registry keeps; a new model is tested here without being asked."""

import itertools
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.training.optimizers import PhaseOptimizers
from mmare.errors import StudyError
from mmare.models.base import MultimodalModel
from mmare.models.batch import Batch
from mmare.models.blocks import exposures
from mmare.models.registry import MODELS, build_model
from mmare.study.choices import Scaling
from mmare.study.rules import PARTS
from mmare.study.specs import TrainingSpec
from mmare.wire.tensors import global_tensors, layout_of, pack, trained_tensors, unpack
from tests.mmare.models.examples import (
    FORMULAS,
    SMALL,
    a_batch,
    a_study,
    generator,
    patterns,
    random_presence,
    small_maps,
    small_options,
)
from tests.properties import examples, first_quick

WIDTHS = (32, 12, 32)  # the middle one needs an adapter
EVEN = (8, 8, 8)  # for models that take one width only
CLASSES = 3
EVERY = pytest.mark.parametrize("name", sorted(MODELS))
DRAWN = pytest.mark.parametrize("name", sorted(set(MODELS) - {"linear"}))  # which is zero at first
ROWS = pytest.mark.parametrize("pattern", patterns(3).tolist(), ids=lambda row: "".join("01"[x] for x in row))


@pytest.fixture(scope="module", autouse=True)
def _small_maps():
    with small_maps():
        yield


def study_of(name, seed=0, scalings=FORMULAS, widths=None):
    widths = widths or widths_of(name)
    options = small_options(name, **SMALL)
    return a_study(widths, classes=CLASSES, seed=seed, scalings=scalings, model=name, **options)


@cache
def widths_of(name):
    """Widths that the model takes: different ones, if it can."""
    try:
        build_model(study_of(name, widths=WIDTHS))
    except StudyError:
        return EVEN
    return WIDTHS


def model_of(name, seed=0):
    model = build_model(study_of(name, seed))
    for slot, width in enumerate(widths_of(name)):
        source = generator(slot)
        model.scaling.set_moments(
            slot, torch.randn(width, generator=source), 0.5 + torch.rand(width, generator=source)
        )
    return model


def batch_of(name, present, seed=0):
    return a_batch(widths_of(name), present, classes=CLASSES, seed=seed)


def objectives_of(model):
    """Every objective of every phase, with the optimisers of its phase; those freeze the others' blocks."""
    for phase in model.phases():
        yield from PhaseOptimizers(model, phase, TrainingSpec()).steps


def loss_of(objective, model, batch, source):
    scaled = model.scaling(batch.embedding, batch.present)
    return objective.loss(scaled, batch.present, batch.label, source)


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


def train_once(model, batch, seed):
    """Loss and gradients of a step of every objective, by its place; no gradient is a gradient of zero."""
    model.train()
    found = []
    for objective, _ in objectives_of(model):
        model.zero_grad(set_to_none=True)
        loss = loss_of(objective, model, batch, generator(seed))
        loss.backward()
        gradients = {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in model.named_parameters()
        }
        found.append((objective, loss.detach(), gradients))
    return found


def evaluate(model, batch):
    with torch.no_grad():
        return model.eval()(batch)


def same_bits(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@EVERY
def test_any_subset_of_modalities_gives_finite_logits(name):
    batch = batch_of(name, patterns(3))
    logits = evaluate(model_of(name), batch)
    assert logits.shape == (len(batch), CLASSES)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())


@EVERY
def test_a_single_modality_and_a_single_patient_are_enough(name):
    width = min(widths_of(name)[0], 16)
    model = build_model(study_of(name, widths=(width,)))
    batch = a_batch((width,), torch.ones(1, 1, dtype=torch.bool), classes=CLASSES)
    assert evaluate(model, batch).shape == (1, CLASSES)
    assert all(bool(loss.isfinite()) for _, loss, _ in train_once(model, batch, seed=0))


FILLERS = st.lists(
    st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0, 1e38, -3.0]), min_size=1, max_size=4
)


@EVERY
@examples(15)
@given(patients=st.integers(1, 10), seed=st.integers(0, 99), one=FILLERS, other=FILLERS)
def test_what_stands_in_absent_rows_changes_nothing(name, patients, seed, one, other):
    model, batch = model_of(name), batch_of(name, random_presence(patients, 3, seed), seed)
    first, second = refilled(batch, one), refilled(batch, other)
    logits = evaluate(model, first)
    assert bool(logits.isfinite().all())
    assert torch.equal(logits, evaluate(model, second))
    steps = zip(train_once(model, first, seed), train_once(model, second, seed), strict=True)
    for (_, loss, gradients), (_, again, gradients_again) in steps:
        assert bool(loss.isfinite())
        assert torch.equal(loss, again)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
        assert same_bits(gradients, gradients_again)


@EVERY
@examples(10)
@given(patients=st.integers(1, 10), seed=st.integers(0, 99))
def test_noise_in_absent_slots_changes_no_step(name, patients, seed):
    """Training adds its noise after scaling, to whole rows: absent slots then hold numbers."""
    model, present = model_of(name).train(), random_presence(patients, 3, seed)
    batch = batch_of(name, present, seed)
    there = torch.repeat_interleave(present, torch.tensor(widths_of(name)), dim=1)  # (B, W)
    scaled = model.scaling(batch.embedding, present)
    noisy = torch.where(there, scaled, torch.randn(scaled.shape, generator=generator(seed)))
    for objective, _ in objectives_of(model):
        found = []
        for inputs in (scaled, noisy):
            model.zero_grad(set_to_none=True)
            loss = objective.loss(inputs, present, batch.label, generator(seed))
            loss.backward()
            grads = {key: v.grad for key, v in model.named_parameters() if v.grad is not None}
            found.append((loss.detach(), grads))
        assert torch.equal(found[0][0], found[1][0])
        assert same_bits(found[0][1], found[1][1])


@EVERY
@examples(25)
@given(patients=st.integers(2, 10), seed=st.integers(0, 99))
def test_a_prediction_does_not_depend_on_batch_mates(name, patients, seed):
    model, batch = model_of(name), batch_of(name, random_presence(patients, 3, seed), seed)
    together = evaluate(model, batch)
    for row in range(patients):
        own = slice(row, row + 1)
        alone = Batch(tuple(part[own] for part in batch.embedding), batch.present[own])
        torch.testing.assert_close(evaluate(model, alone), together[own], rtol=1e-4, atol=1e-5)


@EVERY
@given(order=st.permutations(range(9)), seed=st.integers(0, 99))
@examples(25)
def test_permuting_patients_permutes_predictions(name, order, seed):
    model, batch = model_of(name), batch_of(name, random_presence(9, 3, seed), seed)
    moved = Batch(tuple(part[order] for part in batch.embedding), batch.present[order])
    torch.testing.assert_close(evaluate(model, moved), evaluate(model, batch)[order], rtol=1e-4, atol=1e-5)


@DRAWN
def test_present_rows_do_change_predictions(name):
    """Else the tests above would hold of a constant."""
    model, present = model_of(name), torch.ones(6, 3, dtype=torch.bool)
    one, other = (evaluate(model, batch_of(name, present, seed)) for seed in (0, 1))
    assert not torch.allclose(one, other, atol=1e-3)


@EVERY
def test_evaluation_is_deterministic_and_draws_nothing(name):
    model, batch = model_of(name), batch_of(name, patterns(3))
    before = torch.random.get_rng_state()
    first, second = evaluate(model, batch), evaluate(model, batch)
    assert torch.equal(first, second)
    assert torch.equal(model.predict(batch), first.softmax(dim=1))
    assert torch.equal(before, torch.random.get_rng_state())


@EVERY
def test_training_draws_only_from_the_generator_given(name):
    batch = batch_of(name, random_presence(16, 3))
    before = torch.random.get_rng_state()
    first = train_once(model_of(name), batch, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    model = model_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.rand(17)  # elsewhere somebody drew from torch's own state
        second = train_once(model, batch, seed=5)
    for (_, loss, gradients), (_, again, gradients_again) in zip(first, second, strict=True):
        assert torch.equal(loss, again)
        assert same_bits(gradients, gradients_again)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", first_quick("mmare", *sorted(MODELS.keys() - {"mmare"})))
def test_the_phases_one_after_the_other_fit_a_batch(name):
    model, present = model_of(name), torch.ones(24, 3, dtype=torch.bool)
    batch, source = batch_of(name, present), generator()
    before = torch.nn.functional.cross_entropy(evaluate(model, batch), batch.label)
    training = TrainingSpec(learning_rate=1e-2, weight_decay=0.0)
    for phase in model.phases():
        optimizers = PhaseOptimizers(model, phase, training)
        model.train()
        for _ in range(60):
            for objective, optimizer in optimizers.steps:
                optimizer.zero_grad(set_to_none=True)
                loss_of(objective, model, batch, source).backward()
                optimizer.step()
    after = torch.nn.functional.cross_entropy(evaluate(model, batch), batch.label)
    assert after < before / 2


@EVERY
def test_a_step_of_an_objective_lowers_its_loss(name):
    """On the batch and with the draws that made the step."""
    model = model_of(name).train()
    batch = batch_of(name, random_presence(24, 3))
    for objective, optimizer in objectives_of(model):
        optimizer.rate = min(optimizer.rate, 1e-4)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(objective, model, batch, generator(7))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            assert loss_of(objective, model, batch, generator(7)) < loss.detach()


@DRAWN
def test_a_saved_state_predicts_the_same_bits(name):
    batch, model, other = batch_of(name, patterns(3)), model_of(name), build_model(study_of(name, seed=1))
    assert not torch.equal(evaluate(other, batch), evaluate(model, batch))
    other.load_state_dict(model.state_dict())
    assert torch.equal(evaluate(other, batch), evaluate(model, batch))


@EVERY
def test_what_the_server_sends_is_the_whole_model(name):
    batch, model, other = batch_of(name, patterns(3)), model_of(name), build_model(study_of(name, seed=1))
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
@ROWS
def test_a_block_without_exposure_is_one_without_a_gradient(name, pattern):
    """Each block is judged by the objectives that train it."""
    model, present = model_of(name), torch.tensor([pattern] * 32)
    exposed = exposures(model.blocks(), present)
    steps = train_once(model, batch_of(name, present), seed=0)
    for block in model.blocks():
        own = [gradients for objective, _, gradients in steps if block.name in objective.blocks]
        assert own, block.name
        for gradients in own:
            assert bool(gradient_of(block, gradients).any()) == (exposed[block.name] > 0), block.name


@EVERY
@ROWS
def test_a_block_without_exposure_gets_no_gradient_from_a_single_patient(name, pattern):
    model, present = model_of(name), torch.tensor([pattern])
    exposed = exposures(model.blocks(), present)
    steps = train_once(model, batch_of(name, present), seed=0)
    for block in model.blocks():
        for objective, _, gradients in steps:
            if block.name in objective.blocks and exposed[block.name] == 0:
                assert not gradient_of(block, gradients).any(), block.name


def counts_pairs(block):
    """Whether a patient alone gives the block nothing, but two alike do."""
    alone = max(int(block.exposure(row.unsqueeze(0))) for row in patterns(3))
    return alone == 0 and int(block.exposure(torch.ones(2, 3, dtype=torch.bool))) > 0


@EVERY
def test_exposures_add_up_over_any_split_of_the_samples(name):
    model, present = model_of(name), random_presence(40, 3)
    for sizes in ([1, 14, 25], [20, 20]):
        parts = [exposures(model.blocks(), part) for part in present.split(sizes)]
        whole = exposures(model.blocks(), present)
        for block in model.blocks():
            together = sum(part[block.name] for part in parts)
            if counts_pairs(block) and 1 in sizes:
                assert whole[block.name] >= together
            else:
                assert whole[block.name] == together, block.name


@EVERY
def test_the_most_that_a_sample_gives_is_what_the_block_says(name):
    for block in model_of(name).blocks():
        each = {int(block.exposure(row.expand(4, 3))) / 4 for row in patterns(3)}
        assert max(each) == block.most, block.name
        assert min(each) >= 0


@EVERY
def test_phases_train_every_block_and_only_the_last_is_open(name):
    model = model_of(name)
    phases = model.phases()
    names = {block.name for block in model.blocks()}
    assert frozenset.union(*(phase.blocks for phase in phases)) == names
    assert len({phase.name for phase in phases}) == len(phases)
    assert not any("/" in phase.name for phase in phases)  # part of the key of kept moments
    assert phases[-1].rounds is None
    assert all(phase.rounds is not None and phase.rounds > 0 for phase in phases[:-1])
    for phase in phases:
        trained = [block for objective in phase.objectives for block in objective.blocks]
        assert len(set(trained)) == len(trained)
        assert trained


@EVERY
def test_what_a_phase_does_not_train_stays_bitwise(name):
    model, batch = model_of(name), batch_of(name, random_presence(24, 3))
    training = TrainingSpec(weight_decay=0.1)
    for phase in model.phases():
        before = {key: value.clone() for key, value in trained_tensors(model).items()}
        optimizers = PhaseOptimizers(model.train(), phase, training)
        for objective, optimizer in optimizers.steps:
            optimizer.zero_grad(set_to_none=True)
            loss_of(objective, model, batch, generator()).backward()
            optimizer.step()
        blocks = [block for block in model.blocks() if block.name in phase.blocks]
        inside = {key for block in blocks for key in block.parameters}
        moved = {key for key, value in trained_tensors(model).items() if not torch.equal(value, before[key])}
        assert moved
        assert moved <= inside


@EVERY
def test_parts_that_can_stay_at_a_site_are_parameters_of_one_part_each(name):
    model = model_of(name)
    parts = [model.part(part) for part in PARTS]
    every = {key for key, _ in model.named_parameters()}
    assert frozenset.union(*parts) <= every
    assert sum(map(len, parts)) == len(frozenset.union(*parts))
    assert model.part("head")


@DRAWN
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


@pytest.mark.gpu
@EVERY
def test_a_gpu_is_near_the_processor(name):
    """Logits, and losses and gradients of every objective from the same draws.

    Without TF32, in which cuDNN computes convolutions unless told otherwise: HyperMM's logits are then 5e-4
    off.
    """
    batch = batch_of(name, random_presence(24, 3))
    moved = Batch(tuple(part.cuda() for part in batch.embedding), batch.present.cuda(), batch.label.cuda())
    near = {"rtol": 1e-3, "atol": 1e-5, "check_device": False}
    with torch.backends.cudnn.flags(allow_tf32=False):
        logits = evaluate(model_of(name).cuda(), moved)
        found = train_once(model_of(name).cuda(), moved, 5)
    torch.testing.assert_close(logits, evaluate(model_of(name), batch), **near)
    steps = zip(found, train_once(model_of(name), batch, 5), strict=True)
    for (_, loss, gradients), (_, wanted, wanted_gradients) in steps:
        torch.testing.assert_close(loss, wanted, **near)
        torch.testing.assert_close(gradients, wanted_gradients, **near)


@EVERY
def test_a_registered_model_is_one_and_its_options_have_defaults(name):
    assert issubclass(MODELS[name], MultimodalModel)
    assert isinstance(build_model(a_study((8, 8), model=name)), MODELS[name])
    MODELS[name].Options()


@EVERY
def test_a_modality_that_no_train_row_has_is_not_looked_at(name):
    model = model_of(name).eval()
    width = widths_of(name)[1]
    model.scaling.set_moments(1, torch.zeros(width), torch.zeros(width))
    whole, without = torch.tensor([[True, True, False], [False, True, True]]), torch.tensor([1, 0, 1]).bool()
    batch = batch_of(name, whole)
    hidden = Batch(batch.embedding, whole & without)
    assert torch.equal(model(batch), model(hidden))
    alone = batch_of(name, torch.tensor([[False, True, False]] * 2))
    found = model(alone)
    assert found.isfinite().all()
    assert torch.equal(found[0], found[1])  # whatever they have there
