"""Attack: a message so long that reading it takes the memory and the time of the other end."""

import json
import tracemalloc
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.approvals import FixedApprovals
from client.privacy.gate import Gate
from client.relay.worker_link import WorkerLink
from client.training.kept.state import StateStore
from client.training.model_pool import ModelPool
from client.training.service import SiteService
from mmare.errors import SiteCode, StudyError
from mmare.metrics.calibration import CalibrationState
from mmare.metrics.state import N_BINS, N_CALIBRATION_BINS, MetricState
from mmare.models.registry import build_model
from mmare.study.choices import Mode
from mmare.wire.limits import MOST_HEADER, MOST_NAME, MOST_REQUEST
from mmare.wire.messages import (
    Evaluation,
    Refusal,
    Request,
    RollCall,
    Split,
    Task,
    Update,
    WireError,
    decode,
    encode,
)
from mmare.wire.tensors import global_tensors, layout_of
from server.rounds.answer_sizes import most_header
from server.rounds.fleet import Answer
from server.run.folder import check_run
from tests.federations import (
    all_events,
    request_of,
    run_nodes,
    tiny_data,
    tiny_federation,
    tiny_study,
    while_training,
)
from tests.properties import examples

LONG = 21 << 20
STUDY = tiny_study()


def long_header(kind):
    """A well-formed one."""
    text = encode(kind)
    body = json.loads(text)
    body["body"]["held_rounds" if "held_rounds" in body["body"] else "blocks"] = []
    filled = json.dumps(body)
    return filled.replace("[]", "[" + ",".join(["1"] * (LONG // 2)) + "]", 1)


def peak_of(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_coordinator_does_not_parse_a_long_answer():
    header = long_header(RollCall("ash", "", "", {}, None, 4))
    answer = Answer(1, header)

    def read():
        with pytest.raises(WireError, match=r"a header of 2\d+ characters, expected at most"):
            answer.read(RollCall, most_header(STUDY, Request(Task.DESCRIBE, "run", {})))

    assert peak_of(read) < 1 << 20  # parsed, it takes hundreds of MiB


def test_a_site_with_long_answers_is_left_out_and_named(tmp_path):
    def flood(site, header, payload):
        return site(header, payload)[0] + " " * (1 << 20), payload

    federation, out = tiny_federation(tmp_path / "federation"), tmp_path / "run"
    run_nodes(federation, out, settings=("training.rounds=2",), faults={1: while_training(flood, 1)})
    left_out = [event for event in all_events(out) if event["event"] == "site_left_out"]
    assert [(event["site"], event["round"]) for event in left_out] == [("birch", 1)]
    assert "a header of 1" in left_out[0]["reason"]


@pytest.fixture
def service(tmp_path):
    gate = Gate("ash", FixedApprovals([STUDY.hash]), 0)
    return SiteService(
        "ash", lambda _: tiny_data(STUDY), StateStore(tmp_path), ModelPool(torch.device("cpu"), 1), gate=gate
    )


def code_of(service, header, payload=b""):
    return decode(Refusal, service(header, payload)[0]).code


def test_a_site_does_not_parse_a_long_request(service):
    request = encode(Request(Task.DESCRIBE, "run", {**STUDY.to_dict(), "more": "x" * MOST_REQUEST}))
    assert peak_of(lambda: code_of(service, request)) < 1 << 20
    assert code_of(service, request) is SiteCode.MESSAGE


@pytest.mark.parametrize(("length", "fine"), [(MOST_NAME, True), (MOST_NAME + 1, False), (0, False)])
def test_a_run_s_name_has_an_end(service, length, fine):
    header = service(encode(Request(Task.DESCRIBE, "r" * length, STUDY.to_dict())), b"")[0]
    if fine:
        assert decode(RollCall, header).site == "ash"
    else:
        assert decode(Refusal, header).code is SiteCode.MESSAGE


def test_tensors_of_another_length_are_not_copied(service):
    layout = layout_of(global_tensors(build_model(STUDY))).fingerprint
    request = Request(Task.TRAIN, "run", STUDY.to_dict(), 1, train=True, layout=layout)
    payload = bytes(64 << 20)
    assert peak_of(lambda: code_of(service, encode(request), payload)) < 8 << 20
    assert code_of(service, encode(request), payload) is SiteCode.MESSAGE


def test_the_relay_passes_on_nothing_that_is_too_long(tmp_path, caplog):
    link = WorkerLink(tmp_path / "nobody")
    assert decode(Refusal, link(" " * (MOST_REQUEST + 1), b"")[0]).code is SiteCode.MESSAGE
    assert "too long" in caplog.text


def test_a_model_that_cannot_be_sent_is_refused_before_the_run(tmp_path, monkeypatch):
    request = request_of(tiny_federation(tmp_path / "federation"), tmp_path / "run")
    check_run(request)
    monkeypatch.setattr("server.run.folder.MOST_PAYLOAD", 1000)
    with pytest.raises(StudyError, match="too large to send"):
        check_run(request)


def test_a_study_with_a_long_name_runs_under_a_short_one(tmp_path):
    federation = tiny_federation(tmp_path / "federation")
    file = federation / "study.toml"
    file.write_text(file.read_text().replace('"tiny"', '"' + "tiny" * 50 + '"'))
    run_nodes(federation, tmp_path / "run", mode=Mode.LOCAL, settings=("training.rounds=1",))
    names = {event["run"] for event in all_events(tmp_path / "run")}
    assert max(map(len, names)) == MOST_NAME


# What is asked for always fits


@pytest.mark.slow
@examples(25)
@given(st.integers(2, 4), st.integers(1, 3), st.booleans(), st.booleans(), st.booleans())
def test_the_fullest_answer_fits(classes, modalities, subsets, gap, calibration):
    study = tiny_study()
    extra = [replace(study.modalities[0], name=f"m{index}") for index in range(modalities)]
    names = tuple(f"klasse-{index}-é" for index in range(classes))
    study = replace(study, classes=names, positive=None, modalities=tuple(extra))
    full = MetricState(
        confusion=torch.full((classes, classes), 10**6),
        histogram=torch.full((classes, classes, N_BINS), 10**6),
        losses=torch.full((classes, 2), 1 / 3e7, dtype=torch.float64),
        calibration=torch.full((classes, 3, N_CALIBRATION_BINS), 10**6 / 3, dtype=torch.float64),
    ).to_dict()
    patterns = {format(number, f"0{modalities}b"): full for number in range(1, 2**modalities)}
    empty = CalibrationState.empty(classes)
    grid = CalibrationState(empty.counts + 10**6, empty.losses + 10**6 / 3).to_dict() if calibration else {}
    moved = {"rows": [10**6] * modalities, "moved": [10**6 / 3] * modalities}
    evaluations = tuple(
        Evaluation(split, full, patterns, patterns if subsets else {}, grid, moved) for split in Split
    )
    blocks = [f"merge.{index}" for index in range(50)]
    update = Update(
        "ash",
        3,
        10**9,
        dict.fromkeys(blocks, 10**9),
        evaluations,
        1 / 3,
        1 / 3,
        {"evaluate": 1 / 3, "train": 1 / 3},
        "f" * 16,
        tuple(blocks),
        Evaluation(Split.VAL, full) if gap else None,
    )
    request = Request(
        Task.TRAIN,
        "run",
        {},
        3,
        tuple(Split),
        patterns=True,
        train=True,
        gap=gap,
        subsets=subsets,
        calibration=calibration,
        shapley=True,
    )
    most = most_header(study, request, blocks)
    assert len(encode(update)) <= most or most == MOST_HEADER
