"""The long frame of a grid: what it derives from results, by an account of its own."""

import statistics

import pytest

from simulation.grid_report.records import load_records
from simulation.grid_report.report import write_grid_report
from simulation.grid_report.values import POOLED, WORST, Rows
from tests.simulation.grid.grid_maker import SITES, make_grid, write_lines
from tests.simulation.grid_report.test_report import MMIST, grid_text, model

ALONE = grid_text(MMIST, model("mmare", "MMARE"), modes='["local"]')


def test_of_sites_that_trained_alone_the_mean_holds_only_what_all_define(tmp_path):
    lines = make_grid(tmp_path, ALONE)
    tests = [[line["result"]["local"][site]["metrics"]["test"] for site in SITES] for line in lines]
    tests[1][2]["pooled"]["auc"] = None
    write_lines(tmp_path, lines)
    grid = load_records(tmp_path)
    (arm,) = grid.arms
    auc = [statistics.fmean(test["pooled"]["auc"] for test in tests[seed]) for seed in (0, 2)]
    found = grid.values.estimate(arm, "auc")
    assert (found.runs, found.value, found.sd) == pytest.approx((2, *of(auc)))
    accuracy = [statistics.fmean(test["pooled"]["accuracy"] for test in seed) for seed in tests]
    assert grid.values.estimate(arm, "accuracy").value == pytest.approx(statistics.fmean(accuracy))


def test_the_worst_of_sites_that_trained_alone_is_on_its_own_rows(tmp_path):
    lines = make_grid(tmp_path, ALONE)
    own = [
        {site: line["result"]["local"][site]["metrics"]["test"]["own"]["balanced_accuracy"] for site in SITES}
        for line in lines
    ]
    grid = load_records(tmp_path)
    (arm,) = grid.arms
    lowest, spread = (grid.values.estimate(arm, metric, WORST) for metric in ("balanced_accuracy", "spread"))
    assert (lowest.value, lowest.sd) == pytest.approx(of([min(scores.values()) for scores in own]))
    assert spread.value == pytest.approx(
        statistics.fmean(max(scores.values()) - min(scores.values()) for scores in own)
    )
    assert sorted(grid.values.lowest(arm).elements()) == sorted(min(scores, key=scores.get) for scores in own)
    for site in SITES:
        mine, theirs = (Rows("sites", site, trained) for trained in ("", site))
        assert (
            grid.values.by_seed(arm, "auc", mine).tolist() == grid.values.by_seed(arm, "auc", theirs).tolist()
        )


def test_a_grid_in_which_nothing_is_defined_has_a_report(tmp_path):
    modes = '["federated", "local"]'
    lines = make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE"), model("drim", "DRIM"), modes=modes))
    for line in lines:
        for key in ("parameters", "seconds", "bytes", "rounds_run", "best_round", "versions"):
            del line["result"][key]
        line["seconds"] = None
        line["result"] |= {"local": {}, "metrics": {"test": {"pooled": {"n": None, "auc": None}}}}
    write_lines(tmp_path, lines)
    grid = load_records(tmp_path)
    assert grid.values.estimate(grid.arms[0], "auc", POOLED).value is None
    assert grid.values.difference(*grid.arms[:2], "auc").mean is None
    _, markdown = write_grid_report(tmp_path)
    assert "| MMARE | 3 of 3 | — |" in markdown.read_text(encoding="utf-8")


def of(values):
    return statistics.fmean(values), statistics.stdev(values)
