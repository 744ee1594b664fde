"""Clipped sums of the gradients of single patients, against a loop over the patients."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mmare.models.base import MultimodalModel
from mmare.models.patient_gradients import clipped_sum, of_patients
from mmare.models.registry import MODELS, build_model
from tests.mmare.models.examples import SMALL, a_batch, a_study, generator, patterns, small_options

WIDTHS = (32, 12, 32)  # the middle one needs an adapter
SEPARATE = sorted(name for name, model in MODELS.items() if model.SEPARATE)
EVERY_PATTERN = patterns(3).repeat(3, 1)


def a_model(name, **options):
    return build_model(
        a_study(WIDTHS, classes=3, model=name, **small_options(name, **SMALL), **options)
    ).train()


def losses_of(model, present=EVERY_PATTERN, passes=1):
    """A function of every patient's loss in training: dropout, orders and hidden modalities are drawn."""
    batch = a_batch(WIDTHS, present, classes=3)

    def losses():
        draws = generator(5)
        scaled = model.scaling(batch.embedding, batch.present)
        logits = [model.logits(scaled, batch.present, draws) for _ in range(passes)]
        return sum(functional.cross_entropy(each, batch.label, reduction="none") for each in logits)

    return losses


def assert_like_a_loop(model, losses):
    """Compare with one backward pass per patient, where half of the patients are clipped."""
    names, values = zip(*model.named_parameters(), strict=True)
    rows = []
    for loss in losses():
        found = torch.autograd.grad(loss, values, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in found]))
    each = torch.stack(rows)  # (B, parameters)
    norms = each.norm(dim=1)
    clip = norms.median().item()
    wanted = ((clip / norms).clamp_max(1).unsqueeze(1) * each).sum(dim=0)
    got = clipped_sum(model, losses, len(each), clip)
    torch.testing.assert_close(got.norms, norms, rtol=1e-5, atol=1e-6)
    found = torch.cat([got.gradients[name].flatten() for name in names])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-6 * wanted.abs().max().item())


@pytest.mark.parametrize("name", SEPARATE)
def test_equals_a_loop_over_patients_of_every_presence_pattern(name):
    model = a_model(name)
    assert_like_a_loop(model, losses_of(model))


@pytest.mark.parametrize(
    "options",
    [
        {"order": "sample", "merge": "symmetric", "embedding_dropout": 0.2},
        {"order": "fixed", "conditioning": False},
        {"fusion": "mean"},
        {"numeric": "piecewise", "clip": 1.0},
        {"linear": True},
    ],
    ids=str,
)
def test_equals_a_loop_whatever_the_options_of_mmare(options):
    model = a_model("mmare", **options)
    if options.get("merge"):
        nn.init.normal_(model.fusion.second.weight)  # starts at zero, where the first layer learns nothing
    for bend in model.adapters.bends.parameters():
        nn.init.normal_(bend)
    if options.get("linear"):
        nn.init.normal_(model.head.out.weight)  # the same
    assert_like_a_loop(model, losses_of(model))


def test_a_patient_seen_twice_in_a_loss_is_clipped_once():
    model = a_model("mmare")
    assert_like_a_loop(model, losses_of(model, passes=2))


@pytest.mark.parametrize("pattern", patterns(3).tolist(), ids=lambda row: "".join("01"[x] for x in row))
def test_equals_a_loop_where_all_patients_have_one_pattern(pattern):
    model = a_model("mmare")
    assert_like_a_loop(model, losses_of(model, torch.tensor([pattern] * 4)))


def test_models_that_say_so_train_by_the_cross_entropy_of_their_logits():
    assert SEPARATE == ["late-mean", "linear", "mmare", "unilmmv", "unimodal"]
    assert all(MODELS[name].loss is MultimodalModel.loss for name in SEPARATE)


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(SEPARATE) - {"hypermm"}))  # which takes maps only
def test_a_layer_that_is_generated_or_shared_out_is_refused(name):
    model = a_model(name)
    phase = model.phases()[0].objectives[0]
    batch = a_batch(WIDTHS, EVERY_PATTERN, classes=3)
    scaled = model.scaling(batch.embedding, batch.present)
    with pytest.raises(ValueError, match=r"gradients of single patients are not known|whose rows they are"):
        clipped_sum(
            model,
            lambda: phase.loss(scaled, batch.present, batch.label, generator()).expand(len(batch)),
            len(batch),
            1.0,
        )


class Odd(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.use = use

    def losses(self):
        return self.use(self.layer, torch.ones(3, 4)).sum(dim=1)


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda layer, rows: rows @ layer.weight, "layer.weight is used by matmul"),
        (lambda layer, rows: rows + layer.bias, "layer.bias is used by add"),
        (lambda layer, rows: rows + torch.stack([layer.bias]), "layer.bias is used by stack"),
        (
            lambda layer, rows: layer(rows.mean(dim=0, keepdim=True)),
            "layer.weight acts on 1 rows of 3 patients",
        ),
        (lambda layer, rows: functional.linear(rows, layer.weight.T), "layer.weight is used turned"),
        (
            lambda layer, rows: layer(rows) + functional.linear(rows[:, :2], layer.weight[:, :2]),
            "layer.weight is used in two parts that overlap",
        ),
    ],
)
def test_a_use_whose_gradients_are_not_known_is_refused(use, sentence):
    model = Odd(use)
    with pytest.raises(ValueError, match=sentence):
        clipped_sum(model, model.losses, 3, 1.0)


def test_rows_that_stand_below_a_patient_count_for_that_one():
    def use(layer, rows):
        turned = torch.tensor([2, 0, 1, 0])
        with of_patients(turned):
            made = layer(torch.arange(16.0).view(4, 4) * rows[:1])
        return torch.zeros(3, 4).index_add(0, turned, made.square())

    model = Odd(use)
    assert_like_a_loop(model, model.losses)


def test_parameters_that_nobody_exercises_have_a_gradient_of_zero():
    model = a_model("mmare")
    found = clipped_sum(model, losses_of(model, torch.tensor([[True, False, False]] * 3)), 3, 1.0).gradients
    assert found.keys() == dict(model.named_parameters()).keys()
    assert not found["adapters.adapters.1.weight"].any()
    assert not found["conditioning.gamma.weight"][:, 0].any()
