"""A simulated run keeps a round now and then; one that dies repeats the others and ends the same."""

import pytest

from simulation.engine import run_in_process
from simulation.pace import Pace
from tests.federations import (
    KilledError,
    events,
    outcome,
    request_of,
    run_nodes,
    tiny_federation,
    tiny_study,
)

SHORT = ("training.rounds=4",)


def test_a_run_that_dies_between_kept_rounds_ends_the_same(tmp_path):
    def die(event):
        if event["event"] == "site_update" and event["round"] == 4:
            raise KilledError

    federation, out = tiny_federation(tmp_path / "fed"), tmp_path / "run"
    run_nodes(federation, tmp_path / "straight", settings=SHORT)
    with pytest.raises(KilledError):
        run_in_process(request_of(federation, out, settings=SHORT), (die,))
    assert [event["round"] for event in events(out, "checkpoint")] == [1]
    run_in_process(request_of(federation, out, settings=SHORT))
    assert outcome(out) == outcome(tmp_path / "straight")
    assert events(out, "optimizer_state_lost") == []


def test_all_who_ask_get_the_same_answer_and_without_a_pace_every_round_is_kept():
    pace = Pace()
    with pace.relaxed(tiny_study()):
        first = [pace.keeps("run", number) for number in (1, 2, 3)]
        assert first == [pace.keeps("run", number) for number in (1, 2, 3)] == [True, False, False]
    assert pace.keeps("run", 3)
