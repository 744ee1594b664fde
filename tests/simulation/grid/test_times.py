"""A grid of times to an event: its cells run, and its report is by concordance."""

import json

import pandas as pd
import pytest

from simulation.grid.cell import Workplace, run_cell
from simulation.grid.file import load_grid
from simulation.grid.progress import _score
from simulation.grid_report.report import write_grid_report
from tests.simulation.test_survival import FLAGS, TABLE, TIMES

WORDS = ", ".join(
    json.dumps(word) for word in ("table", "--table", "{table}", *FLAGS.split(), *TIMES.split())
)
GRID = f"""
[grid]
name = "times"
seeds = [0, 1]
set = ["training.rounds=2"]
[sources]
table = "t.csv"
[[data]]
name = "table"
task = "months"
prepare = [{WORDS}]
[[missing]]
[[model]]
name = "mmare"
[[model]]
name = "linear"
set = ["survival.hazard=cox"]
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    (folder / "t.csv").write_text(TABLE)
    (folder / "grid.toml").write_text(GRID)
    grid = load_grid(folder / "grid.toml")
    place = Workplace.make(grid.sources, folder / "out", [f"table={folder / 't.csv'}"])
    lines = [{**run_cell(cell, place), "grid": "times"} for cell in grid.cells]
    (folder / "out" / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder / "out"


@pytest.mark.slow
def test_cells_of_times_run_and_say_their_concordance(out):
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert all(line["result"]["task"] == "survival" and line["decisions"] == {} for line in lines)
    value = lines[0]["result"]["metrics"]["test"]["pooled"]["concordance"]
    assert _score(lines[0]["result"]) == f"concordance {value:.3f}, "


def test_the_report_is_by_concordance_over_seeds_and_sites(out):
    _, markdown = write_grid_report(out)
    page = markdown.read_text()
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    values = pd.Series(
        [
            line["result"]["metrics"]["test"]["pooled"]["concordance"]
            for line in lines
            if line["settings"]["model"] == "linear"
        ]
    )
    assert f"{values.mean():.3f} ± {values.std():.3f}" in page
    for words in ("Survival, federated", "Concordance on each site's own test rows", "east", "Log loss"):
        assert words in page
    assert "Balanced accuracy" not in page
