"""Reading run folders: what a journal means after a kill, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmare.errors import InputError
from server.monitoring.followed_run import read_run
from simulation.report.results import (
    Absence,
    Estimate,
    absences,
    estimate,
    find_runs,
    line_up,
    load_run,
    local_journals,
    site_names,
    validation_curves,
)

STUDY = '[study]\nname = "s"\nclasses = ["a", "b"]\n[[modality]]\nname = "ct"\nkind = "features"\nwidth = 4\n'


def metrics(n: int, value: float | None) -> dict[str, Any]:
    interval = None if value is None else [value - 0.1, value + 0.1]
    return {"n": n, "balanced_accuracy": value, "auc": value, "ci95": {"auc": interval}}


def make_run(folder: Path, mode: str = "federated", seed: int = 0, n: int = 30, auc: float = 0.7) -> Path:
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(STUDY)
    test = {"pooled": metrics(n, auc), "sites": {"x": metrics(n // 2, auc), "y": metrics(n // 2, None)}}
    result: dict[str, Any] = {"mode": mode, "seed": seed, "best_round": 1}
    if mode == "local":
        alone = {"pooled": metrics(n, auc), "own": metrics(n // 2, auc), "sites": {}}
        result["local"] = {site: {"best_round": 1, "metrics": {"test": alone}} for site in ("x", "y")}
    else:
        result["metrics"] = {"test": test}
        write_events(folder, [{"event": "run_started"}])
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_events(folder: Path, events: list[dict[str, Any]], tail: str = "") -> Path:
    path = folder / "rounds.jsonl"
    path.write_text("".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events) + tail)
    return path


def rounds(*numbers: int, auc: float = 0.5) -> list[dict[str, Any]]:
    events = []
    for number in numbers:
        events.append({"event": "round_started", "round": number})
        seconds = {"wait": 1.0, "aggregate": 0.25}
        events.append({"event": "aggregated", "round": number, "seconds": seconds})
        block = {"pooled": metrics(9, auc), "sites": {"x": metrics(9, None)}}
        events.append({"event": "validated", "round": number, "metrics": block})
    return events


def start() -> dict[str, Any]:
    return {"event": "run_started"}


def test_resume_supersedes_later_rounds(tmp_path):
    first = [start(), {"event": "roll_call", "site": "x"}, *rounds(1, 2, 3, 4, auc=0.4)]
    resumed = {"event": "resumed", "round": 2, "resumed_from": 2}
    write_events(tmp_path, [*first, start(), resumed, *rounds(3, auc=0.9)])
    curves = validation_curves(read_run(tmp_path), "auc")
    assert curves.pooled == [(number, 0.9 if number == 3 else 0.4) for number in (1, 2, 3)]
    assert curves.sites == {"x": [(number, None) for number in (1, 2, 3)]}


def test_finds_runs_up_to_two_levels_below(tmp_path):
    deep = make_run(tmp_path / "grid" / "b")
    near = make_run(tmp_path / "a")
    make_run(near / "local" / "x")  # part of its run, not a run beside it
    make_run(tmp_path / "p" / "q" / "r")
    assert find_runs(tmp_path) == [near, deep]
    assert find_runs(near) == [near]


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(InputError, match=f"^no finished run below {tmp_path}$"):
        find_runs(tmp_path)
    with pytest.raises(InputError, match="nowhere: cannot be listed"):
        find_runs(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["study.toml", "result.json", "rounds.jsonl"])
def test_missing_file_is_named(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(InputError, match=rf"run/{name}: no such"):
        load_run(run)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("{", "not valid JSON", id="cut"),
        pytest.param("[]", "mode must be one of", id="list"),
        pytest.param('{"mode": "alone"}', "mode must be one of", id="mode"),
        pytest.param('{"mode": "federated"}', "it has no 'metrics'", id="metrics"),
        pytest.param('{"mode": "federated", "metrics": {}}', "it has no 'metrics'", id="empty"),
        pytest.param('{"mode": "local", "metrics": {}}', "it has no 'local'", id="local"),
    ],
)
def test_damaged_result_is_named(tmp_path, text, sentence):
    run = make_run(tmp_path / "run")
    (run / "result.json").write_text(text)
    with pytest.raises(InputError, match=rf"result\.json: .*{sentence}"):
        load_run(run)
    (run / "result.json").unlink()
    (run / "result.json").mkdir()
    with pytest.raises(InputError, match=r"result\.json: cannot be read"):
        load_run(run)


def test_not_a_number_reads_as_undefined(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "result.json").write_text('{"mode": "federated", "metrics": {"test": {"pooled": {"auc": NaN}}}}')
    assert load_run(run).result["metrics"]["test"]["pooled"]["auc"] is None


def test_absences_are_joined_and_refusals_added(tmp_path):
    run = make_run(tmp_path / "run")
    late = [{"event": "site_left_out", "site": "x", "round": r, "reason": "late"} for r in (2, 3, 5)]
    refused = {"event": "roll_call", "site": "z", "accepted": False, "reason": "S102", "counts": None}
    write_events(run, [start(), refused, *late])
    expected = [Absence("z", 0, 0, "S102"), Absence("x", 2, 3, "late"), Absence("x", 5, 5, "late")]
    assert absences(load_run(run)) == expected
    result = json.loads((run / "result.json").read_text())
    left_out = [{"site": "z", "round": None, "reason": "S102"}, *late]
    (run / "result.json").write_text(json.dumps({**result, "left_out": left_out}))
    assert absences(load_run(run)) == expected
    assert site_names(load_run(run)) == ("x", "y", "z")


def test_estimate():
    one = estimate([metrics(9, 0.7), None], "auc")
    assert (one.value, one.low, one.high, one.sd, one.runs) == (0.7, 0.7 - 0.1, 0.7 + 0.1, None, 1)
    several = estimate([metrics(9, 0.6), metrics(9, 0.8), metrics(9, None)], "auc")
    assert several.value == pytest.approx(0.7)
    assert several.sd == pytest.approx(0.02**0.5)
    assert several.high == pytest.approx(0.7 + 0.02**0.5)
    assert several.runs == 2
    assert estimate([None], "auc") == Estimate(value=None)


def test_line_up(tmp_path):
    runs = [
        make_run(tmp_path / "a", "centralised", auc=0.8),
        make_run(tmp_path / "b", "federated", auc=0.7),
        make_run(tmp_path / "c", "federated", auc=0.1),
        make_run(tmp_path / "d", "local", auc=0.6, n=28),
        make_run(tmp_path / "e", "federated", seed=1, auc=0.9),
    ]
    compared = line_up([load_run(run) for run in runs])
    assert [(way.mode, way.site) for way in compared.contenders] == [
        ("local", "x"),
        ("local", "y"),
        ("federated", None),
        ("centralised", None),
    ]
    alone, _, federated, _ = compared.contenders
    assert alone.on("x", "auc").value == 0.6
    assert alone.on("y", "auc").value is None
    assert federated.on(None, "auc").value == pytest.approx(0.8)
    assert compared.sites == ("x", "y")
    assert [record.folder.name for record in compared.records] == ["d", "b", "e", "a"]
    duplicate, rows, seeds = compared.notes
    assert duplicate == "c is not counted: b has the same mode and seed."
    assert "With seed 0 the runs were tested on different numbers of rows (28, 30)" in rows
    assert "local: 0; federated: 0, 1; centralised: 0" in seeds


def test_line_up_refuses_two_studies(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    (runs[1] / "study.toml").write_text(STUDY + "[training]\nrounds = 3\n")
    with pytest.raises(InputError, match=r"b: its settings are not those of .*a;"):
        line_up([load_run(run) for run in runs])


def test_journals_of_sites_that_trained_alone(tmp_path):
    run = make_run(tmp_path / "run", "local")
    assert local_journals(load_run(run)) == {}
    (run / "local" / "x").mkdir(parents=True)
    (run / "local" / "y").mkdir()
    write_events(run / "local" / "x", [start(), *rounds(1)])
    assert list(local_journals(load_run(run))) == ["x"]
    assert load_run(run).state.first is None
