"""AdaCoMed against loops over patients and torch's own attention; its sizes, phases, schemes and refusals."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, cross_entropy

from mmare.models.baselines.adacomed import AdaCoMed, AdaCoMedOptions, Form
from mmare.models.baselines.adacomed_parts import (
    LogitScheme,
    StreamAttention,
    StreamProjection,
    SubsetExperts,
    agreement,
    info_nce,
    large_share,
    subsets,
)
from mmare.models.blocks import exposures
from mmare.study.choices import Kind
from mmare.study.specs import ModalitySpec
from tests.mmare.models.examples import generator, patterns, random_presence
from tests.properties import examples

WIDTHS = (4, 3, 5)
CLASSES = 3
SMALL = AdaCoMedOptions(hidden=4, in_dim=6, heads=2, dropout=0.0, head_dropout=0.0)
FORMS = pytest.mark.parametrize("form", Form)
SCHEMES = pytest.mark.parametrize("scheme", LogitScheme)
TWO_SCHEMES = pytest.mark.parametrize("scheme", [LogitScheme.LEARNABLE, LogitScheme.GAUSSIAN])


@pytest.fixture(autouse=True)
def _global_state_kept():
    """Constructors draw from it."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        yield


def features(*widths, text=()):
    return [
        ModalitySpec(f"m{slot}", Kind.TEXT if slot in text else Kind.FEATURES, width)
        for slot, width in enumerate(widths)
    ]


def drawn_anew(module, seed=0):
    """In double, every parameter drawn, so that no LayerNorm or bias is at its trivial start."""
    module.double()
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) / 2)
    return module


def a_model(form=Form.GENERIC, *, widths=WIDTHS, seed=0, **options: object):
    model = drawn_anew(AdaCoMed(features(*widths), CLASSES, replace(SMALL, form=form, **options)), seed)
    if len(model.weighing) == 1:
        with torch.no_grad():
            model.weighing.fill_(0.9)
    return model


def scaled_rows(present, seed=0):
    """Random everywhere: absent slots hold what training noise leaves there."""
    return torch.randn(len(present), sum(WIDTHS), generator=generator(seed), dtype=torch.float64)


def poisoned(scaled, present):
    held = present.repeat_interleave(torch.tensor(WIDTHS), dim=1)
    return torch.where(held, scaled, torch.nan)


def labels(present):
    return torch.arange(len(present)) % CLASSES


def gradients_of(model, loss):
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return dict(zip(names, found, strict=True))


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- size

MMIST = (ModalitySpec("ct", Kind.VOLUME, 512), ModalitySpec("mri", Kind.VOLUME, 512))
MMIST = (*MMIST, ModalitySpec("wsi", Kind.FEATURES, 1024), ModalitySpec("text", Kind.TEXT, 512))


def size_of(model, blocks):
    parameters = dict(model.named_parameters())
    return sum(
        parameters[name].numel()
        for block in model.blocks()
        if block.name in blocks
        for name in block.parameters
    )


@pytest.mark.parametrize(
    ("form", "large", "small"),
    [
        # The thesis reports 18.7 M (reference/models.md §2.3).
        pytest.param(Form.TWO_STREAM, 18_643_465, 3 * 131_328 + 262_400 + 526_336, id="two-stream"),
        pytest.param(Form.GENERIC, 18_031_573, 3 * 131_328 + 262_400 + 131_584, id="generic"),
    ],
)
def test_trainable_parameters_of_mmist(form, large, small):
    model = AdaCoMed(MMIST, 2, AdaCoMedOptions(form=form))
    first, main = model.phases()
    assert size_of(model, main.blocks) == large
    assert size_of(model, first.blocks - main.blocks) == small
    assert sum(value.numel() for value in model.parameters()) == large + small


# --- parts against loops and torch


def released_attention(attention):
    """The weights put together as torch's layer on the concatenated streams."""
    width = len(attention.query) * attention.query[0].shape[1]
    layer = torch.nn.MultiheadAttention(width, attention.heads, dtype=torch.float64)
    with torch.no_grad():
        whole = [torch.cat(list(part), dim=1) for part in (attention.query, attention.key, attention.value)]
        layer.in_proj_weight.copy_(torch.cat(whole))
        layer.in_proj_bias.copy_(torch.cat([attention.query_bias, attention.key_bias, attention.value_bias]))
        layer.out_proj.weight.copy_(torch.cat(list(attention.out)))
        layer.out_proj.bias.copy_(torch.cat(list(attention.out_bias)))
    return layer


@examples(15)
@given(patients=st.integers(1, 8), streams=st.integers(1, 4), seed=st.integers(0, 99))
def test_attention_is_the_released_layer_on_the_streams_of_one_patient(patients, streams, seed):
    attention = drawn_anew(StreamAttention(streams, 4, 2, 0.5), seed).eval()
    layer, present = released_attention(attention), random_presence(patients, streams, seed)
    tokens = rand(patients, streams, 4, seed=seed)
    found = attention(tokens, present)
    for patient in range(patients):
        there = present[patient].nonzero().flatten().tolist()
        padded = torch.zeros(len(there), streams * 4, dtype=torch.float64)
        for row, stream in enumerate(there):
            padded[row, stream * 4 : stream * 4 + 4] = tokens[patient, stream]
        gained, _ = layer(padded, padded, padded)
        expected = torch.zeros(streams, 4, dtype=torch.float64)
        for row, stream in enumerate(there):
            expected[stream] = gained[row, stream * 4 : stream * 4 + 4]
        torch.testing.assert_close(found[patient], expected)


def test_attention_starts_as_torchs_layer_does():
    attention = StreamAttention(3, 40, 8, 0.1)
    parts = [*attention.query, *attention.key, *attention.value]
    limit = math.sqrt(6 / (120 + 360))  # Xavier of (3E, E)
    assert max(part.abs().max().item() for part in parts) == pytest.approx(limit, rel=0.01)
    assert not any(bias.any() for bias in (attention.query_bias, attention.key_bias, *attention.out_bias))


def test_a_token_is_one_linear_on_the_modalities_side_by_side():
    projection = drawn_anew(StreamProjection([4, 3], 5))
    parts = [rand(6, 4), rand(6, 3, seed=1)]
    weight = torch.cat(list(projection.weights), dim=1)
    torch.testing.assert_close(projection(parts), torch.cat(parts, dim=1) @ weight.T + projection.bias)


def shares_by_loop(experts, slices, there):
    """Of one patient: softmax over the experts whose streams are all there."""
    score = experts.gate.weight @ slices.flatten() + experts.gate.bias
    usable = [all(there[stream] for stream in subset) for subset in experts.subsets]
    total = sum(value.exp() for value, use in zip(score, usable, strict=True) if use)
    return [value.exp() / total if use else 0.0 for value, use in zip(score, usable, strict=True)]


@examples(15)
@given(patients=st.integers(1, 6), streams=st.integers(1, 4), seed=st.integers(0, 99))
def test_experts_are_mixed_over_those_whose_streams_are_there(patients, streams, seed):
    experts = drawn_anew(SubsetExperts(streams, 3), seed)
    present, slices = random_presence(patients, streams, seed), rand(patients, streams, 3, seed=seed)
    shares, mixed = experts.shares(slices, present), experts(slices, present)
    for patient, there in enumerate(present.tolist()):
        expected = shares_by_loop(experts, slices[patient], there)
        torch.testing.assert_close(
            shares[patient], torch.stack([torch.as_tensor(x).double() for x in expected])
        )
        total = torch.zeros(streams * 3, dtype=torch.float64)
        for share, subset, expert in zip(expected, experts.subsets, experts.experts, strict=True):
            given_to = torch.cat([slices[patient, stream] for stream in subset])
            hidden = (expert[0].weight @ given_to + expert[0].bias).clamp_min(0)
            total = total + share * (expert[2].weight @ hidden + expert[2].bias)
        torch.testing.assert_close(mixed[patient], total)


@pytest.mark.parametrize("streams", range(1, 7))
def test_there_is_an_expert_for_every_subset(streams):
    found = subsets(streams)
    assert len(found) == len(set(found)) == 2**streams - 1
    assert {tuple(sorted(subset)) for subset in found} == set(found)


@given(patients=st.integers(1, 7), seed=st.integers(0, 99), temperature=st.sampled_from([0.07, 0.5, 2.0]))
@examples(15)
def test_contrast_and_agreement_equal_the_loop(patients, seed, temperature):
    large, small = rand(patients, 5, seed=seed), rand(patients, 5, seed=seed + 100)
    losses, fractions = [], []
    for own in range(patients):
        raw = [
            math.exp(cosine_similarity(large[own], small[other], dim=0).item() / temperature)
            for other in range(patients)
        ]
        losses.append(-math.log(raw[own] / sum(raw)))
        others = sum(raw[:own] + raw[own + 1 :]) / patients
        fractions.append(raw[own] / (raw[own] + others))
    assert info_nce(large, small, temperature).item() == pytest.approx(sum(losses) / patients, abs=1e-9)
    assert agreement(large, small, temperature).item() == pytest.approx(sum(fractions) / patients)


def test_agreement_is_one_of_features_that_agree_and_half_of_equal_ones():
    assert agreement(torch.eye(8), torch.eye(8), 0.07).item() == pytest.approx(1, abs=1e-4)
    same = torch.ones(1000, 4)
    assert agreement(same, same, 0.07).item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("found", [0.0, 0.3, 0.95, 1.0])
def test_shares_of_the_large_model(found):
    """The repository's formulas and constants."""
    inverse = 1 / (found + 1e-6)
    large, small = 1 / (1 + math.exp(-found)), inverse / (inverse + 1)
    expected = {
        LogitScheme.INVERSE: large / (large + small),
        LogitScheme.GAUSSIAN: 1 - math.exp(-(found**2) / 2),
        LogitScheme.THRESHOLD: 0.5 + 0.5 * math.tanh(10 * (found - 0.95)),
    }
    for scheme, value in expected.items():
        assert large_share(scheme, torch.tensor([found]).double()).item() == pytest.approx(value, abs=1e-5)
    scores = torch.tensor([found, 0.2]).double()
    assert large_share(LogitScheme.LEARNABLE, scores).item() == pytest.approx(scores.softmax(0)[0].item())


# --- the whole against a loop over patients


def layer_norm(layer, values):
    centred = values - values.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * layer.weight + layer.bias


def head_by_hand(head, values):
    for layer in (head.first, head.second):
        direction = layer.direction / layer.direction.square().sum().sqrt()
        values = layer.length * (direction @ values) + layer.bias
        values = values.clamp_min(0) if layer is head.first else values
    return values


def by_patient(model, row, there):
    """Large feature, small feature and logits of one patient, without dropout."""
    parts = row.split(WIDTHS)
    kept = [slot for slot in range(len(WIDTHS)) if there[slot]]
    hidden = sum(
        model.small.layers[slot].weight @ parts[slot] + model.small.layers[slot].bias for slot in kept
    ) / len(kept)
    small = model.small.lift.weight @ hidden.clamp_min(0) + model.small.lift.bias
    streams = len(model.streams)
    tokens, here = torch.zeros(streams, 4, dtype=torch.float64), []
    for stream, slots in enumerate(model.streams):
        here.append(any(there[slot] for slot in slots))
        if here[-1]:
            side_by_side = [parts[slot] if there[slot] else torch.zeros_like(parts[slot]) for slot in slots]
            weight = torch.cat(list(model.adapters[stream].weights), dim=1)
            tokens[stream] = weight @ torch.cat(side_by_side) + model.adapters[stream].bias
    gained = torch.zeros(streams, 4, dtype=torch.float64)
    padded = torch.zeros(sum(here), streams, 4, dtype=torch.float64)
    for row_number, stream in enumerate(itertools.compress(range(streams), here)):
        padded[row_number, stream] = tokens[stream]
    flat = padded.flatten(1)
    attended, _ = released_attention(model.attention)(flat, flat, flat)
    for row_number, stream in enumerate(itertools.compress(range(streams), here)):
        gained[stream] = attended[row_number].view(streams, 4)[stream]
    joined = layer_norm(model.norm_attention, (tokens + gained).flatten())
    slices = joined.view(streams, 4)
    mixed = torch.zeros_like(joined)
    shares = shares_by_loop(model.experts, slices, here)
    for share, subset, expert in zip(shares, model.experts.subsets, model.experts.experts, strict=True):
        inner = expert[0].weight @ slices[list(subset)].flatten() + expert[0].bias
        mixed = mixed + share * (expert[2].weight @ inner.clamp_min(0) + expert[2].bias)
    large = model.projection.weight @ layer_norm(model.norm_experts, joined + mixed) + model.projection.bias
    return large, small, (head_by_hand(model.head, large), head_by_hand(model.head, small))


@FORMS
@SCHEMES
def test_the_whole_equals_the_loop_over_patients(form, scheme):
    model, present = a_model(form, scheme=scheme, dropout=0.5, head_dropout=0.5).eval(), patterns(3)
    scaled, share = scaled_rows(present), large_share(scheme, model.weighing)
    expected, large, small = [], [], []
    with torch.no_grad():
        for row, there in zip(scaled, present.tolist(), strict=True):
            one, other, (from_large, from_small) = by_patient(model, row, there)
            large.append(one)
            small.append(other)
            expected.append(share * from_large + (1 - share) * from_small)
        logits = torch.stack(expected)
        torch.testing.assert_close(model.logits(scaled, present), logits)
        contrast = info_nce(torch.stack(large), torch.stack(small), 0.07)
        total = cross_entropy(logits, labels(present)) + 0.5 * contrast
        torch.testing.assert_close(model.loss(scaled, present, labels(present), generator()), total)


@FORMS
def test_small_loss_is_that_of_the_small_models_own_logits(form):
    model, present = a_model(form).eval(), patterns(3)
    scaled = scaled_rows(present)
    rows = zip(scaled, present.tolist(), strict=True)
    logits = torch.stack([by_patient(model, row, there)[2][1] for row, there in rows])
    found = model.small_loss(scaled, present, labels(present), generator())
    torch.testing.assert_close(found, cross_entropy(logits, labels(present)))


def test_without_contrast_the_loss_is_cross_entropy_as_released():
    present = patterns(3)
    model = a_model(contrastive_weight=0.0)
    scaled, label = scaled_rows(present), labels(present)
    expected = cross_entropy(model.logits(scaled, present), label)
    torch.testing.assert_close(model.loss(scaled, present, label, generator()), expected)


# --- streams


def test_text_is_what_the_study_says_or_the_last_modality():
    two = replace(SMALL, form=Form.TWO_STREAM)
    said = AdaCoMed(features(4, 3, 5, text=(1,)), 2, two)
    unsaid = AdaCoMed(features(4, 3, 5), 2, two)
    assert said.stream_names == unsaid.stream_names == ("imaging", "text")
    assert said.streams == ((0, 2), (1,))
    assert unsaid.streams == ((0, 1), (2,))
    assert AdaCoMed(features(4, 3, 5), 2, SMALL).streams == ((0,), (1,), (2,))


# --- what may not matter


@FORMS
@TWO_SCHEMES
def test_absent_rows_have_no_influence_on_losses_and_gradients(form, scheme):
    model, present = a_model(form, scheme=scheme, dropout=0.1, head_dropout=0.3).train(), patterns(3)
    clean, dirty = scaled_rows(present), poisoned(scaled_rows(present), present)
    for phase in model.phases():
        for objective in phase.objectives:
            one, other = (objective.loss(x, present, labels(present), generator(3)) for x in (clean, dirty))
            assert torch.equal(one, other)
            first, second = gradients_of(model, one), gradients_of(model, other)
            assert all(torch.equal(first[name], second[name]) for name in first)
            assert all(bool(value.isfinite().all()) for value in first.values())


@FORMS
@TWO_SCHEMES
def test_a_prediction_does_not_depend_on_batch_mates(form, scheme):
    model, present = a_model(form, scheme=scheme).eval(), patterns(3)
    scaled = scaled_rows(present)
    together = model.logits(scaled, present)
    for row in range(len(present)):
        alone = model.logits(scaled[row : row + 1], present[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1])


@TWO_SCHEMES
def test_one_modality_and_one_patient_are_enough(scheme):
    model, present = a_model(widths=(5,), scheme=scheme), torch.ones(1, 1, dtype=torch.bool)
    row = rand(1, 5)
    assert model.eval().logits(row, present).shape == (1, CLASSES)
    for phase in model.train().phases():
        for objective in phase.objectives:
            assert bool(objective.loss(row, present, torch.tensor([0]), generator()).isfinite())


def test_draws_come_from_the_generator_alone_and_evaluation_draws_nothing():
    model, present = a_model(dropout=0.3, head_dropout=0.5), patterns(3)
    scaled, before = scaled_rows(present), torch.random.get_rng_state()
    one, same, other = (model.train().logits(scaled, present, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    with pytest.raises(ValueError, match="training draws from a generator"):
        model.logits(scaled, present)
    assert torch.equal(model.eval().logits(scaled, present), model.logits(scaled, present, generator(1)))
    assert torch.equal(before, torch.random.get_rng_state())


# --- phases and blocks


@FORMS
@TWO_SCHEMES
def test_every_parameter_is_in_one_block_and_every_block_is_trained_once_a_phase(form, scheme):
    model = a_model(form, scheme=scheme, small_rounds=7)
    names = [name for block in model.blocks() for name in block.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    small, large = model.phases()
    assert (small.name, small.rounds, large.name, large.rounds) == ("small", 7, "large", None)
    assert small.blocks & large.blocks == {"head"}
    assert small.blocks | large.blocks == {block.name for block in model.blocks()}
    trained = [name for objective in large.objectives for name in objective.blocks]
    assert len(trained) == len(set(trained))


@FORMS
@TWO_SCHEMES
@pytest.mark.parametrize("rows", [[0], [1], [3], [5], [6], [3, 5], [0, 1, 2, 3, 4, 5, 6]], ids=str)
def test_exposure_is_zero_exactly_where_the_gradient_is(form, scheme, rows):
    """Each parameter by itself, under the objective that trains it; it has none under the others."""
    model = a_model(form, scheme=scheme).train()
    present = patterns(3)[rows].repeat(8, 1)
    exposed = exposures(model.blocks(), present)
    for objective in (part for phase in model.phases() for part in phase.objectives):
        loss = objective.loss(scaled_rows(present), present, labels(present), generator())
        gradients = gradients_of(model, loss)
        for block in model.blocks():
            for name in block.parameters:
                if name == "attention.key_bias":  # shifts all scores alike: its gradient is rounding
                    assert gradients[name].abs().max() < 1e-12
                    continue
                expected = block.name in objective.blocks and exposed[block.name] > 0
                assert bool(gradients[name].any()) == expected, name


@pytest.mark.slow
def test_running_agreement_follows_that_of_the_batches():
    """SGD with rate 0.1 on the objective is a running mean of what batches show."""
    model, present = a_model(scheme=LogitScheme.GAUSSIAN).train(), patterns(3)
    objective = model.phases()[1].objectives[1]
    assert dict(objective.training) == {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    optimizer, expected = torch.optim.SGD([model.weighing], lr=0.1), 0.9
    for seed in range(5):
        scaled = scaled_rows(present, seed)
        large, small = model._features(scaled, present, generator())
        expected += 0.1 * (agreement(large, small, 0.07).item() - expected)
        optimizer.zero_grad()
        objective.loss(scaled, present, labels(present), generator()).backward()
        optimizer.step()
        assert model.weighing.item() == pytest.approx(expected)
    assert expected != pytest.approx(0.9, abs=0.01)


# --- learning


@FORMS
def test_both_phases_fit_a_batch(form):
    options = AdaCoMedOptions(form=form, hidden=8, in_dim=16, heads=2, small_rounds=20)
    model = AdaCoMed(features(*WIDTHS), 2, options)
    present, source = random_presence(24, 3), generator()
    scaled, label = scaled_rows(present).float(), torch.arange(24) % 2
    frozen = None
    for phase in model.phases():
        objective = phase.objectives[0]
        parameters = dict(model.named_parameters())
        trained = [
            parameters[name]
            for block in model.blocks()
            if block.name in objective.blocks
            for name in block.parameters
        ]
        optimizer = torch.optim.Adam(trained, lr=1e-2)
        before = objective.loss(scaled, present, label, source).item()
        for _ in range(50):
            optimizer.zero_grad()
            objective.loss(scaled, present, label, source).backward()
            optimizer.step()
        assert objective.loss(scaled, present, label, source).item() < before / 2
        kept = {name: value.detach().clone() for name, value in model.small.named_parameters()}
        assert frozen is None or all(torch.equal(kept[name], frozen[name]) for name in kept)
        frozen = kept
    assert cross_entropy(model.eval().logits(scaled, present), label) < 0.2


# --- refusals


@pytest.mark.parametrize(
    ("widths", "options", "words"),
    [
        pytest.param(
            (4,) * 7, {}, "one expert per subset, so it takes at most 6 modalities, found 7", id="7"
        ),
        pytest.param((4,), {"form": Form.TWO_STREAM}, "needs a modality beside text", id="one stream"),
        pytest.param(WIDTHS, {"hidden": 0}, "hidden must be positive, found 0", id="hidden"),
        pytest.param(WIDTHS, {"in_dim": -1}, "in_dim must be positive, found -1", id="in_dim"),
        pytest.param(WIDTHS, {"small_rounds": 0}, "small_rounds must be positive, found 0", id="rounds"),
        pytest.param(WIDTHS, {"hidden": 5}, "must divide by heads, found 5, 2", id="heads"),
        pytest.param(WIDTHS, {"temperature": 0.0}, "temperature must be positive", id="temperature"),
        pytest.param(WIDTHS, {"contrastive_weight": -0.1}, "contrastive_weight not negative", id="weight"),
        pytest.param(WIDTHS, {"dropout": 1.0}, "dropout must be at least 0 and below 1", id="dropout"),
        pytest.param(WIDTHS, {"head_dropout": math.nan}, "head_dropout must be at least 0", id="head"),
    ],
)
def test_invalid_studies_and_options_are_refused(widths, options, words):
    with pytest.raises(ValueError, match=words):
        AdaCoMed(features(*widths), 2, replace(SMALL, **options))


def test_a_study_of_texts_alone_has_no_imaging_stream():
    with pytest.raises(ValueError, match="needs a modality beside text"):
        AdaCoMed(features(4, 3, text=(0, 1)), 2, replace(SMALL, form=Form.TWO_STREAM))
