"""Models of the coordinator's choice under an approved study (adversary B)."""

from dataclasses import replace

import pytest
import torch

from client.data.dataset import load_data
from mmare.errors import SiteCode
from mmare.models.adapters import pooled_moments
from mmare.models.registry import build_model
from mmare.wire.messages import Split, Task, Update
from mmare.wire.tensors import global_tensors, layout_of, trained_tensors
from tests.federations import tiny_study
from tests.privacy.hospital import LIMIT, STUDY, Hospital, flat, sent_and_arrived

WIDE = 64  # neurons of the trap


@pytest.fixture
def hospital(tmp_path):
    return Hospital(tmp_path / "federation")


def moved(distance, seed=0, study=STUDY):
    """The seed's own model, moved by a distance."""
    model = build_model(study)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        steps = {name: torch.randn(value.shape, generator=generator) for name, value in parameters.items()}
        norm = sum(step.double().square().sum() for step in steps.values()).sqrt()
        for name, value in parameters.items():
            value.add_(steps[name] * (distance / norm))
    return model


def trap(study):
    """A model whose first neurons fire for few patients each, so that a gradient is one patient's features.

    As in Fowl et al. 2022 ("Robbing the Fed"), with a direction of its own for every neuron.
    """
    model = build_model(study)
    with torch.no_grad():
        adapter = model.adapters.adapters["0"]
        directions = torch.randn(adapter.weight.shape, generator=torch.Generator().manual_seed(1))
        adapter.weight.copy_(torch.nn.functional.normalize(directions, dim=1))
        adapter.bias.fill_(-1.7)  # deviations of the scaled features
    return model


def stolen(before, changed, rows):
    """How many of the rows ``(N, W)`` the update shows at a cosine above .99."""
    names = ("adapters.adapters.0.weight", "adapters.adapters.0.bias")
    weight, bias = (changed[name] - before[name] for name in names)
    found = (weight / bias.unsqueeze(1))[bias != 0]
    cosine = torch.nn.functional.cosine_similarity(found.unsqueeze(0), rows.unsqueeze(1), dim=2)
    return int((cosine.amax(dim=1) > 0.99).sum())


TRAP_STUDY = tiny_study(
    model={"name": "mmare", "width": WIDE},
    training={"optimizer": "sgd", "batch_size": 256, "noise_probability": 0.0, "weight_decay": 0.0},
    privacy={"min_count": LIMIT},
)


def robbed(hospital, number, helpers=(), *, honest_first=False):
    """The share of a hospital's patients whose features the answers to one crafted model show.

    Those of ``helpers`` are added to its answer; with ``honest_first`` all took part in the round before.
    """
    study = hospital.study
    honest, model = build_model(study), trap(study)
    if study.privacy.dp is None:
        statistics = hospital.ask(Task.STATISTICS).moments[0]
        sums = pooled_moments(statistics.n, statistics.total, statistics.squares)
        for each in (honest, model):
            each.scaling.set_moments(0, *sums)
    else:
        with torch.no_grad():
            model.adapters.adapters["0"].bias.fill_(-0.5)  # rows have a length of one
    before = trained_tensors(model)
    changed = {name: value.clone() for name, value in before.items()}
    for each in (hospital, *helpers):
        if honest_first:
            assert isinstance(each.train(number - 1, honest), Update)
        update = each.train(number, model)
        if not isinstance(update, Update):
            return update
        sent, after = sent_and_arrived(model, update, each.tensors)
        for name in changed.keys() & sent.keys():
            changed[name] += after[name] - sent[name]
    data = load_data(hospital.site, study)
    rows = data.rows[Split.TRAIN][data.present[data.rows[Split.TRAIN], 0]]
    scaled = honest.scaling(tuple(part[rows] for part in data.embedding), data.present[rows])
    return stolen(before, changed, scaled[:, : data.embedding[0].shape[1]]) / len(rows)


def test_a_crafted_first_model_is_refused(tmp_path, monkeypatch):
    assert robbed(Hospital(tmp_path / "now", TRAP_STUDY), 1) is SiteCode.MODEL
    monkeypatch.setattr("client.training.service.check_arrival", lambda *_: None)  # as before
    assert robbed(Hospital(tmp_path / "before", TRAP_STUDY), 1) > 0.3


@pytest.mark.parametrize("known", [True, False], ids=["after-a-round", "late"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "thesis"])
def test_a_crafted_later_model_is_refused(tmp_path, known, named):
    """By the study's own bound, and by the one that follows from the thesis' learning rate."""
    bound, rate = (0.5, 0.01) if named else (None, 1e-4)
    study = replace(
        TRAP_STUDY,
        training=replace(TRAP_STUDY.training, learning_rate=rate),
        privacy=replace(TRAP_STUDY.privacy, max_step=bound),
    )
    hospital = Hospital(tmp_path / "federation", study)
    if known:
        assert isinstance(hospital.train(1), Update)
    assert robbed(hospital, 2) is SiteCode.MODEL
    assert [line["code"] for line in hospital.lines("refused")] == ["S308"]


def test_one_bit_of_the_first_model_is_enough(hospital):
    payload = bytearray(flat(build_model(STUDY)))
    layout = layout_of(global_tensors(build_model(STUDY)))
    fields = {"round": 1, "train": True, "layout": layout.fingerprint}
    starts = {spec.name: start for spec, start in zip(layout.tensors, layout.offsets, strict=False)}
    payload[starts["head.out.weight"]] ^= 1
    assert hospital.ask(Task.TRAIN, bytes(payload), **fields) is SiteCode.MODEL
    payload[starts["head.out.weight"]] ^= 1
    assert isinstance(hospital.ask(Task.TRAIN, bytes(payload), **fields), Update)
    assert hospital.train(1, build_model(replace(STUDY, seed=4)), run="other") is SiteCode.MODEL


@pytest.mark.parametrize("restarted", [False, True])
def test_a_model_may_move_by_so_much_a_round_and_no_more(tmp_path, restarted):
    study = tiny_study(privacy={"min_count": LIMIT, "max_step": 0.1})
    hospital = Hospital(tmp_path / "federation", study)
    assert isinstance(hospital.train(1), Update)
    if restarted:
        hospital.restart()
    assert hospital.train(2, moved(0.11, study=study)) is SiteCode.MODEL
    assert isinstance(hospital.train(2, moved(0.09, study=study)), Update)
    if restarted:
        hospital.restart()
    assert hospital.train(3, moved(0.2, study=study)) is SiteCode.MODEL
    assert isinstance(hospital.train(4, moved(0.28, study=study)), Update)  # it missed a round


def test_refused_requests_do_not_add_up(tmp_path):
    """A step is measured from the last model that was answered, not from those that were refused."""
    study = tiny_study(privacy={"min_count": LIMIT, "max_step": 0.1})
    hospital = Hospital(tmp_path / "federation", study)
    hospital.site = replace(hospital.site, max_norm=1e-9)
    hospital.train(1)
    hospital.restart()
    for distance in (0.09, 0.18):
        found = hospital.train(2, moved(distance, study=study))
        assert found is (SiteCode.NORM if distance < 0.1 else SiteCode.MODEL)


def test_a_site_that_joins_late_measures_from_the_seed_s_own_model(tmp_path):
    study = tiny_study(privacy={"min_count": LIMIT, "max_step": 0.1})
    hospital = Hospital(tmp_path / "federation", study)
    assert hospital.train(3, moved(0.21, study=study)) is SiteCode.MODEL
    assert isinstance(hospital.train(3, moved(0.19, study=study)), Update)


def test_the_scaling_may_be_anything_at_first_and_stays(hospital):
    def scaled(by):
        model = build_model(STUDY)
        model.scaling.set_moments(0, torch.full((8,), by), torch.ones(8))
        return model

    assert isinstance(hospital.train(1, scaled(0.5)), Update)
    assert hospital.train(2, scaled(0.6)) is SiteCode.MODEL
    assert isinstance(hospital.train(2, scaled(0.5)), Update)


def test_a_tested_model_descends_too(hospital):
    layout = layout_of(global_tensors(build_model(STUDY))).fingerprint
    far = flat(moved(1e5))
    test = {"round": 2, "splits": (Split.TEST,), "final": True, "layout": layout}
    hospital.train(1)
    assert hospital.ask(Task.EVALUATE, far, **test) is SiteCode.MODEL
    assert isinstance(hospital.ask(Task.EVALUATE, flat(moved(1.0)), **test), Update)
