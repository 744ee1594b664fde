"""DRIM against loops over patients; its counts; two objectives that do not touch each other's parameters."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from mmare.models.baselines.drim import DRIM, DRIMOptions, Size, samples_in_pairs
from mmare.models.baselines.drim_parts import MaskedAttentionFusion, SoftmaxOne, attention_weights
from mmare.models.blocks import exposures
from mmare.study.choices import Kind
from mmare.study.specs import ModalitySpec
from tests.mmare.models.baselines.test_drim_losses import contrastive_loop
from tests.mmare.models.examples import generator, patterns, random_presence
from tests.properties import examples

MMIST = {"ct": 512, "mri": 512, "wsi": 1024, "clinical": 512}
WIDTHS = {"ct": 6, "text": 4, "wsi": 9}
SMALL = {"width": 8, "hidden": 7, "heads": 2, "head_width": 3, "feedforward": 5}


def model_of(widths=WIDTHS, seed=0, classes=3, **options: object):
    modalities = [ModalitySpec(name, Kind.FEATURES, width) for name, width in widths.items()]
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        return DRIM(modalities, classes, DRIMOptions(**{**SMALL, **options}))


def exact(model):
    """In double, with normalisations that are not the identity."""
    model.double()
    source = generator(9)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.add_(torch.randn(value.shape, generator=source) / 3)
    return model


def rows_of(model, present, seed=0, filler=math.nan):
    """Scaled rows in the model's precision, the filler where absent."""
    source = generator(seed)
    parts = [
        torch.where(
            present[:, slot : slot + 1],
            torch.randn(len(present), width, generator=source, dtype=torch.float64),
            filler,
        )
        for slot, width in enumerate(model.scaling.widths)
    ]
    return torch.cat(parts, dim=1).to(model.head.weight)


def labels_of(present, classes=3, seed=0):
    return torch.randint(classes, (len(present),), generator=generator(seed))


def gradients(model, loss):
    """Of every parameter; nothing where it is no part of the loss."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters()}


# --- slow references, one patient after the other ---


def linear(weights, name, values):
    return weights[f"{name}.weight"] @ values + weights[f"{name}.bias"]


def layer_norm(weights, name, values):
    centred = values - values.mean()
    spread = (centred.square().mean() + 1e-5).sqrt()
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax_loop(scores, rule):
    if rule is SoftmaxOne.RELEASED:
        scores = [score - max(scores) for score in scores]
    powers = [score.exp() for score in scores]
    total = sum(powers) + (0 if rule is SoftmaxOne.OFF else 1)
    return [power / total for power in powers]


def fusion_loop(weights, name, tokens, heads, head_width, rule):
    """All tokens are queries, as in the released code; only the first output is used."""
    tokens = [weights[f"{name}.token"], *tokens]
    normed = [layer_norm(weights, f"{name}.attention_norm", token) for token in tokens]
    projected = [weights[f"{name}.query_key_value.weight"] @ token for token in normed]
    inner = heads * head_width
    outputs = []
    for asking in projected:
        seen = []
        for head in range(heads):
            own = slice(head * head_width, (head + 1) * head_width)
            query = asking[:inner][own]
            scores = [query @ asked[inner : 2 * inner][own] / math.sqrt(head_width) for asked in projected]
            shares = softmax_loop(scores, rule)
            seen.append(
                sum(share * asked[2 * inner :][own] for share, asked in zip(shares, projected, strict=True))
            )
        outputs.append(linear(weights, f"{name}.out", torch.cat(seen)))
    first, *_ = [token + output for token, output in zip(tokens, outputs, strict=True)]
    hidden = functional.gelu(
        linear(weights, f"{name}.expand", layer_norm(weights, f"{name}.feedforward_norm", first))
    )
    return layer_norm(weights, f"{name}.norm", first + linear(weights, f"{name}.contract", hidden))


def encode_loop(model, rows, present, kind):
    """Embeddings ``(B, M, D)``, NaN where absent."""
    weights = dict(model.named_parameters())
    result = []
    for parts, there in zip(
        zip(*torch.split(rows, list(model.scaling.widths), dim=1), strict=True), present.tolist(), strict=True
    ):
        found = []
        for slot, part in enumerate(parts):
            if there[slot]:
                hidden = functional.gelu(linear(weights, f"{kind}.{slot}.first", part))
                value = linear(weights, f"{kind}.{slot}.second", hidden)
                found.append(value / value.square().sum().sqrt())
            else:
                found.append(torch.full_like(model.head.weight[0], math.nan))
        result.append(torch.stack(found))
    return torch.stack(result)


def logits_loop(model, rows, present):
    weights, options = dict(model.named_parameters()), model.options
    sizes = (options.heads, options.head_width, options.softmax_one)
    shared, unique = (encode_loop(model, rows, present, f"{kind}_encoders") for kind in ("shared", "unique"))
    result = []
    for own, alone, there in zip(shared, unique, present, strict=True):
        common = fusion_loop(weights, "shared_fusion", list(own[there]), *sizes)
        fused = fusion_loop(weights, "unique_fusion", [*alone[there], common], *sizes)
        result.append(linear(weights, "head", fused))
    return torch.stack(result)


def judge_loop(model, slot, shared, unique):
    """Probability that one pair is of two patients."""
    weights = dict(model.named_parameters())
    values = torch.cat([shared, unique])
    for layer in (0, 1):
        values = functional.gelu(linear(weights, f"discriminators.{slot}.layers.{layer}", values))
    return linear(weights, f"discriminators.{slot}.layers.2", values)[0].sigmoid()


def adversary_loop(model, rows, present):
    """The unique loss and the discriminators' loss."""
    shared, unique = (encode_loop(model, rows, present, f"{kind}_encoders") for kind in ("shared", "unique"))
    fooling = telling = rows.new_zeros(())
    for slot in range(present.shape[1]):
        having = [patient for patient in range(len(present)) if present[patient, slot]]
        if len(having) < 2:
            continue
        before = [having[-1], *having[:-1]]
        joint = [judge_loop(model, slot, shared[i, slot], unique[i, slot]) for i in having]
        apart = [
            judge_loop(model, slot, shared[other, slot], unique[i, slot])
            for i, other in zip(having, before, strict=True)
        ]
        fooling = fooling - sum(share.log() for share in joint) / len(joint)
        telling = telling - sum(share.log() for share in apart) / len(apart)
        telling = telling - sum((1 - share).log() for share in joint) / len(joint)
    return fooling, telling


# --- attention ---


def test_low_scores_under_the_released_softmax_and_the_formula():
    """Figures of ``reference/models.md`` 2.2: 1/3 each instead of 0.0066."""
    low = torch.tensor([-5.0, -5.0])
    assert attention_weights(low, SoftmaxOne.RELEASED).tolist() == pytest.approx([1 / 3] * 2)
    formula = math.exp(-5) / (1 + 2 * math.exp(-5))
    assert formula == pytest.approx(0.0066, abs=1e-4)
    assert attention_weights(low, SoftmaxOne.FORMULA).tolist() == pytest.approx([formula] * 2)
    assert attention_weights(low, SoftmaxOne.OFF).tolist() == pytest.approx([1 / 2] * 2)


@examples(30)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6), st.sampled_from(SoftmaxOne))
def test_weights_equal_the_loop(scores, rule):
    values = torch.tensor(scores, dtype=torch.float64)
    expected = torch.stack(softmax_loop(list(values), rule))
    torch.testing.assert_close(attention_weights(values, rule), expected)


def test_the_two_softmaxes_with_a_one_agree_where_the_largest_score_is_zero():
    scores = torch.tensor([0.0, -1.0, -3.0])
    one, other = (attention_weights(scores, rule) for rule in (SoftmaxOne.RELEASED, SoftmaxOne.FORMULA))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rule", SoftmaxOne)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_and_masked_scores_give_finite_weights_and_gradients(rule, size):
    scores = torch.tensor([size, size - 1, -math.inf], requires_grad=True)
    weights = attention_weights(scores, rule)
    assert bool(weights.isfinite().all())
    assert weights[2] == 0
    gradient = torch.autograd.grad(weights[0], scores)[0]
    assert bool(gradient.isfinite().all())
    assert gradient[2] == 0


def test_order_of_tokens_does_not_matter_to_fusion():
    fusion, present = MaskedAttentionFusion(8, 2, 3, 5, 0.0, SoftmaxOne.RELEASED), patterns(3)
    tokens, swap = torch.randn(len(present), 3, 8, generator=generator()), [2, 0, 1]
    torch.testing.assert_close(fusion(tokens[:, swap], present[:, swap]), fusion(tokens, present))


# --- the model ---


@pytest.mark.parametrize("rule", SoftmaxOne)
def test_logits_equal_the_loop_over_patients_for_every_pattern(rule):
    model, present = exact(model_of(softmax_one=rule)).eval(), patterns(3)
    rows = rows_of(model, present)
    torch.testing.assert_close(model.logits(rows, present), logits_loop(model, rows, present))


def test_gradients_equal_those_of_the_loop():
    model, present = exact(model_of(dropout=0.0)), random_presence(9, 3)
    rows, label = rows_of(model, present), labels_of(present)
    found = gradients(model, functional.cross_entropy(model.logits(rows, present, generator()), label))
    wanted = gradients(model, functional.cross_entropy(logits_loop(model, rows, present), label))
    trained = [name for name in found if not name.startswith("discriminators.")]
    assert any(bool(wanted[name].any()) for name in trained)
    for name in trained:
        torch.testing.assert_close(found[name], wanted[name])


@examples(10)
@given(st.integers(1, 7), st.integers(0, 99), st.booleans())
def test_losses_equal_the_loops_over_patients(patients, seed, over_missing):
    model = exact(model_of(dropout=0.0, alpha=0.7, gamma=0.3, temperature=0.2, over_missing=over_missing))
    present = random_presence(patients, 3, seed)
    rows, label = rows_of(model, present, seed), labels_of(present, seed=seed)
    fooling, telling = adversary_loop(model, rows, present)
    shared = encode_loop(model, rows, present, "shared_encoders")
    together = contrastive_loop(shared, present, 0.2, over_missing)
    task = functional.cross_entropy(logits_loop(model, rows, present), label)
    loss = model.loss(rows, present, label, generator())
    torch.testing.assert_close(loss, task + 0.7 * together + 0.3 * fooling)
    loss = model.discriminator_loss(rows, present, label, generator())
    torch.testing.assert_close(loss.to(telling), telling)


def test_the_unique_loss_reaches_unique_encoders_only():
    """The shared half of a pair is taken as it is, and so is the discriminator."""
    present = torch.ones(6, 3, dtype=torch.bool)
    found = []
    for gamma in (0.0, 5.0):
        model = exact(model_of(dropout=0.0, gamma=gamma))
        rows, label = rows_of(model, present), labels_of(present)
        found.append(gradients(model, model.loss(rows, present, label, generator())))
    without, with_it = found
    for name, value in without.items():
        if name.startswith("discriminators."):
            assert with_it[name] is None
        elif name.startswith("unique_encoders."):
            assert not torch.allclose(value, with_it[name])
        else:
            torch.testing.assert_close(value, with_it[name])


def test_embeddings_have_length_one_where_present_and_are_zero_elsewhere():
    model, present = model_of().eval(), patterns(3)
    for embedding in model._embed(rows_of(model, present), present, None):
        torch.testing.assert_close(embedding.norm(dim=2), present.float())


def test_what_stands_in_absent_slots_changes_no_bit():
    model, present = model_of(), random_presence(12, 3, seed=3)
    label, results = labels_of(present), []
    for filler in (math.nan, math.inf, 1e38, 0.0):
        rows = rows_of(model, present, filler=filler)
        result = [model.eval().logits(rows, present)]
        model.train()
        for loss in (model.loss, model.discriminator_loss):
            value = loss(rows, present, label, generator(1))
            result += [value, *(part for part in gradients(model, value).values() if part is not None)]
        assert all(bool(part.isfinite().all()) for part in result)
        results.append(result)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


def test_absent_slots_get_no_gradient():
    model, present = model_of(dropout=0.0), random_presence(12, 3, seed=3)
    rows = rows_of(model, present).requires_grad_()
    (gradient,) = torch.autograd.grad(model.loss(rows, present, labels_of(present), generator()), rows)
    for slot, part in enumerate(torch.split(gradient, list(model.scaling.widths), dim=1)):
        assert bool((part.any(dim=1) == present[:, slot]).all())


def test_a_prediction_does_not_depend_on_batch_mates():
    model, present = exact(model_of()).eval(), patterns(3)
    rows = rows_of(model, present)
    together = model.logits(rows, present)
    for row in range(len(present)):
        torch.testing.assert_close(
            model.logits(rows[row : row + 1], present[row : row + 1])[0], together[row]
        )


@pytest.mark.parametrize("modalities", [1, 3])
def test_one_patient_and_one_modality_give_finite_losses(modalities):
    model = model_of(dict(list(WIDTHS.items())[:modalities]))
    present = torch.zeros(1, modalities, dtype=torch.bool)
    present[0, -1] = True
    rows, label = rows_of(model, present), labels_of(present)
    found = gradients(model, model.loss(rows, present, label, generator()))
    assert all(value is None or bool(value.isfinite().all()) for value in found.values())
    loss = model.discriminator_loss(rows, present, label, generator())
    assert loss.item() == 0
    assert all(value is None for value in gradients(model, loss).values())


# --- parameters ---


def counted(model, *prefixes):
    return sum(value.numel() for name, value in model.named_parameters() if name.startswith(prefixes))


PARTS = {
    "encoders": ("shared_encoders.", "unique_encoders."),
    "fusions": ("shared_fusion.", "unique_fusion."),
    "head": ("head.",),
    "discriminators": ("discriminators.",),
}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param(
            Size.PUBLISHED,
            {"encoders": 1_575_936, "fusions": 1_116_672, "head": 258, "discriminators": 2_103_300},
            id="published",
        ),
        pytest.param(
            Size.TABLE56,
            {"encoders": 4_726_784, "fusions": 4_465_920, "head": 1_026, "discriminators": 8_400_900},
            id="table56",
        ),
    ],
)
def test_parameters_of_the_sizes_on_mmist(size, expected):
    modalities = [ModalitySpec(name, Kind.FEATURES, width) for name, width in MMIST.items()]
    model = DRIM(modalities, 2, DRIMOptions(size=size))
    assert {part: counted(model, *prefixes) for part, prefixes in PARTS.items()} == expected
    total = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert total == sum(expected.values())
    assert total == {Size.PUBLISHED: 4_796_166, Size.TABLE56: 17_594_630}[size]


def test_width_and_hidden_go_before_the_size():
    model = model_of(size=Size.TABLE56, width=8, hidden=7)
    assert model.shared_encoders[0].first.weight.shape == (7, 6)
    assert model.head.weight.shape == (3, 8)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("width", 0),
        ("hidden", 0),
        ("heads", 0),
        ("head_width", 0),
        ("feedforward", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("temperature", 0.0),
        ("discriminator_rate", 0.0),
        ("alpha", -1.0),
        ("gamma", -1.0),
        ("discriminator_decay", -1.0),
    ],
)
def test_options_out_of_their_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"^{option} must .*, found {value}$"):
        model_of(**{option: value})


# --- blocks and objectives ---


def objectives_of(model):
    (phase,) = model.phases()
    assert phase.rounds is None
    return phase.objectives


def test_the_objectives_share_the_blocks_between_them():
    model = model_of(discriminator_rate=0.02, discriminator_decay=0.5)
    main, adversary = objectives_of(model)
    names = [block.name for block in model.blocks()]
    assert sorted((*main.blocks, *adversary.blocks)) == sorted(names)
    assert adversary.blocks == ("discriminator.ct", "discriminator.text", "discriminator.wsi")
    assert adversary.training == {"optimizer": "adamw", "learning_rate": 0.02, "weight_decay": 0.5}
    assert main.training == {}
    held = [parameter for block in model.blocks() for parameter in block.parameters]
    assert sorted(held) == sorted(name for name, _ in model.named_parameters())


@examples(30)
@given(st.integers(1, 6), st.integers(0, 999))
def test_a_block_is_exposed_exactly_when_its_objective_gives_it_a_gradient(patients, seed):
    model, present = model_of(), random_presence(patients, 3, seed)
    rows, label = rows_of(model, present, seed), labels_of(present, seed=seed)
    blocks = {block.name: block for block in model.blocks()}
    exposed = exposures(blocks.values(), present)
    for objective in objectives_of(model):
        found = gradients(model, objective.loss(rows, present, label, generator(seed)))
        for name, block in blocks.items():
            moved = any(found[key] is not None and bool(found[key].any()) for key in block.parameters)
            assert moved == (name in objective.blocks and exposed[name] > 0), name


def test_a_lone_sample_has_no_partner_and_others_are_counted():
    present = torch.tensor([[True, True], [True, False], [True, False]])
    assert [int(samples_in_pairs(slot)(present)) for slot in (0, 1)] == [3, 0]
    both = torch.cat([present, present])  # over a round's draws the lone one of each batch is counted
    assert int(samples_in_pairs(1)(both)) == 2


def step(objective, optimizer, rows, present, label, source):
    optimizer.zero_grad(set_to_none=True)
    loss = objective.loss(rows, present, label, source)
    loss.backward()
    optimizer.step()
    return loss.item()


def optimizer_of(model, objective, rate):
    held = {key for block in model.blocks() if block.name in objective.blocks for key in block.parameters}
    chosen = [value for name, value in model.named_parameters() if name in held]
    return torch.optim.AdamW(chosen, lr=rate, weight_decay=0.1)


def test_each_objective_moves_its_own_parameters_only():
    model, present = model_of(), torch.ones(6, 3, dtype=torch.bool)
    rows, label, source = rows_of(model, present), labels_of(present), generator()
    main, adversary = objectives_of(model)
    for objective, own in ((main, False), (adversary, True)):
        before = {name: value.clone() for name, value in model.named_parameters()}
        step(objective, optimizer_of(model, objective, 1e-2), rows, present, label, source)
        for name, value in model.named_parameters():
            moved = not torch.equal(before[name], value)
            assert moved == (name.startswith("discriminators.") is own), name


def test_a_discriminator_without_a_pair_does_not_even_decay():
    model, present = model_of(), torch.tensor([[True, True, False], [True, False, False]])
    rows, label = rows_of(model, present), labels_of(present)
    before = {name: value.clone() for name, value in model.named_parameters()}
    adversary = objectives_of(model)[1]
    step(adversary, optimizer_of(model, adversary, 1e-2), rows, present, label, generator())
    for name, value in model.named_parameters():
        assert torch.equal(before[name], value) != name.startswith("discriminators.0.")


@pytest.mark.slow
def test_both_objectives_together_fit_a_batch():
    model, present = model_of(), random_presence(24, 3)
    rows, label, source = rows_of(model, present, filler=0.0), labels_of(present), generator()
    optimizers = [optimizer_of(model, objective, 1e-2) for objective in objectives_of(model)]
    before = functional.cross_entropy(model.eval().logits(rows, present), label)
    model.train()
    for _ in range(40):
        for objective, optimizer in zip(objectives_of(model), optimizers, strict=True):
            step(objective, optimizer, rows, present, label, source)
    after = functional.cross_entropy(model.eval().logits(rows, present), label)
    assert after < before / 2


def test_discriminators_learn_to_separate_pairs_and_encoders_to_fool_them():
    model = model_of({"ct": 6}, dropout=0.0, alpha=0.0, gamma=50.0)
    present = torch.ones(32, 1, dtype=torch.bool)
    rows, label = rows_of(model, present), labels_of(present)
    main, adversary = objectives_of(model)
    optimizer = optimizer_of(model, adversary, 1e-3)
    losses = [step(adversary, optimizer, rows, present, label, generator()) for _ in range(80)]
    assert losses[0] == pytest.approx(2 * math.log(2), abs=0.05)
    assert losses[-1] < 1.2
    optimizer = optimizer_of(model, main, 1e-2)
    for _ in range(30):
        step(main, optimizer, rows, present, label, generator())
    fooled = model.discriminator_loss(rows, present, label, generator()).item()
    assert fooled > losses[-1] + 0.1


# --- draws ---


def test_training_draws_from_the_generator_given_and_needs_one():
    model, present = model_of(), random_presence(8, 3)
    rows, label = rows_of(model, present), labels_of(present)
    before = torch.random.get_rng_state()
    for loss in (model.loss, model.discriminator_loss):
        one, same, other = (loss(rows, present, label, generator(seed)).item() for seed in (0, 0, 1))
        assert one == same
        assert one != other
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="pass one"):
        model.logits(rows, present)


def test_nothing_is_dropped_outside_training():
    """The released code leaves dropout of its discriminators on where it logs validation losses."""
    model, present = model_of().eval(), random_presence(8, 3)
    rows, label, source = rows_of(model, present), labels_of(present), generator()
    before = source.get_state()
    for loss in (model.loss, model.discriminator_loss):
        assert loss(rows, present, label, source) == loss(rows, present, label, source)
    assert torch.equal(before, source.get_state())
