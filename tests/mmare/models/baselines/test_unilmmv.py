"""UniLMMV against a loop over patients and tokens; its size, its modality dropout and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmare.models.baselines.unilmmv import UniLMMV, UniLMMVOptions
from mmare.models.blocks import exposures
from mmare.study.choices import Kind
from mmare.study.specs import ModalitySpec
from tests.mmare.models.examples import a_batch, generator, patterns, random_presence
from tests.properties import examples

WIDTHS = (8, 5, 8)  # the middle one has the adapter of another width
CLASSES = 3
HEADS = 2
SMALL = UniLMMVOptions(width=8, depth=2, heads=HEADS, dropout=0.0, modality_dropout=0.0)


@pytest.fixture(autouse=True)
def _global_state_kept():
    """Constructors draw from it."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        yield


def features(*widths):
    return [ModalitySpec(f"m{slot}", Kind.FEATURES, width) for slot, width in enumerate(widths)]


def a_model(widths=WIDTHS, **options: object):
    """In double, every parameter drawn anew, so that no LayerNorm or bias is at its trivial start."""
    model = UniLMMV(features(*widths), CLASSES, replace(SMALL, **options)).double()
    source = generator()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) / 2)
    return model


def scaled_rows(present, seed=0, widths=WIDTHS):
    """Random everywhere: absent slots hold what training noise leaves there."""
    return torch.randn(len(present), sum(widths), generator=generator(seed), dtype=torch.float64)


def poisoned(scaled, present, widths=WIDTHS):
    held = present.repeat_interleave(torch.tensor(widths), dim=1)
    return torch.where(held, scaled, torch.nan)


def trainable(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


# --- size


def test_trainable_parameters_of_mmist():
    """The thesis reports 21.0 M (reference/models.md §2.4)."""
    model = UniLMMV(features(512, 512, 1024, 512), 2)
    assert trainable(model) == 20_985_856
    assert trainable(model.adapters) == 3 * 2 * (512 * 512 + 512) + (1024 * 512 + 512)
    assert [trainable(block) for block in model.attention] == [3_146_752] * 6
    assert trainable(model.positions) + model.summary.numel() == 6 * 512
    assert trainable(model.norm) == 512
    assert trainable(model.head) == 2 * 512
    assert trainable(model.scaling) == 0


def test_only_the_adapters_have_biases():
    names = [name for name, _ in a_model().named_parameters() if name.endswith("bias")]
    assert names
    assert all(name.startswith("adapters.") for name in names)


def test_weights_start_as_those_of_gpt_2_but_the_adapters():
    model = UniLMMV(features(128, 64), 2, UniLMMVOptions(width=128, depth=3))
    for name, value in model.named_parameters():
        if name.startswith("adapters."):
            fan_in = value.shape[-1]
            gain = math.sqrt(2) if name == "adapters.0.0.weight" else 1.0
            expected = 0.0 if name.endswith("bias") else gain / math.sqrt(fan_in)
        elif "norm" in name:
            assert bool((value == 1).all())
            continue
        else:
            expected = 0.02 / math.sqrt(6) if name.endswith("_out.weight") else 0.02
        assert value.std().item() == pytest.approx(expected, rel=0.25), name


# --- against a loop over patients


def layer_norm(weight, values):
    centred = values - values.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weight


def gelu(values):
    return values * 0.5 * (1 + torch.erf(values / math.sqrt(2)))


def attend(block, tokens):
    """Attention of all tokens of one patient on each other, one head and one token after the other."""
    size = len(tokens[0]) // HEADS
    split = [(block.query_key_value.weight @ token).chunk(3) for token in tokens]
    results = []
    for query, _, _ in split:
        heads = []
        for head in range(HEADS):
            own = slice(head * size, (head + 1) * size)
            raw = torch.stack([(query[own] @ key[own]) / math.sqrt(size) for _, key, _ in split]).exp()
            heads.append(sum(w * value[own] for w, (_, _, value) in zip(raw / raw.sum(), split, strict=True)))
        results.append(block.attention_out.weight @ torch.cat(heads))
    return results


def by_patient(model, row, there):
    """Logits of one patient: only the tokens of what is there exist."""
    tokens = [model.summary + model.positions[0]]
    for slot, part in enumerate(row.split(WIDTHS)):
        if there[slot]:
            adapter = model.adapters[slot]
            if WIDTHS[slot] == len(model.summary):
                hidden = gelu(adapter[0].weight @ part + adapter[0].bias)
                token = adapter[2].weight @ hidden + adapter[2].bias
            else:
                token = adapter.weight @ part + adapter.bias
            tokens.append(token + model.positions[slot + 1])
    for block in model.attention:
        gained = attend(block, [layer_norm(block.norm_attention.weight, token) for token in tokens])
        tokens = [token + gain for token, gain in zip(tokens, gained, strict=True)]
        tokens = [
            token
            + block.mlp_out.weight @ gelu(block.mlp_in.weight @ layer_norm(block.norm_mlp.weight, token))
            for token in tokens
        ]
    return model.head.weight @ layer_norm(model.norm.weight, tokens[0])


def loop(model, scaled, present):
    rows = zip(scaled, present.tolist(), strict=True)
    return torch.stack([by_patient(model, row, there) for row, there in rows])


@examples(10)
@given(patients=st.integers(1, 8), seed=st.integers(0, 99))
def test_evaluation_equals_the_loop_over_patients(patients, seed):
    model, present = a_model(dropout=0.5, modality_dropout=0.5).eval(), random_presence(patients, 3, seed)
    scaled = scaled_rows(present, seed)
    torch.testing.assert_close(model.logits(scaled, present), loop(model, scaled, present))


def test_gradients_of_the_loss_equal_those_of_the_loop():
    model, present = a_model().train(), random_presence(12, 3)
    scaled, label = scaled_rows(present), torch.arange(12) % CLASSES
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model.loss(scaled, present, label, generator()), parameters)
    log_odds = loop(model, scaled, present).log_softmax(dim=1)
    plain = -sum(row[target] for row, target in zip(log_odds, label, strict=True)) / 12
    torch.testing.assert_close(ours, torch.autograd.grad(plain, parameters))


# --- what may not matter


def test_absent_rows_have_no_influence_on_logits_and_gradients():
    model, present = a_model(dropout=0.2, modality_dropout=0.5).train(), patterns(3)
    found = []
    for scaled in (scaled_rows(present), poisoned(scaled_rows(present), present)):
        loss = model.loss(scaled, present, torch.arange(7) % CLASSES, generator(3))
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)))
    assert all(bool(value.isfinite().all()) for value in found[1])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_prediction_does_not_depend_on_batch_mates():
    model, present = a_model().eval(), patterns(3)
    scaled = scaled_rows(present)
    together = model.logits(scaled, present)
    for row in range(len(present)):
        alone = model.logits(scaled[row : row + 1], present[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1])


def test_one_modality_and_one_patient_are_enough():
    model = a_model(widths=(5,), modality_dropout=0.5)
    scaled, present = torch.randn(1, 5, generator=generator()).double(), torch.ones(1, 1, dtype=torch.bool)
    assert model.eval().logits(scaled, present).shape == (1, CLASSES)
    assert bool(model.train().loss(scaled, present, torch.tensor([0]), generator()).isfinite())


# --- draws


def hidden_by(model, present, seed=0):
    """Per patient the subset that a training step classified, found by comparing with all subsets."""
    scaled = scaled_rows(present)
    found = model.train().logits(scaled, present, generator(seed))
    every = torch.cat([patterns(3), torch.zeros(1, 3, dtype=torch.bool)])
    model.eval()
    by_subset = torch.stack(
        [model.logits(scaled, subset.expand(len(present), 3)) for subset in every], dim=1
    )  # (B, subsets, K)
    fits = torch.isclose(by_subset, found.unsqueeze(1)).all(dim=2)
    assert fits.sum(dim=1).tolist() == [1] * len(present)
    return every[fits.long().argmax(dim=1)]


def test_modality_dropout_is_drawn_per_patient_and_leaves_one():
    present = random_presence(300, 3)
    left = hidden_by(a_model(modality_dropout=0.5), present)
    assert not bool((left & ~present).any())
    assert bool(left.any(dim=1).all())
    complete = left[present.all(dim=1)]
    assert len({tuple(row) for row in complete.tolist()}) == 7  # every subset occurs
    # Half of a patient's modalities and, of the 1 in 8 who would lose all three, one of three: 0.5 + 1/24.
    assert complete.double().mean().item() == pytest.approx(0.5 + 1 / 24, abs=0.2)


def test_modality_dropout_as_published_is_drawn_per_column_and_may_leave_none():
    model, present = a_model(modality_dropout=0.5, per_column=True), torch.ones(4, 3, dtype=torch.bool)
    drawn = [hidden_by(model, present, seed) for seed in range(40)]
    assert all(bool((left == left[0]).all()) for left in drawn)
    assert any(not left.any() for left in drawn)
    assert any(left.any() for left in drawn)


def test_draws_come_from_the_generator_alone_and_evaluation_draws_nothing():
    model, present = a_model(dropout=0.3, modality_dropout=0.5), patterns(3)
    scaled, before = scaled_rows(present), torch.random.get_rng_state()
    one, same, other = (model.train().logits(scaled, present, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert torch.equal(model.eval().logits(scaled, present), model.logits(scaled, present, generator(1)))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "options", [{"dropout": 0.1}, {"modality_dropout": 0.1}], ids=["dropout", "modality"]
)
def test_training_without_a_generator_is_refused(options):
    with pytest.raises(ValueError, match="training draws from a generator"):
        a_model(**options).train().logits(scaled_rows(patterns(3)), patterns(3))


# --- blocks


def test_every_parameter_is_in_one_block():
    model = a_model()
    names = [name for block in model.blocks() for name in block.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("modality_dropout", [0.0, 0.5])
@pytest.mark.parametrize("rows", [[0], [1], [4], [3, 5], [0, 1, 2, 3, 4, 5, 6]], ids=str)
def test_exposure_is_zero_exactly_where_the_gradient_is(rows, modality_dropout):
    """For each parameter by itself: a sample's block gives all of it a gradient, or none."""
    model = a_model(modality_dropout=modality_dropout).train()
    present = patterns(3)[rows].repeat(32, 1)
    loss = model.loss(scaled_rows(present), present, torch.arange(len(present)) % CLASSES, generator())
    gradients = dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True),
            strict=True,
        )
    )
    exposed = exposures(model.blocks(), present)
    for block in model.blocks():
        for name in block.parameters:
            assert bool(gradients[name].any()) == (exposed[block.name] > 0), name


# --- learning


def test_it_fits_a_batch_in_spite_of_what_is_hidden():
    model = UniLMMV(features(*WIDTHS), 2, replace(SMALL, width=16, modality_dropout=0.3, dropout=0.1))
    batch, source = a_batch(WIDTHS, torch.ones(16, 3, dtype=torch.bool)), generator()
    scaled = model.scaling(batch.embedding, batch.present)
    before = model.eval().loss(scaled, batch.present, batch.label, source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(scaled, batch.present, batch.label, source).backward()
        optimizer.step()
    assert model.eval().loss(scaled, batch.present, batch.label, source) < before / 2


# --- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"width": 0}, "width must be positive, found 0", id="width"),
        pytest.param({"depth": 0}, "depth must be positive, found 0", id="depth"),
        pytest.param({"heads": 3}, "width must divide by heads, found 8 and 3", id="heads"),
        pytest.param({"dropout": 1.0}, "dropout must be at least 0 and below 1, found 1.0", id="dropout"),
        pytest.param(
            {"modality_dropout": math.nan},
            "modality_dropout must be at least 0 and below 1, found nan",
            id="modality dropout",
        ),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        UniLMMV(features(*WIDTHS), 2, replace(SMALL, **options))
