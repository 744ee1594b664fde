"""Whatever shows a run marks the round that the run keeps: the best by ``training.select``."""

import io

import pytest
from rich.console import Console

from server.monitoring.run_state import RunState
from server.monitoring.run_summary import run_status
from simulation.progress import RoundTable
from tests.server.journals import START, a_round, event, started, validated, write
from tests.server.monitoring.test_exporter import exported


def run_of(select):
    """Round 1 has the best balanced accuracy, round 2 the lowest loss."""
    lines = [started(training={"rounds": 9, "select": select})]
    for number, (accuracy, loss) in enumerate([(0.9, 1.5), (0.6, 0.5), (0.8, 0.7)], start=1):
        lines += [*a_round(number, ["ash"], number * 10.0), validated(number, accuracy, loss=loss)]
    return lines


BEST = pytest.mark.parametrize(
    ("select", "best", "accuracy"), [("balanced_accuracy", 1, 0.9), ("loss", 2, 0.6)]
)


@BEST
def test_the_state_and_its_metrics(tmp_path, select, best, accuracy):
    write(tmp_path, run_of(select))
    found = exported(tmp_path)
    assert (found["mmare_round_best"], found["mmare_score_best"]) == ({(): best}, {(): accuracy})
    state = RunState(min_count=0)
    for line in run_of(select):
        state.take(line)
    assert (state.best_round, state.best_score) == (best, accuracy)


@BEST
def test_status(tmp_path, select, best, accuracy):
    console = Console(file=io.StringIO(), width=120)
    console.print(run_status(write(tmp_path, run_of(select))), highlight=False)
    assert f"round {best}, validation balanced accuracy {accuracy:.3f}" in console.file.getvalue()


@BEST
def test_the_live_table(select, best, accuracy):
    console = Console(force_terminal=True, width=120, record=True)
    table = RoundTable(9, console)
    for line in run_of(select):
        table(line)
    console.print(table.render())
    starred = [line.split() for line in console.export_text().splitlines() if " *" in line]
    assert [(line[0], line[2]) for line in starred] == [(str(best), f"{accuracy:.3f}")]


def test_a_round_that_is_validated_again_after_a_resume_counts_as_it_is_now():
    state = RunState(min_count=0)
    again = [
        run_of("loss")[0],
        event("resumed", 61, round=2, resumed_from=2),
        validated(2, 0.7, 62, loss=9.0),
    ]
    for line in [*run_of("loss"), *again]:
        state.take(line)
    assert (state.best_round, state.best_score, state.last_event) == (1, 0.9, START + 62)
