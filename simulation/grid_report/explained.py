"""What a grid's models say beyond their calls: calibration, net benefit, and what predictions rest on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from simulation.grid_report.method_tables import Keys, keys_of, mean
from simulation.grid_report.page import Figures, Part, Row, Table
from simulation.grid_report.records import Arm, GridRecord
from simulation.grid_report.values import CALIBRATED, POOLED, SHAPLEY, THRESHOLD, Rows
from simulation.report.calibration_figures import Curve, decision_curves, reliability_curves
from simulation.report.figures import Drawing, Interval, interval_figure, site_dash, site_variable
from simulation.report.results import MODES

__all__ = ["calibration_parts", "shapley_parts", "threshold_table"]

_CROWD = 10  # methods beyond which curves are a tangle
_LOSSES = {"log_loss": "Log loss", "brier": "Brier score", "ece": "ECE"}
_CALLED = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "f1": "F1"}
_BINS = 10  # of a reliability diagram
_NOTE = "Temperature and shift are chosen on the validation rows of all sites, by sums of losses."


def calibration_parts(grid: GridRecord) -> list[Part]:
    """Losses before and after calibration; per data and mode, the curves of its methods."""
    columns = {
        f"{loss}_{way}": f"{title}, {way}" for loss, title in _LOSSES.items() for way in ("before", "after")
    }
    groups: list[tuple[str, list[Row]]] = []
    figures: list[Part] = []
    for title, arms in _groups(grid):
        told = [arm for arm in arms if grid.values.estimate(arm, "log_loss_before", CALIBRATED).runs]
        rows = [
            Row(grid.name(arm.method), [mean(grid, arm, metric, CALIBRATED) for metric in columns])
            for arm in told
        ]
        groups.append((title, rows))
        keys = keys_of(grid, arms, by_data=False)
        if drawings := list(_drawings(grid, f"explained-{len(groups)}", title, arms, keys)):
            figures.append(Figures(drawings, [keys[arm] for arm in arms if grid.done[arm]]))
    return [Table("Losses on test rows", "Method", list(columns.values()), groups, [_NOTE]), *figures]


def threshold_table(grid: GridRecord) -> Table:
    """Classes by the threshold beside the more probable class."""
    groups = [
        (
            title,
            [
                Row(
                    grid.name(arm.method),
                    [mean(grid, arm, metric, rows) for metric in _CALLED for rows in (POOLED, THRESHOLD)],
                )
                for arm in arms
                if grid.values.names(arm, THRESHOLD.kind)
            ],
        )
        for title, arms in _groups(grid)
    ]
    columns = [title for name in _CALLED.values() for title in (name, f"{name}, by threshold")]
    return Table(
        "The more probable class, or by threshold; test rows of all sites", "Method", columns, groups
    )


def shapley_parts(grid: GridRecord) -> list[Part]:
    """Per data and mode: each method's share of each modality, of all test rows and of each site's."""
    parts: list[Part] = []
    for number, (title, arms) in enumerate(_groups(grid)):
        modalities = grid.modalities(arms[0].regime)
        groups = [
            (
                grid.name(arm.method),
                [
                    Row(
                        site or "All sites",
                        [mean(grid, arm, f"share_{name}", Rows(SHAPLEY, site)) for name in modalities],
                        strong=not site,
                    )
                    for site in sorted(grid.values.names(arm, SHAPLEY))
                ],
            )
            for arm in arms
        ]
        parts.append(Table(f"{title}: share of each modality", "Test rows of", modalities, groups))
        keys = keys_of(grid, arms, by_data=False)
        found = {
            (name, arm): grid.values.estimate(arm, f"share_{name}", Rows(SHAPLEY, ""))
            for name in modalities
            for arm in arms
        }
        marks = [
            Interval(name, each.value, each.low, each.high, site_variable(keys[arm].position))
            for (name, arm), each in found.items()
            if each.value is not None
        ]
        if marks and len(arms) <= _CROWD:
            label = f"{title}: share of each modality in what predictions rest on, all test rows"
            drawn = interval_figure(f"shapley-{number}", label, marks, 0.0)
            parts.append(Figures([Drawing(f"Shapley shares: {title}", label, drawn)], list(keys.values())))
    return parts


def _groups(grid: GridRecord) -> Iterator[tuple[str, list[Arm]]]:
    """Arms with one model for all sites, by data and mode."""
    for regime in grid.regimes:
        for mode in grid.modes:
            arms = [arm for arm in grid.of(regime, mode) if grid.done[arm]]
            if arms and mode != "local":
                yield f"{regime.title}, {MODES[mode].lower()}", arms


def _drawings(
    grid: GridRecord, identity: str, title: str, arms: Sequence[Arm], keys: Keys
) -> Iterator[Drawing]:
    reports = {arm: [each.decisions for each in grid.records if each.arm == arm] for arm in arms}
    if len(arms) > _CROWD:
        return
    reliable = {arm: _reliability(found) for arm, found in reports.items()}
    if any(reliable.values()):
        label = f"{title}: observed against predicted probability, after calibration where there is one"
        lines = [_curve(keys, arm, points) for arm, points in reliable.items() if points]
        drawn = reliability_curves(f"{identity}-reliability", label, lines)
        yield Drawing(f"Reliability: {title}", label, drawn)
    helped = {arm: _net_benefit(found) for arm, found in reports.items()}
    if any(map(len, helped.values())):
        label = f"{title}: net benefit by threshold probability, of treating all dashed"
        told = {arm: found for arm, found in helped.items() if len(found)}
        lines = [_curve(keys, arm, _points(found["model"])) for arm, found in told.items()]
        treat_all = _points(next(iter(told.values()))["all"])
        drawn = decision_curves(f"{identity}-decision", label, lines, treat_all)
        yield Drawing(f"Decision curve: {title}", label, drawn)


def _points(values: pd.Series[float]) -> list[tuple[float, float]]:
    return list(zip(values.index.to_list(), values.to_list(), strict=True))


def _curve(keys: Keys, arm: Arm, points: Sequence[tuple[float, float]]) -> Curve:
    position = keys[arm].position
    return Curve(points, site_variable(position), dashes=site_dash(position))


def _reliability(reports: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Mean predicted and observed of each bin, over the rows of all seeds."""
    bins = [
        (int(each["mean"] * _BINS), each["n"], each["n"] * each["mean"], each["n"] * each["observed"])
        for report in reports
        if (found := report.get("calibration", {}).get("reliability"))
        for each in found.get("after", found["before"])["bins"]
    ]
    sums = pd.DataFrame(bins, columns=["bin", "n", "predicted", "observed"]).groupby("bin").sum()
    return list(zip(sums.predicted / sums.n, sums.observed / sums.n, strict=True))


def _net_benefit(reports: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Columns ``model`` and ``all`` by threshold, means over seeds."""
    points = [point for report in reports for point in report.get("decision_curve") or ()]
    return pd.DataFrame(points, columns=["threshold", "model", "all"]).groupby("threshold").mean()
