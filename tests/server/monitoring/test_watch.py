import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mmare.errors import InputError
from server.monitoring.run_alerts import run_alerts
from server.monitoring.run_state import RunState
from server.monitoring.run_summary import run_status
from server.monitoring.watch import BARS, NOT_BEGUN, dashboard, sparkline, watch_run
from server.store.journal import make_run_folder
from tests.server.journals import (
    START,
    a_round,
    aggregated,
    called,
    event,
    left_out,
    started,
    update,
    validated,
    write,
)

SITES = ("ash", "birch", "cedar")
ADMITTED = [started(), *(called(name) for name in SITES)]


def folded(*lines, min_sites=2):
    state = RunState(history=100)
    federation = {"min_sites": min_sites, "deadline_s": 30}
    for line in lines:
        assert state.take({**line, "federation": federation} if line["event"] == "run_started" else line)
    return state


def drawn(view, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return console.file.getvalue()


def names(state, at=10.0):
    return [name for name, _ in run_alerts(state, START + at)]


def test_a_run_is_shown_with_its_sites_curves_and_alerts():
    scores = [validated(number, number / 10, ash=(20, 0.9), birch=(20, 0.4)) for number in (1, 2, 3)]
    lost = [left_out("cedar", number, "no answer before the deadline") for number in (1, 2, 3)]
    state = folded(
        *ADMITTED, *a_round(1, SITES[:2], shared=40), *scores, *lost, event("round_started", 9, round=2)
    )
    page = drawn(dashboard(state, START + 14))
    assert "tiny 0123abcd" in page
    assert "under way, last event 5 s ago" in page
    assert "2 of at most 9" in page
    assert f"{BARS[0]}▅{BARS[-1]}  0.300" in page
    assert "round 3, balanced accuracy 0.300" in page
    assert "late, 3 rounds in a row" in page
    assert "SiteSilent: cedar missed the last 3 rounds" in page
    assert "WorstSiteGap: birch is 0.500 behind" in page


def norms(*values):
    return [update(name, 1, norm=norm) for name, norm in zip(SITES, values, strict=True)]


def failed(reason):
    return event("run_failed", 9, reason=reason)


def refused(*codes):
    return [left_out("ash", number, reason) for number, reason in enumerate(codes, start=1)]


STARVED = [aggregated(number, **{"conditioning.ct": 0, "adapter.ct": 0}) for number in range(5)]
LATE = "no answer before the deadline"
DOWN = "node failed (ValueError)"


@pytest.mark.parametrize(
    ("lines", "at", "expected"),
    [
        pytest.param([], 10, [], id="well"),
        pytest.param([], 47, ["RoundStalled"], id="stalled"),
        pytest.param(refused(LATE, LATE), 10, [], id="late-twice"),
        pytest.param(refused(DOWN, DOWN, DOWN), 10, ["SiteSilent"], id="silent"),
        pytest.param([*refused(DOWN, DOWN, DOWN), update("ash", 4)], 10, [], id="back"),
        pytest.param(refused("refused: S203"), 10, ["NonFinite"], id="non-finite"),
        pytest.param(refused("9 samples, expected 1 to 4"), 10, ["UpdateRejected"], id="samples"),
        pytest.param(refused("refused: S102"), 10, ["PolicyDenied"], id="policy"),
        pytest.param(norms(1, 1, 6), 10, ["NormOutlier"], id="norm"),
        pytest.param(norms(1, 1, 4), 10, [], id="norm-is-usual"),
        pytest.param([called("ash", samples=26_000_000)], 10, ["RowsOutlier"] * 2, id="many-rows-and-more"),
        pytest.param([called("ash", samples=70)], 10, ["RowsOutlier"], id="more-rows-than-before"),
        pytest.param([called("ash", samples=20)], 10, ["RowsOutlier"], id="fewer-rows-than-before"),
        pytest.param([called("ash", samples=41)], 10, [], id="one-row-more"),
        pytest.param([update("ash", 1), *STARVED], 10, ["BlockStarved"], id="starved-block"),
        pytest.param([update("ash", 1), *STARVED[:4]], 10, [], id="starved-for-a-while"),
        pytest.param([aggregated(n) for n in range(5)], 10, ["BlockStarved"] * 2, id="starved-modalities"),
        pytest.param([validated(1, 0.8), validated(2, 0.6)], 10, ["MetricRegression"], id="worse"),
        pytest.param([validated(1, 0.8), validated(2, 0.75)], 10, [], id="a-little-worse"),
        pytest.param([failed("2 … federation.min_sites")], 99, ["QuorumLost"], id="quorum"),
        pytest.param([failed("?")], 99, ["RunFailed"], id="failed"),
        pytest.param([*refused("x"), event("run_finished", 9)], 999, [], id="finished"),
    ],
)
def test_alerts(lines, at, expected):
    assert names(folded(*ADMITTED, *lines), at) == expected


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(1, 80))
def test_a_sparkline_is_as_wide_as_it_may_be_and_keeps_order(series, width):
    line = sparkline(series, width)
    assert len(line) == min(width, len(series))
    assert set(line) <= set(BARS)
    if len(series) <= width:
        heights = [BARS.index(sign) for sign in line]
        order = sorted(range(len(series)), key=lambda place: series[place])
        assert [heights[place] for place in order] == sorted(heights)


def test_it_is_watched_until_it_ends(tmp_path):
    write(tmp_path, [*ADMITTED, event("round_started", 5, round=1)], tail=b'{"event": "run_fin')
    console = Console(file=io.StringIO(), width=120)
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        more = [event("run_finished", 9)] if len(pauses) == 3 else []
        write(tmp_path, more, tail=b"\n", mode="ab")

    watch_run(tmp_path, console, pause, clock=lambda: START)
    assert len(pauses) == 3
    assert "finished" in console.file.getvalue()


def test_an_interrupt_ends_watching_without_an_error(tmp_path):
    write(tmp_path, ADMITTED)

    def interrupt(_):
        raise KeyboardInterrupt

    console = Console(file=io.StringIO(), width=120)
    watch_run(tmp_path, console, interrupt, clock=lambda: START)
    assert "0 of 3 in" in console.file.getvalue()


def test_a_folder_without_a_run_is_refused(tmp_path):
    for show in (run_status, lambda run: watch_run(run, Console(file=io.StringIO()))):
        with pytest.raises(InputError, match="no run here"):
            show(tmp_path)


def test_a_run_that_is_about_to_begin_is_no_missing_run(tmp_path):
    run = tmp_path / "run"
    make_run_folder(run)
    console = Console(file=io.StringIO(), width=120)
    console.print(run_status(run))
    assert console.file.getvalue().strip() == NOT_BEGUN

    console, steps = Console(file=io.StringIO(), width=120), iter([ADMITTED, [event("run_finished", 9)]])
    watch_run(run, console, lambda _: write(run, next(steps), mode="ab"), clock=lambda: START)
    assert "finished" in console.file.getvalue()
