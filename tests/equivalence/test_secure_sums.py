"""Secure sums give what plain averaging gives, to fixed point, and survive sites and programs that end."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mmare.errors import RunError, StudyError
from mmare.package.package import read_package
from mmare.wire.messages import Masked, Request, SecureSum, Task, Unmasked, decode, encode
from server.monitoring.followed_run import read_run
from server.release.release import release_model
from server.store.states import parse_states
from tests.federations import KilledError, all_events, events, outcome, run_nodes, tiny_federation, tiny_study
from tests.properties import first_quick

SITES = ("ash", "birch", "cedar", "elm", "fir")
SECURE = (
    "privacy.secure_sum=true",
    "federation.min_sites=3",
    "training.rounds=2",
    "federation.deadline_s=300",
    'privacy.extra=["calibration", "shapley"]',
)
PLAIN = SECURE[1:]
STRATEGIES = {
    "fedavg": (),
    "exposure": ("federation.strategy=exposure", "federation.options.damping=20.0"),
    "exponent": ("federation.strategy=exposure", "federation.options.exponent=0.5"),
    "fedprox": ("federation.strategy=fedprox",),
    "fedadam": ("federation.strategy=fedadam",),
    "fedsgd": ("federation.strategy=fedsgd", "federation.options.damping=50.0"),
    "drift": ("federation.untouched=drift",),
    "own-scaling": ("modality.ct.scaling=combat", "modality.wsi.scaling=site"),
    "heads-stay": ('federation.local=["head"]',),
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("federation") / "fed", sites=SITES)


@pytest.fixture(scope="module")
def straight(federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    run_nodes(federation, out, settings=SECURE)
    return out


def result(out):
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("settings", first_quick(*((each,) for each in STRATEGIES.values())))
def test_the_model_and_metrics_are_those_of_plain_averaging(federation, tmp_path, settings):
    run_nodes(federation, tmp_path / "plain", settings=[*PLAIN, *settings])
    run_nodes(federation, tmp_path / "secure", settings=[*SECURE, *settings])
    models = [load_file(tmp_path / kind / "model" / "model.safetensors") for kind in ("plain", "secure")]
    for name, value in models[0].items():
        np.testing.assert_allclose(models[1][name], value, atol=2e-5)
    plain, secure = (result(tmp_path / kind) for kind in ("plain", "secure"))
    assert (plain["best_round"], plain["rounds_run"]) == (secure["best_round"], secure["rounds_run"])
    for split in ("validation", "test"):
        before, after = (found["metrics"][split] for found in (plain, secure))
        assert after["pooled"]["n"] == before["pooled"]["n"]
        assert after["pooled"]["log_loss"] == pytest.approx(before["pooled"]["log_loss"], abs=1e-4)
        assert set(after["patterns"]) == set(before["patterns"])
        assert (after["sites"], after["worst_site"]) == ({}, None)
        if split == "test":
            moved = [found["shapley"]["pooled"] for found in (before, after)]
            assert after["shapley"]["sites"] == {}
            for name, expected in moved[0].items():
                assert moved[1][name] == pytest.approx(expected, abs=1e-3)
        grids = [
            parse_states(read_run(tmp_path / kind).states, 2)[split].calibration
            for kind in ("plain", "secure")
        ]
        assert torch.equal(grids[1].counts, grids[0].counts)
        torch.testing.assert_close(grids[1].losses, grids[0].losses, atol=0.1, rtol=1e-4)


def test_nothing_of_a_single_site_stays_at_the_coordinator(straight):
    for line in all_events(straight):
        if line["event"] == "site_update":
            assert (line["samples"], line["norm"], line["train_loss"]) == (0, None, None)
        if line["event"] == "roll_call":
            assert line["counts"] == {"splits": {}, "patterns": {}}
            assert line["samples"] == 1
        if line["event"] in ("validated", "tested", "selected"):
            assert line["metrics"]["sites"] == {}
    summed = [line for line in events(straight, "site_update") if line["summed"]]
    assert len(summed) == 2 * len(SITES)
    assert not (straight / "spool").exists()
    assert events(straight, "aggregated")[0]["train_loss"] > 0


def test_the_model_is_released_and_calibrated_without_counts_of_sites(straight, tmp_path):
    release_model(straight, tmp_path / "model")
    package = read_package(tmp_path / "model")
    assert package.patterns is None
    assert "secure sums" in package.facts.not_stated["patterns"]
    before, after = package.report["calibration"]["log_loss"]["validation"]
    assert after <= before
    assert package.card["test"]["sites"] == {}


def silent(task, sums=tuple(SecureSum), rounds=(2,)):
    """A site that ends at a message of a task and secure sum."""

    def fault(site, header, payload):
        request = decode(Request, header)
        if request.task is task and request.sum in sums and request.round in rounds:
            raise ConnectionError
        return site(header, payload)

    return fault


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "wanted"),
    first_quick(
        (Task.TRAIN, SecureSum.ROUND), (Task.STATISTICS, SecureSum.MOMENTS), (Task.EVALUATE, SecureSum.TEST)
    ),
)
def test_without_a_site_that_falls_silent_the_others_are_summed(federation, tmp_path, task, wanted):
    faults = {4: silent(task, (wanted,), range(4))}
    run_nodes(federation, tmp_path / "run", settings=SECURE, faults=faults)
    left_out = {(line["site"], line["code"]) for line in events(tmp_path / "run", "site_left_out")}
    assert left_out == {("fir", "node_failed")}
    assert result(tmp_path / "run")["rounds_run"] == 2


@pytest.mark.slow
def test_a_sum_is_opened_without_a_minority_of_shares(federation, straight, tmp_path):
    faults = {index: silent(Task.UNMASK, rounds=range(4)) for index in (1, 3)}
    run_nodes(federation, tmp_path / "run", settings=SECURE, faults=faults)
    assert outcome(tmp_path / "run")["model"] == outcome(straight)["model"]


@pytest.mark.slow
@pytest.mark.parametrize("task", first_quick(Task.TRAIN, Task.UNMASK))
def test_too_few_sites_open_nothing_and_the_run_can_go_on(federation, straight, tmp_path, task):
    faults = {index: silent(task) for index in (1, 2, 3)}
    with pytest.raises(RunError, match=r"2 sites (sent their part|helped to open) .* expected at least 3"):
        run_nodes(federation, tmp_path / "run", settings=SECURE, faults=faults)
    run_nodes(federation, tmp_path / "run", settings=SECURE)
    assert outcome(tmp_path / "run") == outcome(straight)


def lying(site, header, payload):
    answer, tensors = site(header, payload)
    if decode(Request, header).task is not Task.UNMASK:
        return answer, tensors
    told = decode(Unmasked, answer)
    return encode(Unmasked(told.site, told.round, dict.fromkeys(told.shares, "00" * 16))), tensors


@pytest.mark.slow
def test_a_wrong_share_is_found_and_done_without(federation, straight, tmp_path):
    run_nodes(federation, tmp_path / "run", settings=SECURE, faults={0: lying})
    assert outcome(tmp_path / "run")["model"] == outcome(straight)["model"]
    with pytest.raises(RunError, match="a site sent a wrong share"):
        run_nodes(federation, tmp_path / "many", settings=SECURE, faults=dict.fromkeys(range(3), lying))


def shorter(site, header, payload):
    answer, tensors = site(header, payload)
    return (answer, tensors[:-8]) if '"Masked"' in answer else (answer, tensors)


@pytest.mark.slow
def test_a_vector_of_another_length_is_left_out(federation, tmp_path):
    run_nodes(federation, tmp_path / "run", settings=SECURE, faults={0: shorter})
    assert {line["site"] for line in events(tmp_path / "run", "site_left_out")} == {"ash"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "number"),
    first_quick(("site_update", 2), ("aggregated", 2), ("scaling", None), ("selected", None)),
)
def test_a_coordinator_that_is_killed_ends_as_if_nothing_had_happened(
    federation, straight, tmp_path, event, number
):
    def listen(line):
        if line["event"] == event and number in (None, line.get("round")) and not seen:
            seen.append(line)
            raise KilledError

    seen: list[object] = []
    with pytest.raises(KilledError):
        run_nodes(federation, tmp_path / "run", settings=SECURE, listeners=(listen,))
    run_nodes(federation, tmp_path / "run", settings=SECURE)
    assert outcome(tmp_path / "run") == outcome(straight)


@pytest.mark.slow
def test_what_leaves_a_site_looks_like_noise(federation, tmp_path):
    seen = []

    def watch(site, header, payload):
        answer, tensors = site(header, payload)
        if '"Masked"' in answer:
            seen.append((decode(Masked, answer), np.frombuffer(tensors, np.int64)))
        return answer, tensors

    run_nodes(federation, tmp_path / "run", settings=SECURE, faults={0: watch})
    assert len(seen) == 1 + 2 + 1 + 1  # moments, rounds, validation, test
    for _, vector in seen:
        high = (vector.view(np.uint64) >> 56).astype(int)  # of plain numbers all 0 or 255
        assert len(set(high)) > min(len(vector) / 4, 100)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"federation": {"strategy": "krum", "min_sites": 3}}, "compares single updates"),
        ({"federation": {"strategy": "fedmedian", "min_sites": 3}}, "compares single updates"),
        ({"federation": {"options": {"gap_step": 0.1}, "min_sites": 3}}, "gap_step"),
        ({"federation": {"wire": "float16", "min_sites": 3}}, "float16"),
        ({"federation": {"min_sites": 2}}, "of two sites each knows the other"),
        ({"federation": {"min_sites": 3}, "training": {"select": "worst_site"}}, "worst_site"),
    ],
)
def test_a_study_that_needs_single_answers_is_refused_with_the_reason(settings, reason):
    with pytest.raises(StudyError, match=reason):
        tiny_study(privacy={"secure_sum": True}, **settings)


def test_the_hash_of_a_study_without_secure_sums_is_as_before():
    assert "secure_sum" not in tiny_study().to_dict()["privacy"]
    assert tiny_study(privacy={"secure_sum": False}).hash == tiny_study().hash
