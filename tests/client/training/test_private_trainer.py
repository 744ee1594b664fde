"""A round of training under differential privacy."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from client.privacy.accountant import Plan
from client.privacy.noise import Noise
from client.training.optimizers import PhaseOptimizers
from client.training.private_trainer import train_privately
from client.training.trainer import ProximalTerm
from mmare.errors import SiteCode, SiteError
from mmare.models.registry import build_model
from mmare.wire.messages import Split
from mmare.wire.tensors import trained_tensors
from tests.federations import tiny_data, tiny_study

CLIP = 0.5
RATE = 0.1
SILENT = Plan(rows=20, rate=1.0, steps=1, noise=0.0, histogram_noise=0.0)


def study_of(**training):
    tables = tiny_study().to_dict()
    return tiny_study(
        modality=[{**each, "scaling": "l2"} for each in tables["modality"]],
        model={"dropout": 0.0, "order": "fixed"},
        training={
            "noise_probability": 0.0,
            "optimizer": "sgd",
            "learning_rate": RATE,
            "weight_decay": 0.0,
            **training,
        },
        privacy={"dp": {"epsilon": 8.0, "clip": CLIP}},
    )


def step(study, plan, data=None, noise=None, pull=None):
    """The change of every parameter by one round, and its result."""
    model = build_model(study)
    before = {name: value.clone() for name, value in trained_tensors(model).items()}
    optimizers = PhaseOptimizers(model, model.phases()[0], study.training)
    data = data or tiny_data(study)
    rows = data.rows[Split.TRAIN]
    done = train_privately(model, optimizers, data, rows, study, plan, noise or Noise(b"secret"), pull)
    return {name: value - before[name] for name, value in trained_tensors(model).items()}, done


def by_loop(study, data, weights):
    """Clipped gradients of all train patients, added up, a patient at a time."""
    model = build_model(study).eval()
    rows = data.rows[Split.TRAIN]
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for row in rows.tolist():
        present, label = data.present[[row]], data.label[[row]]
        scaled = model.scaling([part[[row]] for part in data.embedding], present)
        loss = functional.cross_entropy(model.logits(scaled, present), label) * weights[int(label)]
        found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        norm = torch.cat([each.flatten() for each in found]).norm()
        for name, each in zip(total, found, strict=True):
            total[name] += each * min(1.0, CLIP / norm.item())
    return total


@pytest.mark.parametrize(("oversample", "weights"), [(None, [1.0, 1.0]), ({"yes": 4.0}, [0.25, 1.0])])
def test_without_noise_a_step_is_the_sum_of_clipped_gradients_over_the_expected_patients(oversample, weights):
    study = study_of(**({"oversample": oversample} if oversample else {}))
    data = tiny_data(study)
    found, done = step(study, SILENT, data)
    for name, value in by_loop(study, data, weights).items():
        torch.testing.assert_close(found[name], -RATE * value / SILENT.expected, rtol=1e-4, atol=1e-7)
    assert (done.samples, done.loss, done.patients) == (20, None, {})
    assert set(done.exposures.values()) == {20}


def test_every_parameter_gets_noise_whoever_exercised_it():
    study = study_of()
    data = tiny_data(study, missing=0.0)
    present = data.present.clone()
    present[:, 1] = False  # nobody has wsi, so nobody merges, and nobody lacks ct
    data = replace(data, present=present)
    plan = replace(SILENT, noise=40.0)
    quiet, loud = step(study, SILENT, data)[0], step(study, plan, data)[0]
    assert not quiet["fusion.first.weight"].any()
    noise = torch.cat([(loud[name] - quiet[name]).flatten() for name in quiet])
    expected = RATE * plan.noise * CLIP / plan.expected
    assert noise.std().item() == pytest.approx(expected, rel=0.05)
    for name in quiet:  # no parameter has less than the others
        if quiet[name].numel() > 100:
            assert (loud[name] - quiet[name]).std().item() == pytest.approx(expected, rel=0.2)


def test_patients_are_drawn_one_by_one():
    """The number drawn varies from step to step, and a patient is never drawn twice in one."""
    noise, rate = Noise(b"secret", "sampling"), 0.3
    sizes = torch.tensor([(noise.uniform(100) < rate).sum() for _ in range(400)]).double()
    assert sizes.mean().item() == pytest.approx(30, abs=1.2)
    assert sizes.var().item() == pytest.approx(21, rel=0.25)  # of a binomial distribution


def test_a_step_that_draws_nobody_is_noise_alone():
    study = study_of()
    plan = replace(SILENT, rate=1e-9, noise=1.0)
    found, _ = step(study, plan)
    assert all(value.any() for value in found.values())


def test_the_same_noise_gives_the_same_bits_and_other_noise_others():
    study, plan = study_of(local_epochs=2), Plan(20, 0.4, 3, 1.0, 0.0)
    first, again, other = (step(study, plan, noise=Noise(key))[0] for key in (b"one", b"one", b"two"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_proximal_term_pulls_besides():
    study = study_of()
    anchor = {name: value + 1 for name, value in trained_tensors(build_model(study)).items()}
    plain, pulled = step(study, SILENT)[0], step(study, SILENT, pull=ProximalTerm(0.5, anchor))[0]
    torch.testing.assert_close(pulled["head.out.bias"] - plain["head.out.bias"], torch.full((2,), RATE * 0.5))


def test_no_rows_and_a_loss_that_is_not_finite_are_refused():
    study, data = study_of(), tiny_data(study_of())
    empty = replace(data, rows={**data.rows, Split.TRAIN: data.rows[Split.TRAIN][:0]})
    broken = replace(data, embedding=tuple(part * torch.inf for part in data.embedding))
    for given, code in ((empty, SiteCode.EMPTY), (broken, SiteCode.NON_FINITE)):
        with pytest.raises(SiteError) as refused:
            step(study, SILENT, given)
        assert refused.value.code is code
