"""A coordinator that asks, under an approved hash, for what the study does not call for (adversary B)."""

import math
from dataclasses import replace

import pytest

from mmare.errors import SiteCode
from mmare.models.registry import build_model
from mmare.wire.messages import Split, Statistics, Task, Update
from mmare.wire.tensors import global_tensors, layout_of
from tests.federations import tiny_study
from tests.privacy.hospital import STUDY, Hospital, flat

MODEL = build_model(STUDY)
LAYOUT = layout_of(global_tensors(MODEL)).fingerprint


@pytest.fixture
def hospital(tmp_path):
    return Hospital(tmp_path / "federation")


def evaluate(hospital, **fields: object):
    return hospital.ask(Task.EVALUATE, flat(MODEL), **{"round": 1, "layout": LAYOUT, **fields})


def test_another_seed_is_another_study(hospital):
    assert isinstance(hospital.ask(Task.STATISTICS), Statistics)
    assert hospital.ask(Task.STATISTICS, study=replace(STUDY, seed=4)) is SiteCode.STUDY
    hospital.approvals.record(STUDY, None, seeds=[4])
    for seed in (STUDY.seed, 4):
        assert isinstance(hospital.ask(Task.STATISTICS, study=replace(STUDY, seed=seed)), Statistics)
    assert hospital.ask(Task.STATISTICS, study=replace(STUDY, seed=5)) is SiteCode.STUDY


@pytest.mark.parametrize("factor", [1e6, 0.0, -1.0, 1.001, 0.3])
def test_a_rate_factor_that_the_schedule_cannot_give_is_refused(hospital, factor):
    """A million was accepted: the update's norm was 121,708."""
    assert hospital.train(1, rate_factor=factor) is SiteCode.REQUEST
    assert isinstance(hospital.train(1), Update)
    assert [line["code"] for line in hospital.lines("refused")] == ["S306"]


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_the_factor_of_another_round_is_refused(tmp_path, schedule):
    study = tiny_study(training={"schedule": schedule, "rounds": 20}, privacy={"min_count": 5})
    hospital = Hospital(tmp_path / "federation", study)
    assert hospital.train(1, rate_factor=0.3) is SiteCode.REQUEST
    second = {"cosine": 0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi / 20)), "plateau": 0.3}[schedule]
    assert hospital.train(2, rate_factor=second * 1.01) is SiteCode.REQUEST


FOREIGN = {
    "train-rows": {"splits": (Split.TRAIN,)},
    "train-rows-at-the-end": {"splits": (Split.TRAIN,), "final": True},
    "test-rows-in-a-round": {"splits": (Split.TEST,)},
    "patterns-in-a-round": {"splits": (Split.VAL,), "patterns": True},
    "subsets": {"splits": (Split.VAL,), "subsets": True, "final": True},
    "calibration": {"splits": (Split.VAL,), "calibration": True, "final": True},
    "calibration-in-a-round": {"splits": (Split.VAL,), "calibration": True},
    "shapley": {"splits": (Split.TEST,), "shapley": True, "patterns": True, "final": True},
    "shapley-in-a-round": {"splits": (Split.VAL,), "shapley": True},
    "split-twice": {"splits": (Split.VAL, Split.VAL)},
    "training-in-disguise": {"splits": (Split.VAL,), "train": True},
    "negative-round": {"splits": (Split.VAL,), "round": -5},
    "later-than-the-last": {"splits": (Split.VAL,), "round": 6},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_splits_and_kinds_that_the_study_does_not_name_are_refused(hospital, name):
    assert evaluate(hospital, **FOREIGN[name]) is SiteCode.REQUEST
    assert [line["code"] for line in hospital.lines("refused")] == ["S306"]


@pytest.mark.parametrize(
    "fields",
    [{"gap": True}, {"splits": (Split.TRAIN,)}, {"splits": (Split.TEST,)}, {"train": False}, {"final": True}],
    ids=["gap", "train-rows", "test-rows", "no-training", "final"],
)
def test_training_with_more_than_its_rounds_have_is_refused(hospital, fields):
    assert hospital.train(1, **fields) is SiteCode.REQUEST


def test_two_models_are_not_compared_unless_the_study_says_so(hospital, tmp_path):
    assert hospital.ask(Task.COMPARE, 2 * flat(MODEL), layout=LAYOUT) is SiteCode.REQUEST
    study = tiny_study(privacy={"min_count": 5, "extra": ["comparison"]})
    named = Hospital(tmp_path / "named", study)
    assert named.ask(Task.COMPARE, 2 * flat(MODEL), layout=LAYOUT).cells is not None


@pytest.mark.parametrize(
    ("extra", "fields"),
    [
        ("train", {"splits": (Split.TRAIN,)}),
        ("subsets", {"splits": (Split.VAL,), "subsets": True}),
        ("calibration", {"splits": (Split.VAL,), "calibration": True}),
        ("shapley", {"splits": (Split.TEST,), "patterns": True, "shapley": True}),
    ],
)
def test_what_the_study_names_is_answered(tmp_path, extra, fields):
    study = tiny_study(privacy={"min_count": 5, "extra": [extra]})
    named = Hospital(tmp_path / "named", study)
    assert isinstance(evaluate(named, final=True, **fields), Update)
    told = [line["what"] for line in named.lines("released")]
    assert ("calibration val" in told[-1]) == (extra == "calibration")
    assert ("Shapley values test" in told[-1]) == (extra == "shapley")


def test_shapley_values_without_the_patterns_that_tell_their_rows_are_refused(tmp_path):
    named = Hospital(tmp_path / "named", tiny_study(privacy={"min_count": 5, "extra": ["shapley"]}))
    assert evaluate(named, final=True, splits=(Split.TEST,), shapley=True) is SiteCode.REQUEST


@pytest.mark.parametrize("restarted", [False, True])
def test_rounds_only_advance(hospital, restarted):
    """Every repeated round was another training from a model of the coordinator's choice."""
    other = build_model(replace(STUDY, seed=99))
    first = hospital.train(2)
    sent = hospital.tensors
    if restarted:
        hospital.restart()
    assert hospital.train(2, other) is SiteCode.ROUND
    assert hospital.train(2, keep_round=1) is SiteCode.ROUND
    assert hospital.train(1) is SiteCode.ROUND
    assert evaluate(hospital, round=1, splits=(Split.VAL,)) is SiteCode.ROUND
    assert [line["code"] for line in hospital.lines("refused")] == ["S307"] * 4
    again = hospital.train(2)  # a resumed run
    assert replace(again, seconds={}) == replace(first, seconds={})
    assert hospital.tensors == sent
    assert isinstance(hospital.train(3), Update)


@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_follows_the_end_of_a_run(hospital, restarted):
    hospital.train(1)
    test = {"splits": (Split.VAL, Split.TEST), "patterns": True, "final": True}
    first = evaluate(hospital, **test)
    if restarted:
        hospital.restart()
    assert hospital.train(2) is SiteCode.ROUND
    assert evaluate(hospital, **{**test, "round": 2}) is SiteCode.ROUND
    assert evaluate(hospital, round=2, splits=(Split.VAL,)) is SiteCode.ROUND
    assert replace(evaluate(hospital, **test), seconds={}) == replace(first, seconds={})
