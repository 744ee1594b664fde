from dataclasses import replace

import pytest
import torch

from client.training.optimizers import Adam, GradientDescent, PhaseOptimizers
from mmare.errors import SiteCode, SiteError
from mmare.models.phases import Objective, Phase, phase_at
from mmare.models.registry import build_model
from mmare.study.specs import ModelSpec, TrainingSpec
from tests.federations import tiny_study

DRIM = ModelSpec("drim", {"width": 16, "hidden": 16, "heads": 2, "head_width": 8, "feedforward": 16})
HYPERMM = ModelSpec("hypermm-embedding", {"width": 16, "phase_rounds": 2})
ADACOMED = ModelSpec(
    "adacomed", {"hidden": 16, "in_dim": 16, "heads": 2, "small_rounds": 1, "scheme": "gaussian"}
)
TORCH = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def model_of(spec=None):
    study = tiny_study()
    return build_model(study if spec is None else replace(study, model=spec))


def batch_of(patients=12):
    source = torch.Generator().manual_seed(1)
    scaled = torch.randn(patients, 24, generator=source)
    present = torch.ones(patients, 2, dtype=torch.bool)
    return scaled, present, torch.arange(patients) % 2


def step(optimizers, batch=None, seed=0):
    for objective, optimizer in optimizers.steps:
        optimizer.zero_grad(set_to_none=True)
        objective.loss(*(batch or batch_of()), torch.Generator().manual_seed(seed)).backward()
        optimizers.clip(objective)
        optimizer.step()


def named_of(model, names):
    return {key for block in model.blocks() if block.name in names for key in block.parameters}


@pytest.mark.parametrize("name", sorted(TORCH))
def test_the_studys_optimiser_is_torchs(name):
    training = TrainingSpec(optimizer=name, learning_rate=0.03, weight_decay=0.2)
    ours, theirs = model_of(), model_of()
    optimizers = PhaseOptimizers(ours.train(), phase_at(ours.phases(), 1), training, rate_factor=0.5)
    plain = TORCH[name](theirs.train().parameters(), lr=0.015, weight_decay=0.2)
    for seed in range(3):
        step(optimizers, seed=seed)
        plain.zero_grad()
        theirs.loss(*batch_of(), torch.Generator().manual_seed(seed)).backward()
        plain.step()
    for key, value in ours.named_parameters():
        torch.testing.assert_close(value, theirs.get_parameter(key), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True])
def test_lean_steps_are_torchs_fused_ones_bit_for_bit(decoupled):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 3, generator=generator), torch.randn(7, generator=generator)]
    ours, theirs = ([value.clone().requires_grad_() for value in start] for _ in range(2))
    lean = Adam(ours, 0.01, 0.1, decoupled=decoupled)
    plain = torch.optim.Adam(theirs, lr=0.01, weight_decay=0.1, decoupled_weight_decay=decoupled, fused=True)
    for number in range(7):
        gradients = [torch.randn(value.shape, generator=generator) for value in start]
        for optimizer, values in ((lean, ours), (plain, theirs)):
            optimizer.zero_grad()
            for index, value in enumerate(values):  # the second has none in the first and the fourth step
                value.grad = None if index and number in (0, 3) else gradients[index].clone()
            optimizer.step()
        if number == 4:
            lean.restore({value: {**moments} for value, moments in lean.state.items()})
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
            assert all(
                torch.equal(lean.state[one][key], plain.state[other][key]) for key in plain.state[other]
            )


def test_adamw_decays_apart_from_the_moments_and_adam_within():
    moved = {}
    for name in ("adam", "adamw"):
        model = model_of()
        before = model.head.out.weight.detach().clone()
        training = TrainingSpec(optimizer=name, learning_rate=0.01, weight_decay=0.5)
        optimizers = PhaseOptimizers(model, phase_at(model.phases(), 1), training)
        for value in model.parameters():
            value.grad = torch.zeros_like(value)  # nothing but the decay
        optimizers.steps[0][1].step()
        moved[name] = (model.head.out.weight.detach() - before, before)
    change, before = moved["adamw"]
    torch.testing.assert_close(change, -0.01 * 0.5 * before)
    change, before = moved["adam"]
    torch.testing.assert_close(change, -0.01 * before.sign(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("spec", [DRIM, HYPERMM, ADACOMED], ids=lambda spec: spec.name)
def test_each_optimiser_steps_its_objectives_blocks_and_the_rest_is_frozen(spec):
    model = model_of(spec).train()
    for phase in model.phases():
        optimizers = PhaseOptimizers(model, phase, TrainingSpec(weight_decay=0.1))
        inside = named_of(model, phase.blocks)
        for key, value in model.named_parameters():
            assert value.requires_grad == (key in inside)
            assert value.grad is None
        every = []
        for objective, optimizer in optimizers.steps:
            stepped = {id(value) for value in optimizer.parameters}
            wanted = named_of(model, objective.blocks)
            assert stepped == {id(model.get_parameter(key)) for key in wanted}
            every += list(stepped)
        assert len(set(every)) == len(every)


def test_an_objective_may_have_an_optimiser_of_its_own():
    model = model_of(DRIM)
    training = TrainingSpec(optimizer="sgd", learning_rate=0.5, weight_decay=0.25)
    (first, ours), (second, theirs) = PhaseOptimizers(model, model.phases()[0], training, 0.1).steps
    assert dict(first.training) == {}
    assert isinstance(ours, GradientDescent)
    assert ours.rate == pytest.approx(0.05)
    assert ours.weight_decay == 0.25
    assert isinstance(theirs, Adam)
    assert theirs.decoupled
    assert theirs.rate == pytest.approx(second.training["learning_rate"] * 0.1)
    assert theirs.weight_decay == second.training["weight_decay"]


@pytest.mark.parametrize("spec", [DRIM, ADACOMED], ids=lambda spec: spec.name)
def test_moments_put_back_go_on_bit_for_bit_with_several_optimisers(spec):
    straight, broken = model_of(spec).train(), model_of(spec).train()
    phase, again = (model.phases()[-1] for model in (straight, broken))
    first = PhaseOptimizers(straight, phase, TrainingSpec())
    second = PhaseOptimizers(broken, again, TrainingSpec())
    for seed in range(2):
        step(first, seed=seed)
        step(second, seed=seed)
    kept = {key: value.clone() for key, value in second.tensors().items()}
    assert {key.split("/")[1] for key in kept} == ({"0", "1"} if spec is DRIM else {"0"})  # SGD keeps nothing
    third = PhaseOptimizers(broken, again, TrainingSpec())
    third.restore(kept)
    for optimizers in (first, third):
        step(optimizers, seed=9)
    for key, value in straight.named_parameters():
        assert torch.equal(value, broken.get_parameter(key)), key
    for key, value in first.tensors().items():
        assert torch.equal(value, third.tensors()[key]), key


def test_what_is_put_back_is_not_changed_by_training_on():
    model = model_of().train()
    optimizers = PhaseOptimizers(model, model.phases()[0], TrainingSpec())
    step(optimizers)
    kept = {key: value.clone() for key, value in optimizers.tensors().items()}
    before = {key: value.clone() for key, value in kept.items()}
    other = PhaseOptimizers(model, model.phases()[0], TrainingSpec())
    other.restore(kept)
    step(other)
    assert all(torch.equal(kept[key], before[key]) for key in kept)


def test_a_phase_does_not_take_the_moments_of_the_one_before():
    model = model_of(HYPERMM).train()
    universal, fusion = model.phases()
    first = PhaseOptimizers(model, universal, TrainingSpec())
    step(first)
    second = PhaseOptimizers(model, fusion, TrainingSpec())
    second.restore(first.tensors())
    assert second.tensors() == {}
    step(second)
    assert {key.split("/")[0] for key in second.tensors()} == {"fusion"}


@pytest.mark.parametrize(
    "key", ["train/0/no.such/exp_avg", "train/0/exp_avg", "train/1/head.out.weight/exp_avg"]
)
def test_moments_of_other_parameters_are_a_code_or_passed_over(key):
    model = model_of()
    optimizers = PhaseOptimizers(model, model.phases()[0], TrainingSpec())
    if key.startswith("train/1/"):  # of an objective that there is not: as those of another phase
        optimizers.restore({key: torch.zeros(1)})
        assert optimizers.tensors() == {}
    else:
        with pytest.raises(SiteError, match=SiteCode.STATE):
            optimizers.restore({key: torch.zeros(1)})


def test_each_objectives_gradient_is_clipped_apart():
    model = model_of(DRIM).train()
    optimizers = PhaseOptimizers(model, model.phases()[0], TrainingSpec(clip_norm=0.01))
    for index, (objective, _) in enumerate(optimizers.steps):
        keys = named_of(model, objective.blocks)
        for value in model.parameters():
            value.grad = torch.full_like(value, 1.0)
        optimizers.clip(objective)
        norms = {key: value.grad.norm() for key, value in model.named_parameters()}
        inside = torch.stack([norms[key] for key in keys]).norm().item()
        assert inside == pytest.approx(0.01, rel=1e-3), index
        outside = [value.grad for key, value in model.named_parameters() if key not in keys]
        assert all(bool((grad == 1.0).all()) for grad in outside)


def test_without_a_largest_norm_gradients_are_left():
    model = model_of()
    optimizers = PhaseOptimizers(model, model.phases()[0], TrainingSpec())
    for value in model.parameters():
        value.grad = torch.full_like(value, 1e3)
    optimizers.clip(optimizers.steps[0][0])
    assert all(bool((value.grad == 1e3).all()) for value in model.parameters())


def test_untouched_moments_are_those_from_before_column_by_column():
    """By hand: a column block, a whole block, and one that was exercised."""
    model = model_of().train()
    phase = model.phases()[0]
    optimizers = PhaseOptimizers(model, phase, TrainingSpec(weight_decay=0.5))
    step(optimizers)
    kept = {key: value.clone() for key, value in optimizers.tensors().items()}
    step(optimizers, seed=1)
    after = {key: value.clone() for key, value in optimizers.tensors().items()}
    resting = [block for block in model.blocks() if block.name in {"conditioning.ct", "adapter.ct"}]
    found = optimizers.untouched(resting, kept)
    assert found.keys() == after.keys()
    for key, value in found.items():
        name = key.split("/")[2]
        if name.startswith("adapters.adapters.0."):
            assert torch.equal(value, kept[key])
        elif name in {"conditioning.gamma.weight", "conditioning.beta.weight"} and value.ndim:
            assert torch.equal(value[:, 0], kept[key][:, 0])
            assert torch.equal(value[:, 1], after[key][:, 1])
            assert not torch.equal(kept[key][:, 0], after[key][:, 0])
        else:
            assert torch.equal(value, after[key])


def test_untouched_moments_of_a_first_round_are_none():
    model = model_of().train()
    optimizers = PhaseOptimizers(model, model.phases()[0], TrainingSpec(weight_decay=0.5))
    step(optimizers)
    resting = [block for block in model.blocks() if block.name in {"conditioning.ct", "adapter.ct"}]
    found = optimizers.untouched(resting, {})
    assert not any("adapters.adapters.0." in key for key in found)
    column = found["train/0/conditioning.gamma.weight/exp_avg"]
    assert not bool(column[:, 0].any())


def test_a_whole_parameter_of_several_columns_rests_where_all_of_them_do():
    model = model_of().train()
    optimizers = PhaseOptimizers(model, model.phases()[0], TrainingSpec(weight_decay=0.5))
    step(optimizers)
    resting = [block for block in model.blocks() if block.name.startswith("conditioning.")]
    found = optimizers.untouched(resting, {})
    assert not bool(found["train/0/conditioning.beta.weight/exp_avg_sq"].any())


def test_an_objective_of_one_block_only_leaves_the_others_without_moments():
    model = model_of().train()
    phase = Phase("head", (Objective(model.loss, ("shared",)),))
    optimizers = PhaseOptimizers(model, phase, TrainingSpec())
    step(optimizers)
    assert {key.split("/")[2] for key in optimizers.tensors()} == named_of(model, {"shared"})
