"""What the report of a run shows of its calibration is what a release decides from the same sums."""

import re
import xml.etree.ElementTree as ET

import pytest

from server.release.decide import decide
from server.release.finished_run import load_finished
from simulation.report.calibration_figures import calibration_drawings
from simulation.report.run_report import write_report
from tests.packages import table_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return table_run(tmp_path_factory.mktemp("tables"))


def decided(run):
    finished = load_finished(run)
    return decide(finished.study, finished.states(), None)


def test_a_page_shows_losses_before_and_after_and_both_figures(run):
    page = write_report(run).read_text()
    found = decided(run)
    made = found.made["calibration"]
    assert f"divided by {made['temperature']:.2f} and shifted by 0.0, {round(made['bias'][1], 3)}" in page
    for pairs in (found.report["calibration"][loss] for loss in ("log_loss", "brier", "ece")):
        for value in pairs["test"]:
            assert f"{value:,.3f}</td>" in page
    assert 'id="reliability"' in page
    assert 'id="decision"' in page
    shapley = load_finished(run).result["metrics"]["test"]["shapley"]
    assert shapley["sites"].keys() == {"ash", "birch", "cedar"}
    for one in (each for found in (shapley["pooled"], shapley["sites"]["ash"]) for each in found.values()):
        assert f"{one['share']:,.3f}<small>{one['mean']:,.3f} of {one['n']}</small>" in page
    assert 'id="shapley-share"' in page


def test_figures_have_a_mark_for_every_bin(run):
    report = decided(run).report
    reliability, decision = calibration_drawings(report)
    bins = [report["calibration"]["reliability"][way]["bins"] for way in ("before", "after")]
    marks = re.findall(r"<use ", reliability.svg)
    assert len(marks) >= sum(map(len, bins))
    for drawing in (reliability, decision):
        root = ET.fromstring(drawing.svg)  # noqa: S314 - our own
        assert root.get("aria-label") == drawing.label
        assert "var(--ink)" in drawing.svg
        assert "#51" not in drawing.svg


def test_a_run_without_states_has_no_figures():
    assert calibration_drawings({}) == []
    assert [
        each.title
        for each in calibration_drawings({"decision_curve": [{"threshold": 0.5, "model": 0.1, "all": 0.0}]})
    ] == ["Decision curve"]
