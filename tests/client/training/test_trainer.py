from dataclasses import replace

import pytest
import torch

from client.training.optimizers import PhaseOptimizers
from client.training.trainer import ProximalTerm, draw_rows, train_round
from mmare.errors import SiteCode, SiteError
from mmare.models.phases import phase_at
from mmare.models.registry import build_model
from mmare.randomness import generator_for
from mmare.wire.messages import Split
from tests.federations import tiny_data, tiny_study


def study_of(**training: object):
    return tiny_study(training=training, model={"dropout": 0.0})


def make_optimizer(model, training, round_number=1, **options: object):
    return PhaseOptimizers(model, phase_at(model.phases(), round_number), training, **options)


def train(study, model, optimizer, rounds, data=None):
    data = data or tiny_data(study)
    return [
        train_round(model, optimizer, data, data.rows[Split.TRAIN], study, generator_for(0, "ash", number))
        for number in rounds
    ]


def test_without_weights_an_epoch_is_a_permutation():
    drawn = draw_rows(torch.zeros(50, dtype=torch.int64), study_of(), generator_for(0, "ash", 1))
    assert sorted(drawn.tolist()) == list(range(50))
    assert drawn.tolist() != list(range(50))


@pytest.mark.parametrize(
    ("oversample", "share"),
    [
        pytest.param({"yes": 6.0}, 6 * 0.2 / (6 * 0.2 + 0.8), id="six-times"),
        pytest.param({"no": 0.5, "yes": 1.5}, 0.3 / 0.7, id="both"),
        pytest.param("balanced", 0.5, id="balanced"),
    ],
)
def test_draws_follow_the_weights(oversample, share):
    label = (torch.arange(1000) % 5 == 0).long()  # one in five is yes
    study = study_of(oversample=oversample)
    drawn = [draw_rows(label, study, generator_for(0, "ash", number)) for number in range(40)]
    assert all(len(rows) == 1000 for rows in drawn)
    found = label[torch.cat(drawn)].double().mean().item()
    deviation = (share * (1 - share) / 40_000) ** 0.5
    assert found == pytest.approx(share, abs=5 * deviation)
    counts = torch.bincount(torch.cat(drawn), minlength=1000).double()
    for value in (0, 1):  # rows of one class are drawn alike: chi square, mean = degrees of freedom
        of_class = counts[label == value]
        chi_square = ((of_class - of_class.mean()).square() / of_class.mean()).sum().item()
        freedom = len(of_class) - 1
        assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_balanced_draws_of_a_site_with_one_class_are_of_that_class():
    drawn = draw_rows(
        torch.ones(20, dtype=torch.int64), study_of(oversample="balanced"), generator_for(0, "a", 1)
    )
    assert len(drawn) == 20
    assert drawn.max() < 20


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_loss_decreases(optimizer):
    study = study_of(optimizer=optimizer, learning_rate=0.02)
    model = build_model(study)
    losses = [
        trained.loss for trained in train(study, model, make_optimizer(model, study.training), range(1, 13))
    ]
    assert losses[-1] < 0.7 * losses[0]


def slow_exposures(study, data, drawn):
    found = {"shared": len(drawn), "merge": 0}
    for slot, modality in enumerate(study.modalities):
        missing = sum(not data.present[row, slot] for row in drawn)
        found[f"conditioning.{modality.name}"] = missing
        if modality.width != 16:
            found[f"adapter.{modality.name}"] = len(drawn) - missing
    for row in drawn:
        found["merge"] += int(data.present[row].sum()) - 1
    return found


@pytest.mark.parametrize("oversample", [None, "balanced"])
def test_exposures_are_counted_over_the_draws(oversample):
    study = study_of(oversample=oversample, noise_probability=0.0, local_epochs=3, batch_size=1000)
    study = replace(study, model=replace(study.model, options={**study.model.options, "order": "fixed"}))
    data, model = tiny_data(study), build_model(study)
    rows = data.rows[Split.TRAIN]
    generator = generator_for(0, "ash", 1)
    drawn = torch.cat([rows[draw_rows(data.label[rows], study, generator)] for _ in range(3)]).tolist()
    trained = train(study, model, make_optimizer(model, study.training), [1], data)[0]
    assert trained.samples == len(drawn) == 3 * len(rows)
    assert trained.exposures == slow_exposures(study, data, drawn)


def test_an_optimiser_that_was_put_back_goes_on_bit_for_bit():
    study = tiny_study()
    straight, broken = build_model(study), build_model(study)
    optimizer = make_optimizer(straight, study.training)
    train(study, straight, optimizer, range(1, 6))
    first = make_optimizer(broken, study.training)
    train(study, broken, first, range(1, 4))
    kept = {name: value.clone() for name, value in first.tensors().items()}
    second = make_optimizer(broken, study.training)
    second.restore(kept)
    train(study, broken, second, (4, 5))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, broken.state_dict()[name]), name
    for name, value in optimizer.tensors().items():
        assert torch.equal(value, second.tensors()[name]), name


def test_a_fresh_optimiser_goes_on_differently():
    study = tiny_study()
    kept, fresh = build_model(study), build_model(study)
    optimizer = make_optimizer(kept, study.training)
    train(study, kept, optimizer, (1, 2))
    train(study, fresh, make_optimizer(fresh, study.training), (1,))
    train(study, fresh, make_optimizer(fresh, study.training), (2,))
    assert not torch.equal(kept.head.out.weight, fresh.head.out.weight)


def test_sgd_keeps_nothing():
    study = study_of(optimizer="sgd")
    model = build_model(study)
    optimizer = make_optimizer(model, study.training)
    train(study, model, optimizer, [1])
    assert optimizer.tensors() == {}
    make_optimizer(model, study.training).restore({})


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param({"train/0/head.in.weight/exp_avg": torch.zeros(1)}, id="no-such-parameter"),
        pytest.param({"train/0/exp_avg": torch.zeros(1)}, id="no-name"),
    ],
)
def test_moments_of_something_else_are_refused(tensors):
    study = tiny_study()
    with pytest.raises(SiteError, match=SiteCode.STATE):
        make_optimizer(build_model(study), study.training).restore(tensors)


def test_no_rows_are_refused():
    study = tiny_study()
    model, data = build_model(study), tiny_data(study)
    with pytest.raises(SiteError, match=SiteCode.EMPTY):
        train_round(
            model,
            make_optimizer(model, study.training),
            data,
            torch.zeros(0, dtype=torch.int64),
            study,
            generator_for(0, "a", 1),
        )


def test_a_loss_that_is_not_finite_is_refused():
    study = tiny_study()
    model = build_model(study)
    with torch.no_grad():
        model.head.out.bias.fill_(float("nan"))
    with pytest.raises(SiteError, match=SiteCode.NON_FINITE):
        train(study, model, make_optimizer(model, study.training), [1])


def test_what_stands_in_absent_rows_has_no_influence():
    study = tiny_study()
    models = []
    for poison in (0.0, float("nan")):
        data = tiny_data(study)
        for slot, part in enumerate(data.embedding):
            part[~data.present[:, slot]] = poison
        models.append(build_model(study))
        train(study, models[-1], make_optimizer(models[-1], study.training), [1], data)
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name


def test_training_draws_nothing_from_the_global_generator():
    study = tiny_study()
    before = torch.random.get_rng_state()
    model = build_model(study)
    train(study, model, make_optimizer(model, study.training), [1])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_moments_of_another_phase_are_passed_over():
    study = tiny_study()
    optimizer = make_optimizer(build_model(study), study.training)
    optimizer.restore({"warm/0/anything/exp_avg": torch.zeros(1)})
    assert optimizer.tensors() == {}


def test_the_rate_factor_is_of_the_step():
    study = study_of(optimizer="sgd", learning_rate=0.1, weight_decay=0.0)
    moved = []
    for factor in (1.0, 0.5):
        model = build_model(study)
        before = model.head.out.bias.detach().clone()
        full = replace(study, training=replace(study.training, batch_size=1000))
        train(full, model, make_optimizer(model, full.training, rate_factor=factor), [1])
        moved.append(model.head.out.bias.detach() - before)
    torch.testing.assert_close(moved[1], moved[0] / 2)


def test_a_clipped_gradient_has_at_most_that_norm():
    study = study_of(optimizer="sgd", learning_rate=1.0, weight_decay=0.0, clip_norm=0.01, batch_size=1000)
    model = build_model(study)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    train(study, model, make_optimizer(model, study.training), [1])
    step = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_strong_pull_keeps_the_model_where_it_was():
    study = study_of(optimizer="sgd", learning_rate=0.05, local_epochs=4)
    moved = {}
    for strength in (0.0, 5.0):
        model = build_model(study)
        anchor = {name: value.detach().clone() for name, value in model.named_parameters()}
        data, optimizer = tiny_data(study), make_optimizer(model, study.training)
        rows, source = data.rows[Split.TRAIN], generator_for(0, "ash", 1)
        train_round(model, optimizer, data, rows, study, source, ProximalTerm(strength, anchor))
        moved[strength] = sum(
            (v.detach() - anchor[k]).square().sum().item() for k, v in model.named_parameters()
        )
    assert moved[5.0] < 0.7 * moved[0.0]


@pytest.mark.parametrize("distillation", [0.0, 1.0])
def test_hidden_modalities_count_where_they_gave_a_gradient(distillation):
    """All but one modality are hidden in every step; with distillation the whole patient is seen, too."""
    study = study_of(noise_probability=0.0, modality_dropout=0.999, distillation=distillation)
    data, model = tiny_data(study), build_model(study)
    rows = data.rows[Split.TRAIN]
    there = data.present[rows]
    data.present[rows] = True  # every train patient has all modalities
    trained = train(study, model, make_optimizer(model, study.training), [1], data)[0]
    merges = len(rows) * (there.shape[1] - 1)
    assert trained.exposures["merge"] == (merges if distillation else 0)
    missing = [trained.exposures[f"conditioning.{modality.name}"] for modality in study.modalities]
    assert sum(missing) == merges


def test_hiding_nothing_of_some_modality_never_misses_it():
    study = study_of(modality_dropout={"ct": 0.9})
    data, model = tiny_data(study), build_model(study)
    data.present[:] = True
    trained = train(study, model, make_optimizer(model, study.training), [1], data)[0]
    others = [modality.name for modality in study.modalities if modality.name != "ct"]
    assert trained.exposures["conditioning.ct"] > 0
    assert all(trained.exposures[f"conditioning.{name}"] == 0 for name in others)
