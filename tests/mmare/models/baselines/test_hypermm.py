"""HyperMM against a loop over patients and pixels; its sizes, its two phases and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from mmare.models.baselines.hypermm import (
    HyperMM,
    HyperMMEmbedding,
    HyperMMEmbeddingOptions,
    HyperMMOptions,
    Pooling,
)
from mmare.models.blocks import exposures
from mmare.study.choices import Kind
from mmare.study.specs import ModalitySpec
from tests.mmare.models.examples import a_batch, generator, patterns, random_presence
from tests.properties import examples

VGG = 25088
WIDTHS = (8, 5, 8)  # the middle one needs an adapter
CLASSES = 3


@pytest.fixture(autouse=True)
def _global_state_kept():
    """Constructors draw from it."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        yield


def features(*widths, kind=Kind.FEATURES):
    return [ModalitySpec(f"m{slot}", kind, width) for slot, width in enumerate(widths)]


def small_embedding(pooling=Pooling.MEAN, dropout=0.0):
    options = HyperMMEmbeddingOptions(pooling=pooling, dropout=dropout, width=8)
    return HyperMMEmbedding(features(*WIDTHS), CLASSES, options)


class SmallMaps(HyperMM):
    """The image form on 2 channels of 2 x 2: what it computes does not depend on their number."""

    MAPS = (2, 2, 2)
    HIDDEN = 6


def small_maps(pooling=Pooling.MEAN, dropout=0.0):
    return SmallMaps(features(8, 8, 8), CLASSES, HyperMMOptions(pooling=pooling, dropout=dropout))


FORMS = pytest.mark.parametrize("make", [small_embedding, small_maps], ids=["embedding", "maps"])


def inputs(model, present, seed=0):
    """Scaled rows as a trainer gives them, with noise where nothing is; and labels."""
    batch = a_batch(model.scaling.widths, present, classes=CLASSES, seed=seed)
    scaled = model.scaling(batch.embedding, present)
    noise = torch.randn(scaled.shape, generator=generator(seed + 1))
    absent = torch.cat(
        [~present[:, [slot]].expand(-1, width) for slot, width in enumerate(model.scaling.widths)], dim=1
    )
    return torch.where(absent, noise, scaled), present, batch.label


def trainable(model, names):
    parameters = dict(model.named_parameters())
    return sum(
        parameters[key].numel() for block in model.blocks() if block.name in names for key in block.parameters
    )


def sizes(model):
    return [trainable(model, phase.blocks) for phase in model.phases()]


@pytest.mark.parametrize("slots", [1, 4, 20])
def test_published_sizes(slots):
    """The table of 20 rows is kept whatever the study, as in the repository."""
    with torch.device("meta"):
        model = HyperMM(features(*[VGG] * slots, kind=Kind.VOLUME), 2)
    assert sizes(model) == [18_625_246, 12_846_594]


def test_sizes_of_the_form_on_embeddings():
    with torch.device("meta"):
        model = HyperMMEmbedding(features(*[512] * 20), 2)
        adapted = HyperMMEmbedding(features(512, 1024), 2)
    assert sizes(model) == [6_042_334, 263_682]
    assert sizes(adapted) == [6_042_334 + 1024 * 512 + 512, 263_682]  # the adapter is of phase 1


def maps_of(model, scaled, slot):
    """``(B, C, P)`` of one modality."""
    part = scaled.split(list(model.scaling.widths), dim=1)[slot]
    if str(slot) in model.adapters.adapters:
        part = model.adapters.adapters[str(slot)](part).clamp_min(0)
    return part.unflatten(1, (model._maps[0], -1))


def phi(model, slot, maps):
    """The features of one patient ``(C, P)`` by the words of the paper."""
    net, channels = model.hypernetwork, model._maps[0]
    hidden = (net.hidden.weight @ net.rows[slot] + net.hidden.bias).clamp_min(0)
    made = net.out.weight @ hidden + net.out.bias
    weight, bias = made[: channels**2].reshape(channels, channels), made[channels**2 :]
    return weight @ maps + bias[:, None]


def two_layers(classifier, row):
    hidden = (classifier.hidden.weight @ row + classifier.hidden.bias).clamp_min(0)
    return classifier.out.weight @ hidden + classifier.out.bias


def loop_logits(model, scaled, present, pooling):
    rows = []
    for patient, there in enumerate(present.tolist()):
        found = [
            phi(model, slot, maps_of(model, scaled, slot)[patient]).flatten()
            for slot, has in enumerate(there)
            if has
        ]
        pooled = sum(found) / (len(found) if pooling is Pooling.MEAN else 1)
        rows.append(two_layers(model.head, pooled))
    return torch.stack(rows)


def loop_loss(model, scaled, present, label):
    losses = []
    for patient, slot in present.nonzero().tolist():
        maps = maps_of(model, scaled, slot)[patient]
        found = phi(model, slot, maps)
        weight = model.decoder.weight[:, :, 0, 0]  # (in, out)
        restored = weight.T @ found + model.decoder.bias[:, None]
        squared = (restored - maps.detach()).square().mean()
        losses.append(squared + cross_entropy(two_layers(model.classifier, found.flatten()), label[patient]))
    return sum(losses) / len(losses)


@FORMS
@pytest.mark.parametrize("pooling", Pooling)
@examples(10)
@given(patients=st.integers(1, 9), seed=st.integers(0, 99))
def test_logits_equal_the_loop_over_patients(make, pooling, patients, seed):
    model = make(pooling).eval()
    scaled, present, _ = inputs(model, random_presence(patients, 3, seed), seed)
    expected = loop_logits(model, scaled, present, pooling)
    torch.testing.assert_close(model.logits(scaled, present), expected, rtol=1e-4, atol=1e-4)


@FORMS
@examples(10)
@given(patients=st.integers(1, 9), seed=st.integers(0, 99))
def test_universal_loss_and_its_gradients_equal_the_loop_over_pairs(make, patients, seed):
    model = make().train()
    scaled, present, label = inputs(model, random_presence(patients, 3, seed), seed)
    found = model.universal_loss(scaled, present, label, generator())
    expected = loop_loss(model, scaled, present, label)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    leaves = list(model.parameters())
    gradients = [torch.autograd.grad(loss, leaves, materialize_grads=True) for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_mean_and_sum_agree_for_one_modality_only():
    mean, total = small_maps(Pooling.MEAN).eval(), small_maps(Pooling.SUM).eval()
    total.load_state_dict(mean.state_dict())
    scaled, present, _ = inputs(mean, patterns(3))
    same = torch.isclose(mean.logits(scaled, present), total.logits(scaled, present), atol=1e-6).all(dim=1)
    assert same.tolist() == (present.sum(dim=1) == 1).tolist()


def gradients_of(model, objective, *batch):
    model.train().zero_grad(set_to_none=True)
    objective.loss(*batch, generator(1)).backward()
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in model.named_parameters()
    }


@FORMS
@pytest.mark.parametrize("pattern", patterns(3).tolist(), ids=lambda row: "".join(str(int(x)) for x in row))
def test_in_its_phase_a_block_has_a_gradient_exactly_where_it_has_exposure(make, pattern):
    model, present = make(dropout=0.5), torch.tensor([pattern] * 8)
    batch, exposed = inputs(model, present), exposures(model.blocks(), present)
    for phase in model.phases():
        (objective,) = phase.objectives
        gradients = gradients_of(model, objective, *batch)
        for block in model.blocks():
            moved = any(bool(gradients[key].any()) for key in block.parameters)
            assert moved == (block.name in phase.blocks and exposed[block.name] > 0), (phase.name, block.name)
    assert all(0 <= exposed[block.name] <= block.most * len(present) for block in model.blocks())
    assert exposed["decoder"] == 8 * sum(pattern)


@FORMS
def test_phases_train_every_block_once_the_universal_one_first(make):
    model = make()
    universal, fusion = model.phases()
    assert (universal.name, universal.rounds) == ("universal", 50)
    assert (fusion.name, fusion.rounds, fusion.blocks) == ("fusion", None, {"rho"})
    assert sorted([*universal.blocks, *fusion.blocks]) == sorted(block.name for block in model.blocks())
    elements = [name for block in model.blocks() for name in block.parameters]
    assert sorted(elements) == sorted(name for name, _ in model.named_parameters())


@FORMS
def test_each_phase_lowers_its_own_loss_and_rho_fits_the_batch_in_the_end(make):
    model = make()
    batch = inputs(model, random_presence(24, 3))
    scaled, present, label = batch
    before = cross_entropy(model.eval().logits(scaled, present), label)
    parameters = dict(model.train().named_parameters())
    for phase in model.phases():
        own = [parameters[key] for b in model.blocks() if b.name in phase.blocks for key in b.parameters]
        optimizer, losses = torch.optim.Adam(own, lr=1e-2), []
        for _ in range(50):
            optimizer.zero_grad()
            loss = phase.objectives[0].loss(*batch, generator())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 2, phase.name
    assert cross_entropy(model.eval().logits(scaled, present), label) < before / 2


def test_generated_weights_are_made_once_per_modality_that_is_there(monkeypatch):
    model, calls = small_maps().eval(), []
    real = type(model.hypernetwork).forward

    def counted(self, slot):
        calls.append(slot)
        return real(self, slot)

    monkeypatch.setattr(type(model.hypernetwork), "forward", counted)
    scaled, present, _ = inputs(model, torch.tensor([[True, False, True]] * 7))
    model.logits(scaled, present)
    assert calls == [0, 2]


def test_dropout_is_drawn_from_the_generator_and_only_while_training():
    model = small_maps(dropout=0.5)
    scaled, present, _ = inputs(model, patterns(3))
    one, again, other = (model.logits(scaled, present, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="pass one"):
        model.logits(scaled, present)
    model.eval()
    assert torch.equal(model.logits(scaled, present), model.logits(scaled, present, generator(3)))


def test_inputs_get_gradients_in_evaluation_but_the_extractor_none_in_training():
    model = small_maps()
    scaled, present, label = inputs(model, patterns(3))
    leaf = scaled.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.eval().logits(leaf, present).sum(), leaf)
    assert (gradient.unflatten(1, (3, 8)).abs().sum(dim=2) > 0).tolist() == present.tolist()
    model.train()
    cross_entropy(model.logits(scaled, present, generator()), label).backward()
    moved = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert moved == {"head"}


def test_the_target_of_the_decoder_is_a_constant():
    """Else an adapter gets a better loss by giving nothing."""
    model = small_embedding()
    scaled, present, label = inputs(model, torch.tensor([[False, True, False]] * 4))
    with torch.no_grad():
        for module in (model.hypernetwork.out, model.decoder, model.classifier.hidden):
            module.weight.zero_()  # no other way from the adapter to the loss is left
            module.bias.zero_()
    model.universal_loss(scaled, present, label, generator()).backward()
    assert not model.adapters.adapters["1"].weight.grad.any()


@pytest.mark.parametrize(
    "modality",
    [
        pytest.param(ModalitySpec("wsi", Kind.FEATURES, 1024), id="width"),
        pytest.param(ModalitySpec("wsi", Kind.TEXT, VGG, encoder="hashing-text"), id="text"),
    ],
)
def test_a_study_without_maps_is_referred_to_the_embedding_form(modality):
    with pytest.raises(ValueError, match=rf"modality wsi of {modality.kind} .* hypermm-embedding") as refused:
        HyperMM([*features(VGG), modality], 2)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"phase_rounds": 0}, "phase_rounds must be at least 1, found 0"),
        ({"dropout": 1.0}, r"dropout must be .* found 1\.0"),
        ({"width": 0}, "width must be positive, found 0"),
    ],
)
def test_options_out_of_range_are_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        HyperMMEmbedding(features(8), 2, replace(HyperMMEmbeddingOptions(width=8), **change))


def test_more_modalities_than_identifiers_are_refused():
    with pytest.raises(ValueError, match="at most 20 modalities, found 21"):
        HyperMMEmbedding(features(*[4] * 21), 2, HyperMMEmbeddingOptions(width=4))


def test_maps_are_read_channel_by_channel():
    """25,088 numbers are 512 channels of 7 x 7, as the encoder flattens them: one pixel moves one pixel."""
    model = HyperMM(features(VGG), 2).eval()
    slot, place = 0, 100 * 49 + 23
    with torch.inference_mode():
        nothing = model._features(slot, torch.zeros(1, *HyperMM.MAPS))
        (_, _, maps) = next(model._each(torch.eye(1, VGG).roll(place, 1), torch.ones(1, 1, dtype=torch.bool)))
        moved = (model._features(slot, maps) - nothing)[0].abs().sum(dim=0).flatten()  # (49,)
    assert moved.nonzero().flatten().tolist() == [23]
    assert math.prod(HyperMM.MAPS) == VGG
