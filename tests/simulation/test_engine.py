"""Rounds with faulty sites, through the real apps: a fault costs its site that round and nothing else."""

import itertools
import json
import time
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch

from mmare.errors import RunError, SiteCode
from mmare.metrics.state import MetricState
from mmare.wire.messages import Evaluation, Refusal, Request, Split, Task, Update, decode, encode
from simulation.engine import run_in_process
from tests.federations import (
    SITES,
    all_events,
    claiming,
    events,
    node_configs,
    outcome,
    request_of,
    run_nodes,
    tiny_federation,
    weights,
    while_training,
    with_update,
)
from tests.properties import first_quick

SHORT = ("training.rounds=3",)


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("federation") / "fed")


@pytest.fixture(scope="module")
def healthy(federation, tmp_path_factory):
    """Run folder of an undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "healthy"
    run_nodes(federation, out, settings=SHORT)
    return out


def raises(_site, _header, _payload):
    raise FileNotFoundError(2, "gone", "/data/patients/TCGA-07.nii")


def nan_values(site, header, payload):
    answer, tensors = site(header, payload)
    values = np.frombuffer(tensors, dtype=np.float32).copy()
    values[len(values) // 2] = np.nan
    return answer, values.tobytes()


def infinite(site, header, payload):
    answer, tensors = site(header, payload)
    values = np.frombuffer(tensors, dtype=np.float32).copy()
    values[0], values[1] = np.inf, -np.inf
    return answer, values.tobytes()


def cut(site, header, payload):
    answer, tensors = site(header, payload)
    return answer, tensors[:-8]


def no_tensors(site, header, payload):
    return site(header, payload)[0], b""


def refuses(_site, _header, _payload):
    return encode(Refusal(SiteCode.DATA)), b""


def other_kind(_site, _header, _payload):
    return encode(Request(Task.TRAIN, "run", {})), b""


def other_state(update):
    evaluation = Evaluation(Split.VAL, MetricState.empty(3).to_dict())
    return update.__class__(**{**update.__dict__, "evaluations": (evaluation,)})


def no_evaluation(update):
    return update.__class__(**{**update.__dict__, "evaluations": ()})


def exposing(**changes: int):
    """Other exposures of some blocks than the true ones."""
    return lambda update: replace(update, exposures={**update.exposures, **changes})


def changed_text(old, new):
    def fault(site, header, payload):
        answer, tensors = site(header, payload)
        assert answer.count(old) >= 1
        return answer.replace(old, new), tensors

    return fault


FAULTS = [
    (raises, "node failed: its relay raised an error (Flower error 2)", "node_failed"),
    (refuses, f"refused: S201, {SiteCode.DATA.meaning}", "S201"),
    (nan_values, "values that are not finite", "non_finite"),
    (infinite, "values that are not finite", "non_finite"),
    (cut, "bytes of tensors, expected", "layout"),
    (no_tensors, "0 bytes of tensors, expected", "layout"),
    (claiming(layout="0123456789abcdef"), "tensors in another layout", "layout"),
    (claiming(round=1), "an answer of site 'birch' to round 1", "other"),
    (claiming(site="ash"), "an answer of site 'ash' to round", "other"),
    (claiming(samples=10**9), "1000000000 samples, expected 24 by", "samples"),
    (claiming(samples=0), "0 samples, expected 24 by", "samples"),
    (claiming(samples=-5), "-5 samples, expected 24 by", "samples"),
    (claiming(exposures={"shared": 1}), "exposures of other blocks", "exposure"),
    (with_update(exposing(nonsense=1)), "blocks than the round's: 'nonsense'", "exposure"),
    (with_update(exposing(shared=-1)), "exposure -1 of block shared", "exposure"),
    (with_update(exposing(shared=25)), "exposure 25 of block shared", "exposure"),
    (with_update(exposing(merge=25)), "exposure 25 of block merge", "exposure"),
    (with_update(exposing(merge=0)), "'merge'", "layout"),
    (claiming(blocks=("nonsense",)), "'nonsense'", "layout"),
    (claiming(blocks=("shared",)), "blocks ['shared'], expected", "layout"),
    (claiming(blocks=()), "blocks [], expected", "layout"),
    (
        claiming(trained=Evaluation(Split.VAL, MetricState.empty(2).to_dict())),
        "an unrequested evaluation of the trained model",
        "metrics",
    ),
    (claiming(seconds={"a": 1e308, "b": 1e308}), "seconds", "other"),
    (with_update(other_state), "metric state", "metrics"),
    (with_update(no_evaluation), "other splits than requested", "metrics"),
    (other_kind, "a message of kind 'Request', expected Update", "other"),
    (lambda *_: ("{}", b""), "not a message of this system", "other"),
    (changed_text('"samples":', '"sample":'), "unknown key 'sample'", "other"),
    (changed_text('"train_loss":', '"train_loss":NaN,"x":'), "not a message", "other"),
    (changed_text('"version":2', '"version":3'), "wire version 3, expected 2", "software"),
]


def test_a_site_of_the_neighbouring_version_takes_part_to_the_end(federation, healthy, tmp_path):
    """A hospital that upgraded before the coordinator: the run is, bit for bit, that of one version."""
    own = version("federated-mmare")
    major, minor = own.split(".")[:2]
    neighbour = f"{major}.{int(minor) + 1}.0"

    def upgraded(site, header, payload):
        answer, tensors = site(header, payload)
        return answer.replace(f'"software":"{own}"', f'"software":"{neighbour}"'), tensors

    run_nodes(federation, tmp_path / "run", settings=SHORT, faults={1: upgraded})
    told = {event["site"]: event["software"] for event in events(tmp_path / "run", "roll_call")}
    assert sorted(told.values()) == sorted([neighbour, *[own] * (len(told) - 1)])
    assert outcome(tmp_path / "run") == outcome(healthy)


@pytest.mark.slow
@pytest.mark.parametrize("part", first_quick(0, 1, 2))
def test_a_faulty_site_is_left_out_of_that_round_and_asked_again(federation, tmp_path, part):
    """One run for many faults: one in every even round, with a good round after each."""
    faults = dict(zip(itertools.count(2, 2), FAULTS[part::3], strict=False))

    def fault(site, header, payload):
        number = decode(Request, header).round
        if number in faults:
            return while_training(faults[number][0])(site, header, payload)
        return site(header, payload)

    out = tmp_path / "run"
    rounds = 2 * len(faults) + 1
    settings = (f"training.rounds={rounds}", f"training.patience={rounds}")
    result = run_nodes(federation, out, settings=settings, faults={1: fault})
    left_out = {event["round"]: (event["reason"], event["code"]) for event in events(out, "site_left_out")}
    assert list(left_out) == list(faults)
    for number, (_, reason, code) in faults.items():
        assert reason in left_out[number][0]
        assert left_out[number][1] == code
    assert [
        (entry["round"], entry["site"], entry["reason"], entry["code"]) for entry in result["left_out"]
    ] == [(number, "birch", *words) for number, words in left_out.items()]
    updates = [
        (event["round"], event["site"])
        for event in events(out, "site_update")
        if event["train_loss"] is not None
    ]
    assert sorted(updates) == [
        (number, site)
        for number in range(1, rounds + 1)
        for site in SITES
        if number not in faults or site != "birch"
    ]
    assert result["rounds_run"] == rounds
    assert (out / "model" / "model.safetensors").exists()


def far_away(site, header, payload):
    answer, tensors = site(header, payload)
    values = np.frombuffer(tensors, dtype=np.float32) * np.float32(1e6)
    return encode(replace(decode(Update, answer), norm=0.1)), values.tobytes()


def test_a_long_step_is_measured_by_the_server_and_left_out_where_the_study_says_so(federation, tmp_path):
    out = tmp_path / "run"
    limit = (*SHORT, "federation.max_norm=50")
    result = run_nodes(federation, out, settings=limit, faults={1: while_training(far_away, 2)})
    (left_out,) = result["left_out"]
    assert (left_out["site"], left_out["round"]) == ("birch", 2)
    assert left_out["reason"].endswith("expected at most 50")
    norms = [event["norm"] for event in events(out, "site_update") if event["train_loss"] is not None]
    assert len(norms) == 8
    assert 0 < max(norms) < 50


@pytest.mark.slow
def test_a_fault_changes_the_model_only_through_the_missing_update(federation, healthy, tmp_path):
    raising = tmp_path / "raising"
    run_nodes(federation, raising, settings=SHORT, faults={1: while_training(raises, 2)})
    nan = tmp_path / "nan"
    run_nodes(federation, nan, settings=SHORT, faults={1: while_training(nan_values, 2)})
    checkpoints = [
        (out / "checkpoints" / "round-000003.safetensors").read_bytes()[-5000:]
        for out in (raising, nan, healthy)
    ]
    assert checkpoints[0] == checkpoints[1] != checkpoints[2]


def test_nothing_of_a_sites_failure_reaches_the_run_folder(federation, tmp_path):
    run_nodes(federation, tmp_path / "run", settings=SHORT, faults={1: while_training(raises)})
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert b"TCGA" not in path.read_bytes()
            assert b"nii" not in path.read_bytes()


def test_a_site_that_is_always_wrong_is_named_every_round(federation, tmp_path):
    result = run_nodes(federation, tmp_path / "run", settings=SHORT, faults={2: while_training(raises)})
    assert [(entry["site"], entry["round"]) for entry in result["left_out"]] == [
        ("cedar", 1),
        ("cedar", 2),
        ("cedar", 3),
    ]
    assert result["metrics"]["test"]["sites"].keys() == set(SITES)  # it still answers the test


@pytest.mark.parametrize("task", [Task.DESCRIBE, Task.STATISTICS, Task.EVALUATE])
def test_a_fault_outside_of_training_is_named_too(federation, tmp_path, task):
    def fault(site, header, payload):
        return (
            raises(site, header, payload) if decode(Request, header).task is task else site(header, payload)
        )

    result = run_nodes(federation, tmp_path / "run", settings=SHORT, faults={0: fault})
    assert len(result["left_out"]) >= 1
    assert {entry["site"] for entry in result["left_out"]} <= {"ash", "node 2"}
    assert all("node failed" in entry["reason"] for entry in result["left_out"])
    tested = {"birch", "cedar"} if task in {Task.DESCRIBE, Task.EVALUATE} else set(SITES)
    assert result["metrics"]["test"]["sites"].keys() == tested


@pytest.mark.parametrize("failing", first_quick(1, 2, 3))
def test_under_the_quorum_the_run_stops_and_healthy_sites_finish_it(federation, healthy, tmp_path, failing):
    out = tmp_path / "run"
    faults = {index: while_training(raises, failing) for index in (0, 2)}
    with pytest.raises(RunError, match=rf"1 sites .* round {failing}, expected at least 2") as error:
        run_nodes(federation, out, settings=SHORT, faults=faults)
    assert error.value.exit_code == 1
    last = all_events(out)[-1]
    assert last["event"] == "run_failed"
    assert f"round {failing}" in last["reason"]
    assert {path.name for path in out.iterdir()} <= {
        ".lock",
        "study.toml",
        "rounds.jsonl",
        "checkpoints",
        "spool",
    }
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]  # nothing half-written
    result = run_nodes(federation, out, settings=SHORT)
    assert weights(out) == weights(healthy)
    assert result["metrics"] == json.loads((healthy / "result.json").read_text())["metrics"]
    assert result["left_out"] == []
    assert not (out / "spool").exists()


def test_too_few_at_the_roll_call_stops_before_any_training(federation, tmp_path):
    with pytest.raises(RunError, match="1 sites with training rows took part in the roll call"):
        run_nodes(federation, tmp_path / "run", settings=SHORT, faults={0: raises, 1: raises})
    assert "round_started" not in [event["event"] for event in all_events(tmp_path / "run")]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_round_goes_on_with_exactly_the_quorum(federation, tmp_path):
    result = run_nodes(
        federation,
        tmp_path / "run",
        settings=(*SHORT, "federation.min_sites=1"),
        faults={index: while_training(raises, 2) for index in (0, 1)},
    )
    assert result["rounds_run"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("hanging", first_quick(0, 2))
def test_a_site_that_hangs_costs_its_deadline_only(federation, tmp_path, hanging):

    def hang(site, header, payload):
        time.sleep(1.3)
        return site(header, payload)

    out = tmp_path / "run"
    began = time.monotonic()
    result = run_nodes(
        federation,
        out,
        settings=(*SHORT, "federation.deadline_s=1.0"),
        faults={hanging: while_training(hang, 2)},
    )
    spent = time.monotonic() - began
    late = [entry for entry in result["left_out"] if entry["round"] == 2]
    assert [(entry["site"], entry["round"], entry["code"]) for entry in late] == [(SITES[hanging], 2, "late")]
    in_time = {event["site"] for event in events(out, "site_update") if event["round"] == 2}
    assert in_time == set(SITES) - {SITES[hanging]}
    assert SITES[hanging] in {event["site"] for event in events(out, "site_update") if event["round"] == 3}
    assert result["rounds_run"] == 3
    assert spent < 6


@pytest.mark.slow
def test_a_late_answer_of_an_earlier_round_is_not_taken_for_the_next(federation, tmp_path):

    def slow(site, header, payload):
        time.sleep(1.3)
        return site(header, payload)

    result = run_nodes(
        federation,
        tmp_path / "run",
        settings=(*SHORT, "federation.deadline_s=1.0"),
        faults={2: while_training(slow, 1)},
    )
    assert {(entry["site"], entry["round"]) for entry in result["left_out"]} >= {("cedar", 1)}
    assert result["rounds_run"] == 3


@pytest.mark.slow
def test_every_thread_computes_with_as_many_as_the_sites_give(federation, tmp_path):
    """PyTorch keeps the number per thread; with another number sums are other bits."""
    found = set()

    def counted(site, header, payload):
        answer = site(header, payload)
        found.add(torch.get_num_threads())
        return answer

    before = torch.get_num_threads()
    try:
        for run in ("one", "two"):  # the threads of the second are new, its sites are those of the first
            torch.set_num_threads(3)
            run_nodes(federation, tmp_path / run, settings=("training.rounds=1",), faults={0: counted})
    finally:
        torch.set_num_threads(before)
    assert found == {1}


@pytest.mark.slow
def test_the_engine_runs_with_other_node_configurations(federation, healthy, tmp_path):
    out = tmp_path / "run"
    run_in_process(
        request_of(federation, out, settings=SHORT),
        node_configs=node_configs(3, {1: while_training(raises, 2)}),
    )
    result = json.loads((out / "result.json").read_text())
    assert [entry["site"] for entry in result["left_out"]] == ["birch"]
    assert weights(out) != weights(healthy)


def test_another_number_of_nodes_than_sites_is_refused(federation, tmp_path):
    request = replace(request_of(federation, tmp_path / "run", settings=SHORT), nodes=2)
    with pytest.raises(RunError, match="0 sites"):
        run_in_process(request)
    refused = [event for event in all_events(tmp_path / "run") if event["event"] == "roll_call"]
    assert [event["reason"] for event in refused] == [f"refused: S103, {SiteCode.NODES.meaning}"] * 2
