"""Attack: a site claims rows that it does not have, so that its model is everyone's."""

from dataclasses import replace

import pytest
import torch

from mmare.errors import Reason, RunError, StudyError
from mmare.models.registry import build_model
from mmare.study.study import load_study, parse_study
from mmare.wire.messages import Moments, RollCall, Split, Statistics, Task, decode, encode
from mmare.wire.messages import Request as Question
from server.rounds.scaling import set_scaling
from tests.federations import (
    all_events,
    claiming,
    events,
    run_nodes,
    tiny_federation,
    tiny_study,
    weights,
    while_training,
    with_update,
)
from tests.properties import first_quick

ROWS = 26_000_000
SHORT = ("training.rounds=1",)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("federation") / "fed")


def boasting(change):
    """A site that says another roll call than the true one."""

    def answer(site, header, payload):
        text, tensors = site(header, payload)
        if decode(Question, header).task is Task.DESCRIBE:
            text = encode(change(decode(RollCall, text)))
        return text, tensors

    return answer


def with_counts(call, samples, **sizes):
    splits = {**call.counts.splits, Split.TRAIN: sizes}
    patterns = {**call.counts.patterns, Split.TRAIN: {}}
    return replace(call, samples=samples, counts=replace(call.counts, splits=splits, patterns=patterns))


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(lambda call: replace(call, samples=ROWS), id="rows-without-patients"),
        pytest.param(lambda call: replace(call, samples=call.samples - 1), id="fewer-rows-than-patients"),
        pytest.param(lambda call: with_counts(call, 5, no=None, yes=6), id="fewer-than-one-class"),
        pytest.param(lambda call: with_counts(call, ROWS, no=ROWS + 5, yes=-5), id="negative"),
        pytest.param(lambda call: with_counts(call, ROWS, maybe=ROWS), id="another-class"),
        pytest.param(lambda call: with_counts(call, ROWS), id="no-counts"),
    ],
)
def test_rows_that_contradict_the_counts_are_refused_at_the_roll_call(federation, tmp_path, claim):
    out = tmp_path / "run"
    run_nodes(federation, out, settings=SHORT, faults={1: boasting(claim)})
    calls = {event["site"]: (event["accepted"], event.get("code")) for event in events(out, "roll_call")}
    assert calls["birch"] == (False, Reason.SAMPLES)
    assert {event["site"] for event in events(out, "site_update")} == {"ash", "cedar"}


@pytest.mark.parametrize("factor", first_quick(1e6, 0, 0.5, 2))
def test_an_update_weighs_what_the_roll_call_said(federation, tmp_path, factor):
    lie = with_update(lambda update: replace(update, samples=int(update.samples * factor)))
    out = tmp_path / "run"
    run_nodes(federation, out, settings=SHORT, faults={1: while_training(lie, 1)})
    left_out = [event for event in all_events(out) if event["event"] == "site_left_out"]
    assert [(event["site"], event["round"], event["code"]) for event in left_out] == [
        ("birch", 1, Reason.SAMPLES)
    ]
    assert "by the rows of the roll call" in left_out[0]["reason"]


@pytest.mark.slow
def test_a_study_bounds_what_a_consistent_lie_weighs(federation, tmp_path):
    """A site that invents counts and rows alike has the study's share, not all."""

    def claim(call):
        return with_counts(call, ROWS, no=ROWS // 2, yes=ROWS // 2)

    def lie(site, header, payload):
        request = decode(Question, header)
        if request.task is Task.DESCRIBE:
            return boasting(claim)(site, header, payload)
        if request.task is Task.TRAIN:
            return claiming(samples=ROWS)(site, header, payload)
        return site(header, payload)

    moved = {}
    for name, settings in {
        "honest": (),
        "open": (),
        "capped": ("federation.max_share=0.4",),
        "capped-honest": ("federation.max_share=0.4",),
    }.items():
        out = tmp_path / name
        faults = {} if "honest" in name else {1: lie}
        run_nodes(federation, out, settings=(*SHORT, *settings), faults=faults)
        moved[name] = weights(out)
    assert moved["honest"] == moved["capped-honest"]  # none of three alike is above
    assert len(set(moved.values())) == 3


def test_the_scaling_of_all_is_capped_as_well():
    study = parse_study({**tiny_study().to_dict(), "federation": {"max_share": 0.5}}, "test")
    sites = {}
    for site, n, mean in (("ash", 10, 1.0), ("birch", 30, 2.0), ("cedar", ROWS, 1000.0)):
        moments = tuple(
            Moments(each.name, n, (n * mean,) * each.width, (n * (mean**2 + 1),) * each.width)
            for each in study.modalities
        )
        sites[site] = Statistics(site, moments)

    class Journal:
        def write(self, event):
            assert event.n == ROWS + 40

    model = build_model(study)
    set_scaling(model, sites, study, Journal())
    expected = 0.5 * 1000 + 0.5 * (10 * 1 + 30 * 2) / 40
    assert torch.allclose(model.scaling.mean_0, torch.full((study.modalities[0].width,), expected))


@pytest.mark.parametrize(
    ("federation", "said"),
    [
        ({"max_share": 0}, "max_share must be above 0 and at most 1, found 0"),
        ({"max_share": 1.1}, "max_share must be above 0 and at most 1, found 1.1"),
        ({"max_share": 0.5, "strategy": "krum"}, "max_share has no effect: strategy krum weighs no site"),
        ({"max_share": "half"}, "max_share"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(federation, said):
    with pytest.raises(StudyError, match=said):
        parse_study({**tiny_study().to_dict(), "federation": federation}, "test")


def test_too_few_sites_for_the_share_are_refused_before_training(federation, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RunError, match=r"3 sites .* share of at most 0\.3 .* expected at least 4"):
        run_nodes(federation, out, settings=("federation.max_share=0.3",))
    assert not events(out, "round_started")
    assert not events(out, "scaling")


def test_a_study_without_the_option_keeps_its_hash(tmp_path):
    """Of a release before there was one."""
    study = tiny_study()
    assert study.hash == "1728d12e00654296d78e20aa5ef0935e26b60800517540e7da501d8146f749e3"
    assert "max_share" not in study.to_dict()["federation"]
    same = parse_study({**study.to_dict(), "federation": {"min_sites": 1, "max_share": 1}}, "test")
    assert same.hash == parse_study({**study.to_dict(), "federation": {"min_sites": 1}}, "test").hash
    capped = study.override(["federation.max_share=0.5"])
    assert capped.hash != study.hash
    federation = tiny_federation(tmp_path / "federation", capped)
    assert load_study(federation / "study.toml") == capped
