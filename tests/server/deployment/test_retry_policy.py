import json
from dataclasses import replace
from math import inf

import pytest

from server.deployment.flower_runs import FlowerRun
from server.deployment.retry_policy import (
    BAD_INPUT,
    Attempt,
    Decision,
    Limits,
    Observation,
    RetryCounter,
    RunProgress,
    Step,
    decide,
)
from server.store.events import name_of

LIMITS = Limits(silent_s=200.0, start_s=120.0, ask_s=30.0, last_s=180.0, linger_s=10.0)
NEW = Attempt(run=7, since=1000.0)
LIVES = replace(NEW, app_seen=True)
COMPLETED, FAILED = FlowerRun("finished:completed"), FlowerRun("finished:failed", "out of memory")
STOPPED, RUNNING = FlowerRun("finished:stopped"), FlowerRun("running")


@pytest.mark.parametrize(
    ("attempt", "seen", "step", "reason"),
    [
        pytest.param(NEW, Observation(1001.0, app=False), Step.WAIT, "", id="just submitted"),
        pytest.param(NEW, Observation(1119.0, app=False), Step.ASK, "", id="submitted a while ago"),
        pytest.param(
            NEW,
            Observation(1121.0, app=False),
            Step.END,
            "no ServerApp started within 120 s",
            id="never started",
        ),
        pytest.param(LIVES, Observation(1100.0, app=True, last_write=1099.0), Step.WAIT, "", id="at work"),
        pytest.param(LIVES, Observation(1131.0, app=True, last_write=1100.0), Step.ASK, "", id="silent"),
        pytest.param(
            replace(LIVES, status=RUNNING, asked=1130.0),
            Observation(1140.0, app=True, last_write=1100.0),
            Step.WAIT,
            "",
            id="silent and just asked about",
        ),
        pytest.param(
            LIVES,
            Observation(1131.0, app=True, last_write=1090.0, restarted_at=1100.0, round_s=5.0),
            Step.END,
            "a message was lost when SuperLink or nginx restarted",
            id="does not go on after SuperLink was killed",
        ),
        pytest.param(
            LIVES,
            Observation(1145.0, app=True, last_write=1116.0, restarted_at=1100.0, round_s=5.0),
            Step.WAIT,
            "",
            id="goes on after SuperLink was killed",
        ),
        pytest.param(
            replace(LIVES, asked=1125.0),
            Observation(1145.0, app=True, last_write=1090.0, restarted_at=1100.0, round_s=40.0),
            Step.WAIT,
            "",
            id="rounds take longer than that",
        ),
        pytest.param(
            replace(LIVES, asked=1125.0),
            Observation(1145.0, app=True, last_write=1090.0, restarted_at=1100.0),
            Step.WAIT,
            "",
            id="nobody knows how long rounds take",
        ),
        pytest.param(
            LIVES,
            Observation(1301.0, app=True, last_write=1100.0),
            Step.END,
            "nothing was written to the journal for 201 s",
            id="hangs",
        ),
        pytest.param(
            LIVES, Observation(1201.0, app=True), Step.END, "nothing was written", id="hangs from the start"
        ),
        pytest.param(
            LIVES,
            Observation(1101.0, app=False, last_write=1100.0),
            Step.END,
            "its ServerApp is gone",
            id="killed",
        ),
        pytest.param(
            LIVES,
            Observation(1101.0, app=False, failed="2 sites", last_write=1100.0),
            Step.END,
            "2 sites",
            id="failed and gone",
        ),
        pytest.param(
            LIVES,
            Observation(1101.0, app=True, failed="2 sites", last_write=1100.0),
            Step.WAIT,
            "",
            id="failed, ending",
        ),
        pytest.param(
            replace(LIVES, status=FAILED, asked=1101.0),
            Observation(1105.0, app=True, last_write=1100.0),
            Step.WAIT,
            "",
            id="over for Flower, ending",
        ),
        pytest.param(
            replace(LIVES, status=FAILED, asked=1101.0),
            Observation(1112.0, app=True, last_write=1100.0),
            Step.END,
            "out of memory",
            id="over for Flower, lingers",
        ),
        pytest.param(
            replace(NEW, status=FAILED, asked=1031.0),
            Observation(1031.0, app=False),
            Step.END,
            "out of memory",
            id="over for Flower, never seen",
        ),
        pytest.param(
            replace(LIVES, status=STOPPED, asked=1031.0),
            Observation(1131.0, app=True),
            Step.END,
            "it was stopped with flwr stop",
            id="stopped by hand",
        ),
        pytest.param(
            LIVES,
            Observation(1110.0, app=True, finished=True, result=True, last_write=1100.0),
            Step.WAIT,
            "",
            id="writes its report",
        ),
        pytest.param(
            LIVES,
            Observation(1110.0, app=False, finished=True, result=True, last_write=1100.0),
            Step.DONE,
            "",
            id="done",
        ),
        pytest.param(
            LIVES,
            Observation(1281.0, app=True, finished=True, result=True, last_write=1100.0),
            Step.DONE,
            "",
            id="done, but its report takes too long",
        ),
        pytest.param(
            LIVES,
            Observation(1110.0, app=False, finished=True, result=False, last_write=1100.0),
            Step.END,
            "its ServerApp is gone",
            id="finished without a result",
        ),
    ],
)
def test_what_follows_from_journal_flower_and_processes(attempt, seen, step, reason):
    found = decide(attempt, seen, LIMITS)
    assert found.step is step
    assert found.reason.startswith(reason)
    assert bool(found.reason) == bool(reason)


def test_attempts_without_a_new_checkpoint_are_counted_and_wait_longer_and_longer():
    tries = RetryCounter(most=4)
    pauses = []
    for progress in (True, False, False, True, False, False, False):
        assert tries.after("killed", None, progress=progress) == Decision(Step.SUBMIT, "killed")
        pauses.append(tries.pause_s)
    assert pauses == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 4.0]
    last = tries.after("the disk is full", FAILED, progress=False)
    assert last.step is Step.GIVE_UP
    assert last.reason == (
        "gave up after 4 attempts without a new checkpoint, the last one: the disk is full; "
        "the same command resumes the run"
    )


def test_a_pause_is_never_longer_than_a_minute():
    tries = RetryCounter(most=100)
    for _ in range(99):
        tries.after("killed", None, progress=False)
    assert tries.pause_s == 60.0


@pytest.mark.parametrize("progress", [True, False])
def test_what_cannot_be_run_as_it_is_is_not_tried_again(progress):
    details = f"ServerApp failed with exception: {BAD_INPUT}study.toml: [model] width is 0, expected 1"
    found = RetryCounter(most=5).after("gone", FlowerRun("finished:failed", details), progress=progress)
    assert found == Decision(Step.GIVE_UP, "study.toml: [model] width is 0, expected 1")


def test_an_earlier_server_app_that_has_not_ended_yet_is_no_reason_to_give_up():
    details = "ServerApp failed with exception: /runs/x: another process is running this run"
    found = RetryCounter(most=5).after("busy", FlowerRun("finished:failed", details), progress=False)
    assert found.step is Step.SUBMIT


def test_a_run_that_somebody_stopped_is_not_started_again():
    found = RetryCounter(most=5).after("gone", STOPPED, progress=True)
    assert found.step is Step.GIVE_UP
    assert "flwr stop" in found.reason


# What the journals say


def write(path, *events, mode="a"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        for event, more in events:
            file.write(
                json.dumps({"event": event, "time": "2026-01-01T00:00:00+00:00", "run": "r", **more}) + "\n"
            )


def checkpoint(number):
    return ("checkpoint", {"round": number})


@pytest.fixture
def clock():
    moments = iter(range(1, 1000))
    return lambda: float(next(moments))


def test_an_earlier_attempt_does_not_count_for_the_next(tmp_path, clock):
    journal = tmp_path / "rounds.jsonl"
    write(journal, ("run_started", {}), checkpoint(1), checkpoint(2), ("run_failed", {"reason": "killed"}))
    progress = RunProgress(tmp_path, clock)
    assert (progress.begun, progress.failed, progress.new_checkpoint) == (False, None, False)
    write(journal, ("run_started", {}), ("resumed", {"round": 1, "resumed_from": 1}), checkpoint(2))
    assert [name_of(type(event)) for event in progress.read()] == ["run_started", "resumed", "checkpoint"]
    assert (progress.begun, progress.new_checkpoint) == (True, False)  # round 2 was there before
    write(journal, checkpoint(3))
    progress.read()
    assert progress.new_checkpoint
    write(journal, ("run_failed", {"reason": "2 sites"}))
    progress.read()
    assert (progress.failed, progress.finished, progress.state.name) == ("2 sites", False, "r")
    progress.begin()
    assert (progress.failed, progress.new_checkpoint) == (None, False)


def test_a_round_takes_as_long_as_the_last_ones_did(tmp_path, clock):
    progress = RunProgress(tmp_path, clock)
    assert progress.round_s == 0.0
    rounds = [
        ("aggregated", {"round": n, "seconds": {"wait": wait, "aggregate": 0.5}})
        for n, wait in enumerate([1, 99, 2])
    ]
    write(tmp_path / "rounds.jsonl", ("run_started", {}), *rounds)
    progress.read()
    assert (progress.round_s, progress.round_since) == (2.5, inf)
    write(tmp_path / "rounds.jsonl", ("round_started", {"round": 4}))
    progress.read()
    assert progress.round_since == progress.last_write
    progress.begin()
    assert progress.round_since == inf


def test_the_end_and_the_last_write_are_noticed(tmp_path, clock):
    progress = RunProgress(tmp_path, clock)
    assert progress.read() == []
    assert progress.last_write == 0.0
    write(tmp_path / "rounds.jsonl", ("run_started", {}), ("run_finished", {}))
    progress.read()
    word = progress.last_write
    assert progress.finished
    assert word > 0
    progress.read()
    assert progress.last_write == word


def test_checkpoints_of_sites_that_train_alone_are_progress_and_their_end_is_not_the_runs(tmp_path, clock):
    progress = RunProgress(tmp_path, clock)
    write(tmp_path / "rounds.jsonl", ("run_started", {}))
    write(
        tmp_path / "local" / "ash" / "rounds.jsonl", ("run_started", {}), checkpoint(1), ("run_finished", {})
    )
    assert [name_of(type(event)) for event in progress.read()] == ["run_started"]
    assert progress.new_checkpoint
    assert not progress.finished
    assert progress.last_write > 0


def test_a_run_that_took_the_place_of_another_counts_from_the_start(tmp_path, clock):
    journal = tmp_path / "rounds.jsonl"
    write(journal, ("run_started", {"settings": "old"}), checkpoint(9))
    progress = RunProgress(tmp_path, clock)
    write(journal, ("run_started", {"settings": "new"}), checkpoint(1), mode="w")
    progress.read()
    assert progress.new_checkpoint
