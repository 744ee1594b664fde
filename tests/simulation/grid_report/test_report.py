"""The report of a grid: what its tables say is what pandas and scipy make of the same results."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from mmare.errors import InputError
from simulation.cli import app
from simulation.grid.file import load_grid
from simulation.grid_report.figures import curves
from simulation.grid_report.method_tables import keys_of
from simulation.grid_report.records import is_grid, load_records
from simulation.grid_report.report import write_grid_report
from tests.simulation.grid.grid_maker import SITES, line_of, make_grid, write_lines
from tests.simulation.report.test_run_report import Page, check_page

MINUS = "\N{MINUS SIGN}"
HEAD = """[grid]
name = "made-up"
title = "{title}"
tables = {tables}
seeds = {seeds}
modes = {modes}
subsets = {subsets}
skip = {skip}
"""
IXI = """[[data]]
name = "with clinical"
task = "sex"
prepare = ["ixi", "--with-clinical"]
[[data]]
name = "without clinical"
task = "sex"
prepare = ["ixi"]
"""
MMIST = """[[data]]
name = "with clinical"
task = "vital12"
prepare = ["mmist"]
"""


def grid_text(
    *parts: str,
    title: str = "Made up",
    tables: str = "[]",
    seeds: str = "[0, 1, 2]",
    modes: str = '["federated"]',
    subsets: str = "false",
    skip: str = "[]",
) -> str:
    head = HEAD.format(title=title, tables=tables, seeds=seeds, modes=modes, subsets=subsets, skip=skip)
    return head + "".join(parts)


def model(name: str, label: str, *settings: str) -> str:
    return f'[[model]]\nname = "{name}"\nlabel = "{label}"\nset = {json.dumps(settings)}\n'


def lost(rate: float, mechanism: str = "mcar") -> str:
    return f'[[missing]]\nmechanism = "{mechanism}"\nrate = {rate}\n'


SEX = grid_text(
    IXI,
    lost(0.2),
    lost(0.6),
    model("drim", "DRIM"),
    model("hypermm", "HyperMM"),
    model("mmare", "MMARE"),
    tables='["5.4"]',
    skip='[{ model = "hypermm", data = "with clinical" }, { model = "drim", data = "without clinical" }]',
)


def frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """Pooled test metrics, one row per cell: an account of its own."""
    rows = []
    for line in lines:
        test = line["result"].get("metrics", {}).get("test", {})
        rows.append({**line["settings"], "set": "", "missing_arguments": "", **test.get("pooled", {})})
    return pd.DataFrame(rows)


def pages(folder: Path) -> tuple[Page, str]:
    html, markdown = write_grid_report(folder)
    page = Page(html)
    check_page(page)
    return page, markdown.read_text(encoding="utf-8")


def rows_of(page: Page, caption: str) -> list[list[str]]:
    """The rows of the table with a caption, groups included."""
    source = page.source[page.source.index(f"<caption>{caption}") :]
    body = source[: source.index("</table>")]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, flags=re.DOTALL)
    found = []
    for row in rows:
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)
        found.append([re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", cell)).strip() for cell in cells])
    return found


def after(rows: list[list[str]], group: str) -> list[list[str]]:
    start = next(i for i, row in enumerate(rows) if row == [group])
    end = next((i for i in range(start + 1, len(rows)) if len(rows[i]) == 1), len(rows))
    return rows[start + 1 : end]


def spread(values: pd.Series) -> str:
    return f"{values.mean():.3f} ± {values.std():.3f}"


def interval(first: pd.Series, second: pd.Series) -> str:
    """scipy's paired t interval, as it is shown."""
    found = stats.ttest_rel(first, second)
    low, high = found.confidence_interval(0.95)
    text = f"{(first - second).mean():+.3f} {low:+.3f} to {high:+.3f}".replace("-", MINUS)
    return text + (" not distinguishable" if low <= 0 <= high else "")


def test_what_runs_say_a_reader_must_know_stands_above_the_tables_once(tmp_path):
    lines = make_grid(tmp_path, SEX)
    told = ["Features of t1: UNTRAINED: random weights", "one model stands for another"]
    for line in lines[:3]:
        line["result"]["notes"] = told
    write_lines(tmp_path, lines)
    page, markdown = pages(tmp_path)
    for note in told:
        assert page.source.count(f"{note}.") == 1
        assert page.source.index(note) < page.source.index("<table")
        assert markdown.count(f"{note}.") == 1


def test_a_thesis_table_has_our_values_beside_the_printed_ones(tmp_path):
    lines = frame(make_grid(tmp_path, SEX))
    page, markdown = pages(tmp_path)
    rows = after(rows_of(page, "Table 5.4. Sex on IXI"), "20 % missing rate")
    by_name = {row[0]: row for row in rows}
    cells = lines[(lines.label == "DRIM") & (lines.rate == 0.2)]
    metrics = ("accuracy", "balanced_accuracy", "auc", "f1", "precision", "recall")
    printed = ("0.7564", "0.7455", "0.8614", "0.8000", "0.7103", "0.9157")
    expected = [f"{spread(cells[key])} thesis {old}" for key, old in zip(metrics, printed, strict=True)]
    assert by_name["DRIM, with clinical"] == ["DRIM, with clinical", "3 of 3", *expected]
    cell = f"{spread(cells.auc)}"
    assert re.search(rf"\| DRIM, with clinical \| 3 of 3 \|.*{re.escape(cell)}.*thesis 0\.8614", markdown)
    assert by_name["UniLMMV"][1:3] == ["not run", "— thesis 0.7308"]
    assert "note 1" in next(name for name in by_name if name.startswith("HyperMM"))
    assert "F1 is above the mean of precision and recall (0.780 against 0.690)" in page.text
    assert "MMARE, without clinical" in by_name
    assert "thesis 0.8318" in by_name["MMARE, without clinical"][3]
    assert "516 subjects" in markdown


def test_best_is_bold_and_second_underlined_within_a_group(tmp_path):
    lines = frame(make_grid(tmp_path, SEX))
    page, markdown = pages(tmp_path)
    for rate in (0.2, 0.6):
        means = lines[lines.rate == rate].groupby(["label", "data"]).balanced_accuracy.mean()
        order = means.round(3).sort_values(ascending=False)
        assert order.is_unique, "the made-up values must not tie"
        group = lines[(lines.rate == rate)].groupby(["label", "data"]).balanced_accuracy
        best, second = (f"{order.iloc[i]:.3f} ± {group.std()[order.index[i]]:.3f}" for i in (0, 1))
        assert f"<strong>{best}</strong>" in page.source
        assert f"<u>{second}</u>" in page.source
        assert f"**{best}**" in markdown
        assert f"<ins>{second}</ins>" in markdown
    assert page.source.count("<strong>0") == 2 * 6  # two groups, six metrics


def test_differences_are_those_of_scipy(tmp_path):
    lines = frame(make_grid(tmp_path, SEX)).sort_values("seed")
    page, _ = pages(tmp_path)
    rows = after(rows_of(page, "Less MMARE, with clinical"), "60 % missing rate")
    by_name = {row[0]: row for row in rows}
    some = lines[lines.rate == 0.6]
    ours = some[(some.label == "MMARE") & (some.data == "with clinical")].reset_index()
    drim = some[some.label == "DRIM"].reset_index()
    for place, metric in enumerate(("accuracy", "balanced_accuracy", "auc", "f1", "precision", "recall"), 2):
        assert by_name["DRIM, with clinical"][place] == interval(drim[metric], ours[metric])
    assert by_name["DRIM, with clinical"][1] == "3"


def test_simple_models_are_compared_seed_by_seed_and_a_loss_is_a_sentence(tmp_path):
    lines = make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE"), model("drim", "DRIM")))
    better = {"logistic regression": [0.03, 0.05, 0.04], "gradient boosting": [-0.01, 0.08, -0.02]}
    for line in lines:
        if line["settings"]["label"] == "MMARE":
            auc, seed = line["result"]["metrics"]["test"]["pooled"]["auc"], line["settings"]["seed"]
            gains = {name: {"auc": auc + gaps[seed]} for name, gaps in better.items()}
            line["references"] = {"this run": {"auc": auc}, **gains}
    write_lines(tmp_path, lines)
    page, markdown = pages(tmp_path)
    (row,) = after(rows_of(page, "AUC, federated, and less each simple model"), "with clinical")
    zeros = pd.Series([0.0] * 3)
    assert row[0] == "MMARE"
    assert row[3:] == [interval(zeros, pd.Series(gaps)) for gaps in better.values()]
    low, high = stats.ttest_1samp(better["logistic regression"], 0).confidence_interval(0.95)
    loss = "MMARE, federated, on with clinical loses to logistic regression by 0.040 of AUC"
    assert f"{loss} ({low:.3f} to {high:.3f})." in page.text
    assert loss in markdown
    assert "1 of the methods here lose to a simple model" in page.text


def test_classes_by_a_threshold_stand_beside_the_more_probable_class(tmp_path):
    lines = make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE"), model("drim", "DRIM")))
    for line in lines:
        test = line["result"]["metrics"]["test"]
        if line["settings"]["label"] == "MMARE":
            scores = {
                "n": 9,
                "accuracy": 0.5,
                "balanced_accuracy": 0.6 + line["settings"]["seed"] / 10,
                "f1": None,
            }
            test["operating_point"] = {"threshold": 0.2, "pooled": scores, "sites": {}}
    write_lines(tmp_path, lines)
    page, _ = pages(tmp_path)
    rows = after(rows_of(page, "The more probable class, or by threshold"), "with clinical, federated")
    assert [row[0] for row in rows] == ["MMARE"]
    pooled = frame(lines)[frame(lines).label == "MMARE"]
    assert rows[0][1:] == [
        spread(pooled.accuracy),
        "0.500 ± 0.000",
        spread(pooled.balanced_accuracy),
        "0.700 ± 0.100",
        spread(pooled.f1),
        "—",
    ]


def test_missing_cells_are_missing_and_pairs_only_are_compared(tmp_path):
    text = grid_text(MMIST, model("mmare", "MMARE"), model("drim", "DRIM"), model("late-mean", "Mean"))
    make_grid(tmp_path, text)
    plan = load_grid(tmp_path / "grid.toml")
    keep = [
        cell
        for cell in plan.cells
        if cell.model.label != "Mean" and (cell.model.label, cell.seed) not in {("MMARE", 0), ("DRIM", 2)}
    ]
    lines = [line_of(cell, "made-up") for cell in keep]
    write_lines(tmp_path, lines)
    failed = next(cell for cell in plan.cells if cell.model.label == "Mean")
    why = "model.width is 0, expected at least 1"
    failure = {"cell": failed.id, "settings": failed.settings, "reason": why}
    also = {"cell": keep[0].id, "settings": keep[0].settings, "reason": "finished since"}
    (tmp_path / "failures.jsonl").write_text(json.dumps(failure) + "\n" + json.dumps(also) + "\n")
    page, markdown = pages(tmp_path)
    rows = after(rows_of(page, "vital12, federated"), "with clinical")
    assert [row[:3] for row in rows if row[0] == "Mean"] == [["Mean", "0 of 3", "missing"]]
    assert next(row for row in rows if row[0] == "DRIM")[1] == "2 of 3"
    pair = after(rows_of(page, "Less MMARE"), "with clinical")
    told = next(row for row in pair if row[0] == "DRIM")
    table = frame(lines).pivot_table(index="seed", columns="label", values="auc")
    assert told[1] == "1"
    assert told[4] == f"{table.DRIM[1] - table.MMARE[1]:+.3f} one pair".replace("-", MINUS)
    assert ["Mean", "with clinical", "federated", "0, 1, 2"] in rows_of(page, "No result yet")
    assert why in page.text
    assert "finished since" not in page.text
    assert "1 cell failed" in page.text
    assert "5 of 9 cells have no result yet" in markdown


def test_increments_are_told_to_the_step_before_and_to_the_first(tmp_path):
    steps = "".join(
        f'[[strategy]]\nname = "{name}"\n'
        f'set = ["federation.strategy={strategy}", "training.rounds={number}"]\n'
        for number, (name, strategy) in enumerate(
            (("plain", "fedavg"), ("+ one", "exposure"), ("+ two", "exposure")), 1
        )
    )
    lines = frame(make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE"), steps, seeds="[0, 1, 2, 3]")))
    page, markdown = pages(tmp_path)
    wide = lines.pivot_table(index="seed", columns="strategy", values="auc")
    rows = after(rows_of(page, "AUC: mean ± sd"), "with clinical: MMARE")
    assert [row[0] for row in rows] == ["plain", "+ one", "+ two"]
    assert rows[0][2:] == [spread(wide["plain"]), "", "", ""]
    assert rows[2][2:] == [
        spread(wide["+ two"]),
        "4",
        interval(wide["+ two"], wide["+ one"]),
        interval(wide["+ two"], wide["plain"]),
    ]
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    site = min(records[0]["result"]["metrics"]["test"]["sites"])
    own = {
        (line["settings"]["strategy"], line["settings"]["seed"]): line["result"]["metrics"]["test"]["sites"][
            site
        ]["auc"]
        for line in records
    }
    one, two = (pd.Series({seed: own[name, seed] for seed in range(4)}) for name in ("+ one", "+ two"))
    by_site = rows_of(page, "with clinical: MMARE, less the step before")
    assert next(row for row in by_site if row[0] == site)[3] == interval(two, one)
    assert "Worst site's balanced accuracy: mean ± sd" in markdown
    assert "+ two" in after(rows_of(page, "vital12, federated"), "with clinical")[2][0]


def test_data_without_a_finished_cell_are_listed_as_missing_and_fill_no_table(tmp_path):
    text = grid_text(IXI, lost(0.2), lost(0.6), model("mmare", "MMARE"), model("drim", "DRIM"), tables="[]")
    (tmp_path / "grid.toml").write_text(text)
    cells = load_grid(tmp_path / "grid.toml").cells
    gone = [place for place, cell in enumerate(cells) if cell.missing.rate == 0.6]
    make_grid(tmp_path, text, leave_out=gone)
    page, _ = pages(tmp_path)
    assert len(gone) == len(cells) / 2
    before, after_it = page.source.split("What is missing</h2>")
    assert "MCAR 20 %" in before
    assert "MCAR 60 %" not in before
    assert "MCAR 60 %" in after_it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tables", "titles", "count"),
    [
        pytest.param('["5.4"]', ["(MCAR)"], 4, id="colours-by-method-and-data"),
        pytest.param("[]", ["(MCAR): with clinical", "(MCAR): without clinical"], 2, id="colours-by-method"),
    ],
)
def test_no_two_curves_of_a_drawing_have_one_colour(tmp_path, tables, titles, count):
    models = model("drim", "DRIM") + model("mmare", "MMARE")
    lines = frame(make_grid(tmp_path, grid_text(IXI, lost(0.2), lost(0.6), models, tables=tables)))
    page, _ = pages(tmp_path)
    assert re.findall("<figcaption>AUC against the missing rate (.*?)</figcaption>", page.source) == titles
    grid = load_records(tmp_path)
    drawn = curves(grid, grid.arms, keys_of(grid, grid.arms, by_data=tables != "[]"))
    assert list(drawn) == [f"AUC against the missing rate {title}" for title in titles]
    for trends in drawn.values():
        assert len({trend.position for trend in trends}) == len(trends) == count
    auc = lines[(lines.label == "DRIM") & (lines.data == "with clinical")].groupby("rate").auc
    (expected,) = (trend.points for trend in next(iter(drawn.values())) if trend.position == 0)
    assert np.array(expected) == pytest.approx(auc.agg(["mean", "std"]).reset_index().to_numpy())


@pytest.fixture(scope="module")
def three_ways(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes")
    text = grid_text(
        MMIST,
        model("mmare", "MMARE"),
        model("unimodal", "CT alone", "model.modality=ct"),
        modes='["federated", "centralised", "local"]',
        subsets="true",
    )
    lines = make_grid(folder, text)
    return lines, *pages(folder)


def test_gain_of_each_site(three_ways):
    lines, page, _ = three_ways
    gain: dict[str, dict[str, list[float]]] = {site: {"federated": [], "local": []} for site in SITES}
    for line in lines:
        if line["settings"]["label"] != "MMARE" or line["settings"]["mode"] == "centralised":
            continue
        for site in SITES:
            if line["settings"]["mode"] == "local":
                block = line["result"]["local"][site]["metrics"]["test"]["own"]
            else:
                block = line["result"]["metrics"]["test"]["sites"][site]
            gain[site][line["settings"]["mode"]].append(block["balanced_accuracy"])
    rows = {row[0]: row for row in rows_of(page, "with clinical: MMARE, each site")}
    above = 0
    for site, values in gain.items():
        joined, alone = pd.Series(values["federated"]), pd.Series(values["local"])
        assert rows[site][3:6] == [spread(alone), spread(joined), interval(joined, alone)]
        above += stats.ttest_rel(joined, alone).confidence_interval(0.95).low > 0
    assert f"of 3 sites {above} gain" in page.text


def test_each_model_at_every_site(three_ways):
    lines, page, _ = three_ways
    rows = {row[0]: row for row in rows_of(page, "with clinical: MMARE, balanced accuracy; trained as")}
    alone = [
        line["result"]["local"]["south"]["metrics"]["test"]
        for line in lines
        if line["settings"]["mode"] == "local" and line["settings"]["label"] == "MMARE"
    ]
    for place, site in enumerate(SITES, 1):
        expected = pd.Series([test["sites"][site]["balanced_accuracy"] for test in alone])
        assert rows["south"][place] == spread(expected)
    assert rows["south"][4] == spread(pd.Series([test["pooled"]["balanced_accuracy"] for test in alone]))
    assert {"Federated", "Centralised"} < rows.keys()
    shares = [float(share) for share in re.findall(r"--share:([\d.]+)", page.source)]
    assert min(shares) == 0
    assert max(shares) == 1


def test_ways_to_train_side_by_side(three_ways):
    lines, page, _ = three_ways
    rows = {
        row[0]: row for row in after(rows_of(page, "Test rows of all sites, mean"), "with clinical: MMARE")
    }
    table = frame(lines)
    table = table[table.label == "MMARE"].pivot_table(index="seed", columns="mode", values="auc")
    assert rows["Centralised"][3] == spread(table.centralised)
    assert rows["Centralised"][7] == interval(table.centralised, table.federated)
    alone = [
        statistics.fmean(line["result"]["local"][site]["metrics"]["test"]["pooled"]["auc"] for site in SITES)
        for line in lines
        if line["settings"]["mode"] == "local" and line["settings"]["label"] == "MMARE"
    ]
    assert rows["Each site alone, mean over sites"][3] == spread(pd.Series(alone))


def test_one_modality_at_test_time_beside_a_model_of_its_own(three_ways):
    lines, page, markdown = three_ways
    rows = rows_of(page, "One modality at test time, federated")
    told = {
        label: pd.Series(
            [
                line["result"]["metrics"]["test"]["subsets"]["1000"]["balanced_accuracy"]
                for line in lines
                if line["settings"]["label"] == label and line["settings"]["mode"] == "federated"
            ]
        )
        for label in ("MMARE", "CT alone")
    }
    (row,) = after(rows, "with clinical: ct only")
    assert row[:5] == [
        "MMARE",
        "90",
        spread(told["MMARE"]),
        spread(told["CT alone"]),
        interval(told["MMARE"], told["CT alone"]),
    ]
    assert after(rows, "with clinical: mri only")[0][3:5] == ["not run", "—"]
    subsets = [line for line in markdown.splitlines() if line.startswith("| ct + mri |")]
    assert len(subsets) == 2  # of a federated and a centralised table
    assert "of patients who have" in markdown


def test_patterns_worst_site_and_cost(three_ways):
    lines, page, _ = three_ways
    federated = [
        line["result"]
        for line in lines
        if line["settings"]["mode"] == "federated" and line["settings"]["label"] == "MMARE"
    ]
    lowest = pd.Series([result["metrics"]["test"]["worst_site"]["balanced_accuracy"] for result in federated])
    assert page.row("MMARE", "Which site (seeds)")[1] == spread(lowest)
    pattern = pd.Series(
        [result["metrics"]["test"]["patterns"]["0111"]["balanced_accuracy"] for result in federated]
    )
    rows = rows_of(page, "with clinical, federated: balanced accuracy, mean ± sd, of patients who have")
    told = next(row for row in rows if row[0] == "mri + wsi + clinical")
    assert told[2].startswith(f"{spread(pattern)} AUC 0.")
    cost = page.row("MMAREfederated", "Trainable parameters")
    assert cost[1] == "960,130"
    train = [result["seconds"]["train"] / result["rounds_run"] for result in federated]
    assert cost[7].startswith(f"{statistics.fmean(train):.3g}")
    assert page.row("west", "Why")[1].startswith("S203: training or evaluation gave")
    assert page.row("torch", "Software")[1] == "2.15.0"


def test_achieved_rates_and_curves_over_rates(tmp_path):
    lines = make_grid(tmp_path, SEX)
    page, _ = pages(tmp_path)
    found: dict[int, float] = {}
    for line in lines:
        if (line["settings"]["data"], line["settings"]["rate"]) == ("with clinical", 0.2):
            cells = [
                one for site in line["amputation"]["sites"].values() for one in site["modalities"].values()
            ]
            n = sum(one["patients"] for one in cells)
            found[line["settings"]["seed"]] = sum(one["patients"] * one["achieved"] for one in cells) / n
    row = page.row("with clinicalMCAR 20 %", "Asked")
    assert row[1] == "0.200"
    assert row[7] == spread(pd.Series(list(found.values())))
    drawn = {attrs["id"] for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"}
    assert drawn == {
        "table-5-4-federated-radar-0",
        "table-5-4-federated-radar-2",
        "table-5-4-federated-rates-0",
    }


def test_losses_are_named_without_dashes(tmp_path):
    losses = (
        '[[missing]]\narguments = ["--pattern", "exclusive"]\n'
        + lost(0.4, "mnar")
        + 'arguments = ["--driver", "label", "--slope", "2"]\n[[missing]]\n'
    )
    make_grid(tmp_path, grid_text(MMIST, losses, model("mmare", "MMARE"), seeds="[0]"))
    told = [regime.loss for regime in load_records(tmp_path).regimes]
    assert told == ["pattern exclusive", "MNAR 40 %, driver label, slope 2", "as it is"]


def test_models_by_their_size_in_table_5_6(tmp_path):
    make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE"), model("drim", "DRIM"), tables='["5.6"]'))
    page, markdown = pages(tmp_path)
    drawn = {attrs["id"] for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"}
    assert drawn == {f"table-5-6-federated-size-{key}" for key in ("balanced_accuracy", "auc", "macro_f1")}
    assert page.row("DRIM", "#Params. (M)")[5] == "17.595thesis 16.9"
    assert "Balanced accuracy against trainable parameters" in markdown


def test_an_ablation_stands_beside_its_printed_row_whatever_its_name(tmp_path):
    variants = "".join(
        f'[[ablation]]\nname = "{name}"\nset = ["model.conditioning={cond}", "model.fusion={fusion}"]\n'
        for name, cond, fusion in (("A", "false", "mean"), ("B", "true", "pairwise"))
    )
    make_grid(tmp_path, grid_text(IXI, lost(0.6), model("mmare", "MMARE"), variants, tables='["5.8"]'))
    page, _ = pages(tmp_path)
    rows = {row[0]: row for row in rows_of(page, "Table 5.8.") if len(row) > 1}
    assert "thesis 0.8019" in rows["A"][2]
    assert "thesis 0.8135" in rows["B"][2]
    assert rows["Cond. &amp; Mean"][1] == "not run"
    assert "sex, federated" in page.source  # the data without clinical are in a table of their own


def test_a_method_that_only_some_data_have_has_a_colour_of_its_own(tmp_path):
    other = MMIST.replace("with clinical", "without clinical").replace('"mmist"', '"mmist", "--without", "x"')
    data = MMIST + other
    models = model("mmare", "MMARE") + model("drim", "DRIM")
    skip = '[{ label = "DRIM", data = "with clinical" }]'
    make_grid(tmp_path, grid_text(data, models, skip=skip))
    page, _ = pages(tmp_path)
    legend = page.source[page.source.index('aria-label="Colours of the methods"') :].split("</ul>")[0]
    assert re.findall(r"var\(--(site-\d)\)", legend) == ["site-0", "site-1"]
    assert [row[0] for row in after(rows_of(page, "vital12, federated"), "without clinical")] == [
        "MMARE",
        "DRIM",
    ]


def test_results_of_other_settings_are_not_counted(tmp_path):
    lines = make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE")))
    changed = grid_text(MMIST, model("mmare", "Renamed"))
    old = {**lines[0], "cell": "0123456789ab"}
    write_lines(tmp_path, [*lines, old])
    (tmp_path / "grid.toml").write_text(changed)
    page, _ = pages(tmp_path)
    assert "Not counted: 1 of results.jsonl's lines" in page.text
    assert len(load_records(tmp_path).records) == 3
    assert "Renamed" in page.text  # a label is no setting
    (tmp_path / "grid.toml").unlink()
    assert len(load_records(tmp_path).records) == 3


def test_metrics_that_cannot_be_of_one_set_of_predictions_are_named(tmp_path):
    lines = make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE")))
    page, _ = pages(tmp_path)
    assert "0 cells break it" in page.text
    lines[1]["result"]["metrics"]["test"]["pooled"].update(f1=0.7796, precision=0.6641, recall=0.7166)
    write_lines(tmp_path, lines)
    page, _ = pages(tmp_path)
    assert f"cannot be of one set of predictions: cells {lines[1]['cell']}." in page.text


@pytest.mark.slow
def test_odd_names_are_shown_and_break_nothing(tmp_path):
    odd = "<b>&'x' | _y_ 病院 {{ 7*7 }}"
    text = grid_text(
        MMIST.replace("with clinical", odd), model("mmare", odd), model("drim", "a *b* `c`"), title=odd
    )
    make_grid(tmp_path, text)
    page, markdown = pages(tmp_path)
    assert odd in page.text
    assert "a *b* `c`" in page.text
    assert "<b>&" not in page.source
    assert "<b>" not in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("| a ")]
    assert tables
    assert all("a \\*b\\* \\`c\\`" in line for line in tables)
    widths: list[int] = []
    for line in markdown.splitlines():
        if not line.startswith("|"):
            widths.clear()
            continue
        widths.append(len(re.findall(r"(?<!\\)\|", line)))
        assert widths[-1] == widths[0]


def test_both_pages_have_the_same_tables(three_ways):
    _, page, markdown = three_ways
    captions = re.findall(r"<caption>(.*?)</caption>", page.source)
    assert captions
    assert len(captions) == len(re.findall(r"^\| --- \|", markdown, flags=re.MULTILINE))
    for heading in re.findall(r"<h2[^>]*>(.*?)</h2>", page.source):
        assert f"## {heading.replace('&#39;', chr(39))}" in markdown


@pytest.mark.slow
def test_same_results_same_pages(tmp_path):
    made = []
    for name in "ab":
        make_grid(tmp_path / name, grid_text(MMIST, model("mmare", "MMARE"), model("drim", "DRIM")))
        made.append([path.read_bytes() for path in write_grid_report(tmp_path / name)])
    assert made[0] == made[1]
    assert b"/tmp" not in made[0][0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param("", "results.jsonl: no cell of the grid has finished yet", id="empty"),
        pytest.param("{whole}\n{half}", r"line 2 is half-written or damaged: delete the line", id="torn"),
        pytest.param("[1]\n", "line 1 is half-written or damaged", id="no-object"),
        pytest.param('{"cell": "a"}\n', "line 1 does not name the data, model, mode", id="no-settings"),
        pytest.param("{other}\n", "line 1 needs a seed and a mode that is one of local", id="mode"),
        pytest.param("{bare}\n", "line 1 has no result with 'metrics'", id="no-result"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, content, sentence):
    line = make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE")))[0]
    texts = {
        "whole": line,
        "other": {**line, "settings": {**line["settings"], "mode": "sideways"}},
        "bare": {**line, "result": {}},
    }
    for name, entry in texts.items():
        content = content.replace(f"{{{name}}}", json.dumps(entry))
    content = content.replace("{half}", json.dumps(line)[:200])
    (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(InputError, match=sentence) as caught:
        write_grid_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_folders_without_results(tmp_path):
    assert not is_grid(tmp_path)
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert str(result.exception) == f"no finished run below {tmp_path}"
    make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE")))
    (tmp_path / "results.jsonl").unlink()
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "no such file: no cell of the grid has finished yet" in str(result.exception)


@pytest.mark.slow
def test_one_seed_has_the_interval_of_its_rows_and_an_undefined_value_its_count(tmp_path):
    lines = make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE"), seeds="[0]"))
    pooled = lines[0]["result"]["metrics"]["test"]["pooled"]
    pooled["ci95"] = {"auc": [0.25, 0.75]}
    write_lines(tmp_path, lines)
    page, _ = pages(tmp_path)
    assert page.row("MMARE", "Seeds")[4] == f"{pooled['auc']:.3f}0.250 to 0.750"
    lines = make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE"), model("drim", "DRIM")))
    for line in lines[::2]:
        line["result"]["metrics"]["test"]["pooled"]["auc"] = None
    lines[1]["result"]["metrics"]["test"]["pooled"]["auc"] = None
    write_lines(tmp_path, lines)
    page, _ = pages(tmp_path)
    assert [page.row(name, "Seeds")[4] for name in ("MMARE", "DRIM")] == [
        "—",
        f"{frame(lines[3::2]).auc.mean():.3f} ± {frame(lines[3::2]).auc.std():.3f}2 of 3 seeds",
    ]


def test_the_command_writes_both_pages(tmp_path):
    make_grid(tmp_path, grid_text(MMIST, model("mmare", "MMARE"), seeds="[0]"))
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(tmp_path / "report.html"), str(tmp_path / "report.md")]
    assert "±" not in rows_of(Page(tmp_path / "report.html"), "vital12, federated")[2][2]
