"""What is told of predictions: counts in steps, and drift against a plain computation."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.records.audit_log import AuditLog, Entry, Event
from client.telemetry.audit_tally import AuditTally
from client.telemetry.prediction_tally import FEWEST, WINDOW, ModelTally, Prediction, drift_of, prediction_in
from tests.client.telemetry.test_endpoint import Watched, one
from tests.federations import tiny_federation

MODEL = "0123456789ab" + "0" * 52


def line(patient="p", pattern="11", call="yes", seen=30, share=0.5, far=1.0, model=MODEL):
    """The content of a line of the audit log."""
    return {
        "model": model,
        "input": patient,
        "presence": pattern,
        "seen": seen,
        "share": share,
        "call": call,
        "distance": {"ct": far},
    }


def patient(name, pattern, share, far=1.0):
    return Prediction(MODEL, name, pattern, "yes", share == 0, share, {"ct": far})


@given(
    trained=st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any),
    here=st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any),
)
def test_drift_of_presence_is_the_total_variation(trained, here):
    """Although a line tells of its own pattern only: what is rarer here need not be known."""
    expected, found = np.array(trained) / sum(trained), np.array(here) / sum(here)
    lines = [
        patient(f"{slot}-{number}", f"{slot:02b}", expected[slot])
        for slot, count in enumerate(here)
        for number in range(count)
    ]
    drift = drift_of(lines)
    assert drift.presence == pytest.approx(np.abs(expected - found).sum() / 2, abs=1e-12)
    assert drift.never == sum(count for slot, count in enumerate(here) if expected[slot] == 0)
    assert drift.patients == sum(here)


def test_the_last_prediction_of_an_input_counts_and_distances_are_root_mean_squares():
    drift = drift_of(
        [patient("a", "10", 0.5, 9.0), patient("a", "10", 0.5, 1.0), patient("b", "10", 0.5, 2.0)]
    )
    assert drift.patients == 2
    assert drift.distance == {"ct": math.sqrt(2.5)}


def test_the_window_forgets_the_oldest_and_the_counts_do_not():
    tally = ModelTally()
    for number in range(WINDOW + 10):
        tally.take(patient(str(number), "10", 0.5))
    tally.take(patient("10", "10", 0.5))  # again: the latest now
    assert tally.calls == Counter(yes=WINDOW + 11)
    assert len(tally.latest) == WINDOW
    assert next(iter(tally.latest)) == "11"


@pytest.mark.parametrize(
    "content",
    [None, 3, [], {}, line() | {"model": 1}, line() | {"distance": []}, {"model": "a", "input": "b"}],
)
def test_what_is_no_prediction_is_passed_over(content):
    assert prediction_in(content) is None


def test_values_that_are_no_numbers_are_left_out():
    found = prediction_in(line(share=None) | {"distance": {"ct": math.nan, "mri": "far", "wsi": 2}})
    assert (found.share, found.distance) == (None, {"wsi": 2.0})


def test_the_log_tells_models_apart(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    tally = AuditTally(log.path)
    log.append(*(Entry(Event.PREDICTED, prediction=line(str(number))) for number in range(3)))
    tally.read_on()
    log.append(Entry(Event.PREDICTED, prediction=line("a", call="no", model="f" * 64)))
    tally.read_on()
    assert {model: dict(found.calls) for model, found in tally.models.items()} == {
        MODEL: {"yes": 3},
        "f" * 64: {"no": 1},
    }


def test_metrics_of_predictions_tell_no_small_group_and_no_drift_of_few(tmp_path):
    watched = Watched(tiny_federation(tmp_path / "federation"))
    limit = watched.site.min_count or 1

    def predict(numbers, **more):
        entries = [Entry(Event.PREDICTED, prediction=line(str(number), **more)) for number in numbers]
        watched.audit.append(*entries)

    predict(range(FEWEST - 1))
    predict(["again"] * 2, pattern="01", seen=0, share=0.0, call="no")
    found = watched.found()
    assert found["predictions_total"][one(**{"class": "yes", "model": "0123456789ab"})] == _steps(99, limit)
    assert found["predictions_total"][one(**{"class": "no", "model": "0123456789ab"})] == _steps(2, limit)
    whole = found["unseen_pattern_ratio"], found["pattern_drift_ratio"], found["input_distance"]
    assert [*map(dict, whole)] == [
        {one(model="0123456789ab"): _steps(1, limit) / FEWEST},
        {one(model="0123456789ab"): pytest.approx(0.5)},  # 99 % of 11 here, half of them in training
        {one(model="0123456789ab", modality="ct"): pytest.approx(1.0)},
    ]
    other = Watched(tiny_federation(tmp_path / "other"))
    other.audit.append(Entry(Event.PREDICTED, prediction=line("a")))
    assert "pattern_drift_ratio" not in other.found()
    assert "input_distance" not in other.found()


def _steps(number, limit):
    return number - number % limit


SCORES = {
    "model": MODEL,
    "patients": 120,
    "fewest": 30,
    "gaps": {"yes": {"gap": -0.1, "error": 0.04}},
    "auc": 0.7,
    "tested_auc": None,
    "brier": 0.2,
    "log_loss": 0.6,
    "ece": 0.05,
}


@pytest.fixture
def scored(tmp_path):
    """Metrics of a worker whose log holds these scorings."""

    def of(*lines):
        watched = Watched(tiny_federation(tmp_path / "federation"), min_count=20)
        watched.audit.append(*(Entry(Event.SCORED, scores=each) for each in lines))
        return watched.found()

    return of


def test_the_last_scores_are_told(scored):
    found = scored({**SCORES, "auc": 0.6}, SCORES)
    model = one(model=MODEL[:12])
    assert found["scored_predictions"] == {model: 120}
    assert found["scored_auc"] == {model: 0.7}
    assert "scored_tested_auc" not in found
    assert found["calibration_gap"] == {one(model=MODEL[:12], **{"class": "yes"}): -0.1}
    assert found["calibration_gap_error"] == {one(model=MODEL[:12], **{"class": "yes"}): 0.04}


@pytest.mark.parametrize(
    "few", [{"patients": FEWEST - 1}, {"fewest": 19}, {"gaps": None}, {"patients": "many"}]
)
def test_scores_of_few_patients_and_odd_lines_are_not_told(scored, few):
    assert not {name for name in scored({**SCORES, **few}) if name.startswith(("scored", "calibration"))}
