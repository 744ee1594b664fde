"""Calibration, net benefit and Shapley shares of a grid, against the lines of its results."""

import pandas as pd
import pytest

from simulation.grid_report.explained import _net_benefit, _reliability
from tests.simulation.grid.grid_maker import SITES, make_grid, write_lines
from tests.simulation.grid_report.test_report import after, grid_text, model, pages, rows_of, spread

TEXT = grid_text(
    '[[data]]\nname = "made up"\ntask = "synthetic"\nprepare = ["synthetic"]\n',
    model("mmare", "MMARE"),
    model("drim", "DRIM"),
    modes='["federated", "local"]',
)
LOSSES = ("log_loss", "brier", "ece")


def explained(line, number):
    """A line with what sites told; made-up numbers that differ from cell to cell."""
    names = line["modalities"]
    if line["settings"]["mode"] == "local":
        return line
    weights = [number + slot + 1 for slot in range(len(names))]
    shares = {
        name: {"n": 20, "share": each / sum(weights), "mean": each / 100}
        for name, each in zip(names, weights, strict=True)
    }
    line["result"]["metrics"]["test"]["shapley"] = {
        "pooled": shares,
        "sites": {
            site: {name: {**values, "share": 1 / len(names)} for name, values in shares.items()}
            for site in SITES
        },
    }
    bins = [
        {"n": 10 + number, "mean": 0.1 + number / 100, "observed": 0.2},
        {"n": 5, "mean": 0.8, "observed": 0.7},
    ]
    line["decisions"] = {
        "calibration": {
            **{loss: {"test": [0.5 + number / 10, 0.4 + number / 10]} for loss in LOSSES},
            "reliability": {"rows": "test", "before": {"bins": bins, "ece": 0.1}},
        },
        "decision_curve": [
            {"threshold": 0.2, "model": 0.1 * number, "all": 0.3},
            {"threshold": 0.4, "model": 0.05, "all": 0.1},
        ],
    }
    return line


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid") / "grid"
    lines = [explained(line, number) for number, line in enumerate(make_grid(folder, TEXT))]
    write_lines(folder, lines)
    page, markdown = pages(folder)
    return lines, page, markdown


def of(lines, name):
    return [line for line in lines if line["settings"]["model"] == name and "decisions" in line]


def test_losses_before_and_after_are_means_over_seeds(grid):
    lines, page, _ = grid
    rows = after(rows_of(page, "Losses on test rows"), "made up, federated")
    assert [row[0] for row in rows] == ["MMARE", "DRIM"]
    for row, name in zip(rows, ("mmare", "drim"), strict=True):
        tested = [line["decisions"]["calibration"]["log_loss"]["test"] for line in of(lines, name)]
        assert row[1:3] == [spread(pd.Series(values)) for values in zip(*tested, strict=True)]


def test_shares_of_modalities_are_told_of_all_rows_and_of_each_site(grid):
    lines, page, markdown = grid
    rows = after(rows_of(page, "made up, federated: share of each modality"), "MMARE")
    assert [row[0] for row in rows] == ["All sites", *SITES]
    shares = pd.DataFrame(
        [
            {
                name: one["share"]
                for name, one in line["result"]["metrics"]["test"]["shapley"]["pooled"].items()
            }
            for line in of(lines, "mmare")
        ]
    )
    assert rows[0][1:] == [spread(shares[name]) for name in shares]
    assert rows[1][1].startswith("0.333")
    assert "share of each modality" in markdown
    assert "Shapley shares: made up, federated" in page.source
    assert "Shapley shares: made up, local" not in page.source


def test_curves_are_over_the_rows_of_all_seeds(grid):
    lines, page, _ = grid
    assert "Reliability: made up, federated" in page.source
    assert "Decision curve: made up, federated" in page.source
    reports = [line["decisions"] for line in of(lines, "mmare")]
    bins = [report["calibration"]["reliability"]["before"]["bins"] for report in reports]
    low, high = _reliability(reports)
    n = sum(each[0]["n"] for each in bins)
    assert low == pytest.approx((sum(each[0]["n"] * each[0]["mean"] for each in bins) / n, 0.2))
    assert high == pytest.approx((0.8, 0.7))
    helped = _net_benefit(reports)
    first = [report["decision_curve"][0]["model"] for report in reports]
    assert helped.model[0.2] == pytest.approx(sum(first) / len(first))


def test_older_lines_have_no_such_section(tmp_path):
    make_grid(tmp_path / "grid", TEXT)
    page, _ = pages(tmp_path / "grid")
    assert "Losses on test rows" not in page.source
    assert "share of each modality" not in page.source
