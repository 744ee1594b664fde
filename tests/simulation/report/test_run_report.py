"""The report page: what it shows is what the run folder says, and it needs nothing but itself."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mmare.errors import InputError
from simulation.report.run_report import write_comparison, write_report

DASH = "\N{EN DASH}"
THREE = ("cptac", "tcga-bp", "tcga-other")
ODD = ('<b>&"x"', "Charité + 病院 $x$ %s {{ 7*7 }}", "a-very-long-site-name-" * 6)
KEYS = ("accuracy", "balanced_accuracy", "auc", "f1", "precision", "recall", "macro_f1", "macro_precision")
ALL_KEYS = (*KEYS, "macro_recall", "log_loss", "brier", "ece")
PATTERNS = ("1111", "1011", "0011", "0111", "0010")


@dataclass
class Plan:
    """What a made-up run is like."""

    sites: tuple[str, ...] = THREE
    classes: tuple[str, ...] = ("dead", "alive")
    mode: str = "federated"
    seed: int = 0
    rounds: int = 30
    best: int = 17
    left_out: list[dict[str, Any]] = field(default_factory=list)
    withheld: bool = False
    null_site: str | None = None
    level: float = 0.7
    learning_rate: str = "1e-4"


def measured(rng: random.Random, n: int, level: float, null: bool = False) -> dict[str, Any]:
    """Metrics of some rows; without one of the classes most are not defined."""
    values: dict[str, Any] = {"n": n}
    for key in ALL_KEYS:
        values[key] = round(min(max(rng.gauss(level, 0.04), 0.05), 0.98), 6)
    half = 1.0 / math.sqrt(n)
    values["ci95"] = {key: [max(values[key] - half, 0.0), min(values[key] + half, 1.0)] for key in ALL_KEYS}
    if null:
        for key in ("balanced_accuracy", "auc", "f1", "macro_f1"):
            values[key] = values["ci95"][key] = None
    return values


def block(plan: Plan, rng: random.Random, n: int, level: float) -> dict[str, Any]:
    sites = {
        site: measured(rng, max(n // len(plan.sites) - 3 * i, 6), level - 0.02 * i, site == plan.null_site)
        for i, site in enumerate(plan.sites)
    }
    return {"pooled": measured(rng, n, level), "sites": sites}


def make_run(folder: Path, plan: Plan) -> Path:
    """Write a run folder as a run leaves it."""
    rng = random.Random(f"{plan.mode}{plan.seed}")  # noqa: S311 - made-up numbers
    folder.mkdir(parents=True)
    classes = ", ".join(f'"{name}"' for name in plan.classes)
    slots = (("ct", 512), ("mri", 512), ("clinical", 768), ("genomics", 768))
    modalities = "".join(
        f'[[modality]]\nname = "{name}"\nkind = "features"\nwidth = {width}\n' for name, width in slots
    )
    (folder / "study.toml").write_text(
        f'[study]\nname = "mmist-vital12"\nclasses = [{classes}]\npositive = "{plan.classes[-1]}"\n'
        f"seed = {plan.seed}\n{modalities}"
        f"[training]\nlearning_rate = {plan.learning_rate}\noversample = {{ {plan.classes[0]} = 6.0 }}\n"
    )
    test = block(plan, rng, 124, plan.level)
    worst = min(
        (site for site in plan.sites if site != plan.null_site),
        key=lambda site: test["sites"][site]["balanced_accuracy"],
    )
    test["patterns"] = {p: measured(rng, 40 - 7 * i, plan.level, p == "0010") for i, p in enumerate(PATTERNS)}
    test["worst_site"] = {"site": worst, "balanced_accuracy": test["sites"][worst]["balanced_accuracy"]}
    test["over"] = {name: list(plan.sites) for name in plan.classes}
    result = {
        "study": "mmist-vital12", "model": "mmare", "strategy": "fedavg", "mode": plan.mode,
        "seed": plan.seed, "backend": "inprocess", "rounds_run": plan.rounds, "best_round": plan.best,
        "parameters": {"trainable": 1483906, "federated": 1483906},
        "bytes": {"down_per_round": 17_806_872, "up_per_round": 17_809_931},
        "seconds": {"total": 96.25, "setup": 3.5, "rounds": 90.0, "train": 61.0},
        "metrics": {"validation": block(plan, rng, 62, plan.level + 0.02), "test": test},
        "versions": {"torch": "2.15.0", "flwr": "1.41.2", "python": "3.11.7"}, "left_out": plan.left_out,
    }  # fmt: skip
    if plan.mode == "local":
        del result["metrics"]
        result["local"] = {
            site: {"best_round": 5 + i, "metrics": {"test": alone(plan, rng, site)}}
            for i, site in enumerate(plan.sites)
        }
        for i, site in enumerate(plan.sites):
            part = folder / "local" / (site if "/" not in site else str(i))
            part.mkdir(parents=True)
            write_journal(
                part, Plan((site,), plan.classes, rounds=20, best=5 + i, withheld=plan.withheld), rng
            )
    else:
        write_journal(folder, plan, rng)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def alone(plan: Plan, rng: random.Random, site: str) -> dict[str, Any]:
    tested = block(plan, rng, 124, plan.level - 0.08)
    return {**tested, "own": tested["sites"][site]}


def reported(plan: Plan, rng: random.Random) -> dict[str, Any]:
    """Counts of a roll call; small ones withheld."""

    def count(high: int) -> int | None:
        n = rng.randint(0, high)
        return None if plan.withheld and 0 < n < 5 else n

    sizes = {"train": 300, "val": 40, "test": 80}
    return {
        "splits": {s: {name: count(n) for name in plan.classes} for s, n in sizes.items()},
        "patterns": {s: {p: count(n // 4) for p in PATTERNS} for s, n in sizes.items()},
    }


def write_journal(folder: Path, plan: Plan, rng: random.Random) -> None:
    events: list[dict[str, Any]] = []

    def say(event: str, **fields: object) -> None:
        events.append({"event": event, "time": "2025-11-23T14:41:07Z", "run": "r1", **fields})

    say("run_started", settings={"model": {"fusion": "pairwise"}}, resumed_from=None)
    for site in plan.sites:
        say("roll_call", site=site, accepted=True, reason=None, counts=reported(plan, rng))
    say("scaling", modality="ct", n=431, sites=list(plan.sites))
    size = 5_935_624
    for number in range(1, plan.rounds + 1):
        say("round_started", round=number)
        out = {entry["site"] for entry in plan.left_out if entry["round"] == number}
        for site in sorted(out):
            say("site_left_out", round=number, site=site, reason="S203")
        for site in sorted(set(plan.sites) - out):
            loss = 0.3 + 0.5 * math.exp(-number / 9) + rng.gauss(0, 0.02)
            work = {
                "samples": 140,
                "seconds": rng.uniform(0.5, 2.0),
                "norm": 1.0 / number,
                "train_loss": loss,
            }
            say("site_update", round=number, site=site, bytes_up=size, bytes_down=size, **work)
        seconds = {"wait": 1.5, "aggregate": 0.011, "evaluate": 0.003, "checkpoint": 0.02}
        say("aggregated", round=number, seconds=seconds, exposure={"head": 431})
        level = plan.level - 0.25 * math.exp(-number / 6)
        say("validated", round=number, metrics=block(plan, rng, 62, level))
        say("checkpoint", round=number, file=f"{number}.safetensors", bytes=size)
    say("selected", round=plan.best)
    say("tested")
    say("run_finished", rounds_run=plan.rounds, best_round=plan.best, seconds=96.25)
    (folder / "rounds.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n")


class Page(HTMLParser):
    """What a browser would find in a page."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(self.source)
        assert self.open == [], "unclosed tags"
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, head: str, after: str = "") -> list[str]:
        """The cells of the first row that starts with ``head``, in or after the row with ``after``."""
        cells = [[re.sub(r"\s+", " ", cell).strip() for cell in row] for row in self.rows]
        start = next((i for i, row in enumerate(cells) if not after or after in row), None)
        assert start is not None, f"no row with {after}"
        return next(row for row in cells[start:] if row[0].startswith(head))

    def all(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


def check_page(page: Page) -> None:
    """What holds of every page."""
    assert not [ref for ref in page.all("href") + page.all("src") if not ref.startswith("#")]
    assert "http" not in page.source
    assert "@import" not in page.source
    assert "url(" not in re.sub(r"url\(#[^)]+\)", "", page.source)
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {ref[1:] for ref in page.all("href")} <= set(ids)
    assert {ref for refs in page.all("aria-labelledby") for ref in refs.split()} <= set(ids)
    assert not re.search(r"#51[0-9a-f]{2}a7", page.source), "a placeholder colour was left"
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    assert all(
        attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"
    )
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text
    assert not {"script", "link", "iframe", "b-"} & {tag for tag, _ in page.tags}


def shown(metrics: dict[str, Any], key: str) -> str:
    low, high = metrics["ci95"][key]
    return f"{metrics[key]:.3f}{low:.3f} {DASH} {high:.3f}"


def test_shows_the_numbers_of_the_result(tmp_path):
    run = make_run(tmp_path / "run", Plan(null_site="cptac"))
    written = write_report(run)
    assert written == run / "report.html"
    assert sorted(path.name for path in run.iterdir()) == [
        "report.html",
        "result.json",
        "rounds.jsonl",
        "study.toml",
    ]
    page = Page(written)
    check_page(page)
    test = json.loads((run / "result.json").read_text())["metrics"]["test"]
    pooled = page.row("All sites, pooled", "Balanced accuracy")
    assert pooled[1] == "124"
    assert pooled[2] == shown(test["pooled"], "balanced_accuracy")
    assert pooled[3] == shown(test["pooled"], "auc")
    assert pooled[4] == shown(test["pooled"], "macro_f1")
    bp = page.row("tcga-bp", "Balanced accuracy")
    assert bp[2] == shown(test["sites"]["tcga-bp"], "balanced_accuracy")
    assert page.row("cptac", "Balanced accuracy")[2:5] == ["—", "—", "—"]
    assert page.row("tcga-other", "Brier score")[3] == shown(test["sites"]["tcga-other"], "brier")
    assert "not defined, one class absent" in page.text
    assert "17 of 30 run" in page.text
    assert "1,483,906" in page.text
    assert "17.810 MB" in page.text
    assert "96.2 s" in page.text
    worst = test["worst_site"]
    assert (
        f"Worst site: {worst['site']} with a balanced accuracy of {worst['balanced_accuracy']:.3f}"
        in page.text
    )


def test_draws_every_figure_and_lists_every_setting(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", Plan())))
    drawn = {attrs["id"] for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"}
    headline = ("balanced_accuracy", "auc", "macro_f1")
    curves = {"curve-balanced_accuracy", "curve-log_loss", "curve-train"}
    assert drawn == curves | {f"test-{metric}" for metric in headline}
    for key, value in {
        "local_epochs": "1",
        "patience": "25",
        "oversample": "dead = 6.0",
        "fusion": "pairwise",
    }.items():
        assert f"{key}{value}" in page.text.replace(f"{key} {value}", f"{key}{value}")
    assert "torch2.15.0" in page.text
    assert "No site was left out." in page.text
    assert page.row("Averaging", "Phase")[1:3] == ["0.330", "0.3 %"]
    assert page.row("Setup", "Phase")[1] == "3.500"


@pytest.mark.slow
def test_long_runs_and_resumed_ones(tmp_path):
    run = make_run(tmp_path / "run", Plan(rounds=3, best=2))
    result = json.loads((run / "result.json").read_text())
    result["seconds"]["total"] = 4 * 3600 + 5 * 60 + 9
    (run / "result.json").write_text(json.dumps(result))
    again = {"event": "run_started", "resumed_from": 3, "time": "yesterday", "settings": {}}
    with (run / "rounds.jsonl").open("a") as journal:
        journal.write(json.dumps(again) + "\n" + '{"event": "round_st')
    page = Page(write_report(run))
    check_page(page)
    assert "4 h 05 min" in page.text
    assert "Interrupted and continued1 time" in page.text.replace("continued 1", "continued1")
    result["seconds"]["total"] = 185.4
    (run / "result.json").write_text(json.dumps(result))
    assert "3 min 05 s" in Page(write_report(run)).text


@pytest.mark.slow
def test_same_run_same_page(tmp_path):
    plan = Plan(rounds=3, best=2)
    pages = [write_report(make_run(tmp_path / name, plan)).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]
    assert write_report(tmp_path / "a").read_bytes() == pages[0]  # and it is replaced, not added to


@pytest.mark.parametrize("mode", ["federated", "local"])
def test_escapes_odd_names(tmp_path, mode):
    plan = Plan(sites=tuple(sorted(ODD)), mode=mode, rounds=4, best=2)
    page = Page(write_report(make_run(tmp_path / "run", plan)))
    check_page(page)
    assert all(name in page.text for name in ODD)
    assert "<b>&" not in page.source
    assert "&lt;b&gt;&amp;" in page.source


def test_lists_sites_left_out(tmp_path):
    late = [{"site": "cptac", "round": r, "reason": "no answer before the deadline"} for r in (4, 5, 6, 9)]
    refused = [{"site": "kirc", "round": 0, "reason": "S102"}]
    run = make_run(tmp_path / "run", Plan(left_out=late + refused))
    refused = {"event": "roll_call", "site": "kirc", "accepted": False, "reason": "S102", "counts": None}
    with (run / "rounds.jsonl").open("a") as journal:
        journal.write(json.dumps(refused) + "\n")
    page = Page(write_report(run))
    check_page(page)
    assert not any(row[0].strip() == "kirc" and len(row) > 4 for row in page.rows)  # no zeros made up for it
    assert "sites 3 of 4" in page.text
    assert page.row("kirc", "Why")[1:] == [
        "roll call, the whole run",
        "all",
        "S102: the study is not the one it approved",
    ]
    assert page.row("cptac", "Why")[1:] == [f"rounds 4 {DASH} 6", "3", "no answer before the deadline"]
    assert "No site was left out." not in page.text


def test_withheld_counts_are_not_shown(tmp_path):
    run = make_run(tmp_path / "run", Plan(withheld=True))
    events = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "roll_call":
            event["counts"]["splits"]["train"] = {"dead": None, "alive": 1300}
            event["counts"]["splits"]["test"] = {"dead": 40, "alive": 7}
            event["counts"]["splits"]["val"] = {"alive": 6}
            event["counts"]["patterns"] = {
                "train": {"1011": None, "1111": 52},
                "val": {"1111": 8},
                "test": {},
            }
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, events)))
    result = json.loads((run / "result.json").read_text())
    result["metrics"]["test"]["over"]["dead"] = ["tcga-bp"]
    result["metrics"]["test"]["sites"]["cptac"] = {"n": None}
    (run / "result.json").write_text(json.dumps(result))
    page = Page(write_report(run))
    check_page(page)
    assert page.row("cptac", "All")[1:] == ["<5", "1,300", "0", "6", "40", "7", "≥ 1,353"]
    presence = [row for row in page.rows if any("<50 · 0" in cell.replace("\n", "") for cell in row)]
    assert len(presence) == 1
    assert "leave out the rows of class dead of cptac, tcga-other" in page.text
    assert page.row("cptac", "Balanced accuracy")[1:3] == ["<5", "—"]


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(sites=("only",), rounds=1, best=1, mode="centralised"), id="one-site-one-round"),
        pytest.param(
            Plan(sites=tuple(f"site-{i:02d}" for i in range(12)), rounds=5, best=2), id="twelve-sites"
        ),
        pytest.param(Plan(classes=("low", "middle", "high"), rounds=5, best=2), id="three-classes"),
    ],
)
def test_other_shapes(tmp_path, plan):
    page = Page(write_report(make_run(tmp_path / "run", plan)))
    check_page(page)
    assert ("Precision (high)" in page.text) is False
    head = next(row for row in page.rows if "All" in row)
    assert head[0] == "Site"
    assert all(page.row(site, "All") for site in plan.sites)


def test_sites_alone(tmp_path):
    run = make_run(tmp_path / "run", Plan(mode="local", null_site="cptac"))
    page = Page(write_report(run))
    check_page(page)
    local = json.loads((run / "result.json").read_text())["local"]
    test = local["tcga-bp"]["metrics"]["test"]
    row = page.row("tcga-bp", "Trained at")
    assert row[1:4] == ["6", str(test["own"]["n"]), shown(test["own"], "balanced_accuracy")]
    assert row[6:8] == ["124", shown(test["pooled"], "balanced_accuracy")]
    assert "curve-balanced_accuracy" in page.all("id")
    assert all(page.row(site, "All") for site in THREE)  # counts come from each site's own journal


def test_sites_alone_without_journals(tmp_path):
    run = make_run(tmp_path / "run", Plan(mode="local"))
    for journal in run.rglob("rounds.jsonl"):
        journal.unlink()
    page = Page(write_report(run))
    check_page(page)
    assert "holds no round-by-round journal" in page.text


def test_comparison_of_one_seed(tmp_path):
    levels = {"local": 0.7, "federated": 0.74, "centralised": 0.76}
    for mode, level in levels.items():
        make_run(tmp_path / "runs" / mode, Plan(mode=mode, level=level, rounds=2, best=1))
    page = Page(write_comparison(tmp_path / "runs"))
    check_page(page)
    test = json.loads((tmp_path / "runs/federated/result.json").read_text())["metrics"]["test"]
    row = page.row("Federated", "Trained")
    assert row[1] == shown(test["pooled"], "balanced_accuracy")
    assert row[3] == shown(test["sites"]["tcga-bp"], "balanced_accuracy")
    drawn = [attrs["id"] for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    headline = ("balanced_accuracy", "auc", "macro_f1")
    assert drawn == [f"{part}-{metric}" for part in ("pooled", "sites") for metric in headline]
    assert "callout" not in [attrs.get("class") for _, attrs in page.tags]


@pytest.mark.slow
def test_comparison_of_several_seeds(tmp_path):
    for seed in range(3):
        for mode in ("local", "federated"):
            make_run(tmp_path / f"s{seed}" / mode, Plan(mode=mode, seed=seed, rounds=2, best=1, sites=ODD))
    page = Page(write_comparison(tmp_path))
    check_page(page)
    files = sorted(tmp_path.glob("s*/federated/result.json"))
    values = [json.loads(f.read_text())["metrics"]["test"]["pooled"]["auc"] for f in files]
    mean = sum(values) / 3
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert page.row("Federated", "Trained")[0] == "Federated"
    assert f"{mean:.3f}± {sd:.3f}" in [re.sub(r"\s+", " ", cell) for row in page.rows for cell in row]
    assert "sd of 3 seeds" in page.text


def test_comparison_refuses_a_run_other_studies_and_nothing(tmp_path):
    first = make_run(tmp_path / "a" / "x", Plan(rounds=1, best=1))
    with pytest.raises(InputError, match="found a run"):
        write_comparison(first)
    make_run(tmp_path / "a" / "y", Plan(rounds=1, best=1, learning_rate="1e-3"))
    with pytest.raises(InputError, match="y: its settings are not those of"):
        write_comparison(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="no finished run below"):
        write_comparison(tmp_path / "b")
    assert not (tmp_path / "a" / "report.html").exists()
