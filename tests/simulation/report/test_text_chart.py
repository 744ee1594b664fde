"""The bar chart of text."""

import pytest
from rich.console import Console

from simulation.report.results import line_up, load_run
from simulation.report.text_chart import auc_chart
from tests.simulation.report.test_results import make_run


@pytest.fixture
def chart(tmp_path):
    runs = [make_run(tmp_path / "alone", "local", auc=0.4), make_run(tmp_path / "joined", auc=0.75)]
    console = Console(width=100, record=True)
    console.print(auc_chart(line_up([load_run(run) for run in runs])))
    return console.export_text().splitlines()


def test_a_bar_is_as_long_as_the_way_from_chance_to_one(chart):
    lengths = {line.split()[0]: line.count("━") for line in chart[2:]}
    assert lengths == {"x": 0, "y": 0, "federated": 22}  # of 44; below chance there is none


def test_numbers_stand_beside_the_bars(chart):
    assert "30 test rows" in chart[0]
    assert chart[-1].split()[1] == "0.750"
    assert chart[-1].rstrip().endswith("0.650 to 0.850")
