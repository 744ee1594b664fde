"""Grids of tiny synthetic cells: run, failed, killed and run again."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from multiprocessing import active_children
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client.data import embed
from mmare.errors import InputError, RunError
from mmare.study.study import load_study
from simulation.cli import app
from simulation.grid.cell import Workplace, check_cell, run_cell
from simulation.grid.file import load_grid
from simulation.grid.plan import select
from simulation.grid.progress import Estimate, GridProgress, live_grid
from simulation.grid.scheduler import run_grid
from simulation.grid.worker import CELLS_PER_WORKER, Task, TaskKind, answer
from sites.datasets.phantoms import prepare_synthetic_scans
from sites.federation import site_folders

GRID = """
[grid]
name = "tiny"
seeds = [0, 1]
set = ["training.rounds=ROUNDS", "training.patience=100", "model.width=16"]
[[data]]
name = "tiny"
task = "toy"
prepare = ["synthetic", "--patients", "20"]
[[missing]]
mechanism = "mcar"
rate = 0.3
[[model]]
name = "mmare"
[[model]]
name = "late-mean"
"""
TOO_DEEP = '[[model]]\nname = "late-mean"\nlabel = "deep"\nset = ["model.depth=3"]\n'


@pytest.fixture
def quiet():
    return Console(file=StringIO(), width=200)


def write(folder: Path, text: str = GRID, rounds: int = 2) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text.replace("ROUNDS", str(rounds)))
    return path


def results(out: Path) -> dict[str, dict]:
    """Lines by cell, without what differs between machines and runs."""
    found = {}
    for line in (out / "results.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert entry.pop("seconds") > 0
        del entry["result"]["seconds"]
        entry["result"]["bytes"]["up_per_round"] //= 1000  # replies hold their seconds as text
        assert entry["cell"] not in found
        found[entry["cell"]] = entry
    return found


def files_of(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


# One cell, in this process


@pytest.fixture(scope="module")
def one_cell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cell")
    cells = load_grid(write(folder, GRID.replace("[grid]", '[grid]\nmodes = ["federated", "local"]'))).cells
    place = Workplace.make({}, folder / "out")
    cell = next(cell for cell in cells if cell.mode == "local")
    said = []
    return cell, place, run_cell(cell, place, said.append), said


def test_a_line_says_what_was_run(one_cell):
    cell, place, entry, said = one_cell
    assert (entry["cell"], entry["settings"]) == (cell.id, cell.settings)
    assert entry["modalities"] == ["t1", "t2", "flair", "clinical"]
    assert entry["classes"] == ["benign", "malignant"]
    assert entry["amputation"]["rate"] == 0.3
    assert entry["result"] == json.loads((place.out / "runs" / cell.id / "result.json").read_text())
    assert entry["result"]["seed"] == cell.seed
    assert {"preparing", "east alone, round 1", "west alone, round 2"} <= set(said)
    study = load_study(place.out / "runs" / cell.id / "study.toml")
    assert (study.model.name, study.training.rounds) == ("mmare", 2)


def test_a_run_folder_is_thinned(one_cell):
    cell, place, _, _ = one_cell
    run = files_of(place.out / "runs" / cell.id)
    assert {"result.json", "rounds.jsonl", "study.toml", "report.html"} <= run
    assert not any("safetensors" in name for name in files_of(place.out))


def test_a_finished_cell_is_not_run_again(one_cell):
    cell, place, entry, _ = one_cell
    said = []
    assert run_cell(cell, place, said.append)["result"] == entry["result"]
    assert not any("round" in text for text in said)


@pytest.mark.slow
def test_a_line_has_simple_models_where_the_grid_asks_for_them(tmp_path):
    text = GRID.replace("[grid]", "[grid]\nreferences = true").replace('"20"', '"40"')
    cell, place = load_grid(write(tmp_path, text)).cells[0], Workplace.make({}, tmp_path / "out")
    entry = run_cell(cell, place)
    found = entry["references"]
    assert {"this run", "logistic regression", "federated logistic regression"} <= set(found)
    assert found["this run"]["auc"] == pytest.approx(
        entry["result"]["metrics"]["test"]["pooled"]["auc"], abs=0.01
    )
    assert "Beside simple models" in (place.out / "runs" / cell.id / "report.html").read_text()
    assert run_cell(cell, place)["references"] == found  # its model is no longer there


@pytest.mark.slow
def test_models_are_kept_on_demand_and_a_run_of_other_defaults_is_replaced(one_cell):
    cell, place, entry, _ = one_cell
    run = place.out / "runs" / cell.id
    journal = run / "rounds.jsonl"
    journal.write_text(journal.read_text().replace('"batch_size": 64', '"batch_size": 63'))
    kept = Workplace(place.out, {}, keep_models=True)
    again = run_cell(cell, kept)
    assert again["result"]["local"]["east"]["metrics"] == entry["result"]["local"]["east"]["metrics"]
    assert '"batch_size": 63' not in journal.read_text()
    assert "local/east/model/model.safetensors" in files_of(run)
    assert not any("checkpoints" in name for name in files_of(run))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param("mmare", "hypermm", "hypermm takes VGG11 features of images", id="no images"),
        pytest.param("mmare", "resnet", "[model] name must be one of", id="no such model"),
        pytest.param('"--patients"', '"--patience"', "prepare synthetic --patience 20", id="no such flag"),
        pytest.param('"20"', '"2"', "--patients is 2, expected at least 20", id="too few"),
        pytest.param('"mcar"', '"mcor"', "mcor", id="no such mechanism"),
        pytest.param("training.patience=100", "training.patient=1", "unknown key 'patient'", id="setting"),
        pytest.param(
            "training.patience=100",
            "modality.clinical.encoder=unimed-clip-text",
            "encoder unimed-clip-text needs weights; expected their folder in site.toml: [compute] weights; "
            "--weights names their folder for all sites",
            id="no weights",
        ),
    ],
)
def test_an_impossible_cell_is_refused_before_any_run(tmp_path, old, new, words):
    assert old in GRID
    text = GRID.replace(old, new).replace(', "model.width=16"', "")
    cell = load_grid(write(tmp_path, text)).cells[0]
    with pytest.raises(InputError) as caught:
        check_cell(cell, Workplace(tmp_path / "out", {}))
    assert words in str(caught.value)
    assert not (tmp_path / "out" / "runs").exists()
    assert not list((tmp_path / "out").glob("federations/.*.[!l]*"))  # nothing half made but locks


def test_weights_of_a_later_call_reach_a_federation_that_is_there(one_cell, tmp_path):
    cell, place, _, _ = one_cell
    check_cell(cell, replace(place, weights=tmp_path))
    sites = site_folders(place.out / "federations" / cell.federation)
    assert [site.weights for site in sites] == [tmp_path] * 3
    assert [site.cache.resolve() for site in sites] == [place.out / "cache" / site.id for site in sites]


@pytest.mark.slow
def test_scans_are_encoded_once_for_all_cells(tmp_path, monkeypatch):
    prepare_synthetic_scans(tmp_path / "heads", subjects=10)
    sizes = ", ".join(f'"modality.{name}.size=[8, 16, 16]"' for name in ("t1", "t2", "pd", "mra"))
    text = GRID.replace('"model.width=16"', f'"model.width=16", {sizes}')
    text = text.replace("[[missing]]", '[sources]\nixi = "nowhere"\n[[missing]]\n[[missing]]')
    text = text.replace(
        '["synthetic", "--patients", "20"]',
        '["ixi", "--source", "{ixi}", "--task", "sex", "--keep-incomplete",'
        ' "--encoder", "med3d-resnet18-random"]',
    )
    grid = load_grid(write(tmp_path, text, rounds=1))
    place = Workplace.make(grid.sources, tmp_path / "out", [f"ixi={tmp_path / 'heads' / 'scans'}"])
    encoded = []
    finish = embed._finish
    monkeypatch.setattr(embed, "_finish", lambda scan, *more: encoded.append(scan) or finish(scan, *more))
    counts = []
    for cell in select(grid.cells, ["model=mmare"]):  # as they are, amputated, and both with another split
        run_cell(cell, place)
        counts.append(len(encoded))
    assert len(counts) == 4
    assert counts[0] > 40
    assert counts == [counts[0]] * 4
    sites = site_folders(place.out / "federations" / grid.cells[0].federation)
    assert {site.cache.resolve() for site in sites} == {place.out / "cache" / site.id for site in sites}


# Whole grids, in worker processes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A grid with an impossible model, on two workers."""
    folder = tmp_path_factory.mktemp("grid")
    log = StringIO()
    grid = load_grid(write(folder, GRID + TOO_DEEP, rounds=12))
    place = Workplace.make(grid.sources, folder / "out")
    with pytest.raises(RunError) as caught:
        run_grid(grid, place, Console(file=log, width=400), jobs=2)
    return grid, place, str(caught.value), log.getvalue()


@pytest.mark.slow
def test_one_line_per_cell_and_a_sentence_per_failure(undisturbed):
    grid, place, error, log = undisturbed
    lines = results(place.out)
    failed = {cell.id for cell in grid.cells if cell.model.label == "deep"}
    assert set(lines) == {cell.id for cell in grid.cells} - failed
    assert {entry["grid"] for entry in lines.values()} == {"tiny"}
    failures = [json.loads(line) for line in (place.out / "failures.jsonl").read_text().splitlines()]
    assert {entry["cell"] for entry in failures} == failed
    assert all("unknown key 'depth'" in entry["reason"] for entry in failures)
    assert error.startswith("2 of 6 cells failed, see ")
    assert log.count("unknown key 'depth'") == 1  # once for both seeds
    assert log.index("deep, federated, seed 1: failed") < log.index("balanced accuracy")  # before all runs
    assert "left" in log
    assert not (place.out / "runs" / next(iter(failed))).exists()
    assert active_children() == []
    assert (place.out / "grid.toml").read_text() == grid.text


@pytest.mark.slow
def test_done_cells_stay_done_and_a_torn_line_is_run_again(undisturbed, quiet):
    grid, place, _, _ = undisturbed
    path = place.out / "results.jsonl"
    before, whole = results(place.out), path.read_bytes()
    path.write_bytes(whole[:-100])
    assert run_grid(grid, place, quiet, only=["label=mmare", "label=late-mean"]) == 4
    assert "the last line was cut short" in quiet.file.getvalue()
    assert results(place.out) == before
    assert len((place.out / "failures.jsonl").read_text().splitlines()) == 2  # not asked for, not forgotten


def start(grid: Path, out: Path, *more: str) -> subprocess.Popen:
    program = Path(sys.executable).parent / "mmare-sim"
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job ignores it, and so would a child
    return subprocess.Popen(
        [program, "grid", str(grid), "--out", str(out), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(true, process, timeout_s: float = 60):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if true():
            return
        time.sleep(0.01)
    pytest.fail(f"waited in vain: {process.stderr.read() if process.poll() is not None else 'too long'}")


def in_session(process) -> list[int]:
    """Processes of the session that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == process.pid and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def ends(process, timeout_s: float = 10) -> bool:
    end = time.monotonic() + timeout_s
    while in_session(process) and time.monotonic() < end:
        time.sleep(0.02)
    return not in_session(process)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["group", "parent"])
def test_killed_and_run_again_results_are_the_same(undisturbed, tmp_path, quiet, victim):
    _, place, _, _ = undisturbed
    out = tmp_path / "out"
    plain = write(tmp_path, rounds=12)
    process = start(plain, out, "--jobs", "2")

    def in_the_middle():
        return any(b'"checkpoint"' in path.read_bytes() for path in out.glob("runs/*/rounds.jsonl"))

    wait_until(in_the_middle, process)
    if victim == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    process.stderr.close()
    assert ends(process)  # workers do not outlive their parent
    done = len(results(out)) if (out / "results.jsonl").exists() else 0
    assert done < 4
    if victim == "parent":
        return
    assert run_grid(load_grid(plain), Workplace.make({}, out), quiet, jobs=2) == 4
    expected = results(place.out)
    found = results(out)
    assert found.keys() == expected.keys()
    for cell, entry in found.items():
        assert entry == expected[cell]


@pytest.mark.slow
def test_a_killed_worker_costs_its_cell_and_ctrl_c_is_one_sentence(tmp_path):
    out = tmp_path / "out"
    endless = GRID.replace("seeds = [0, 1]", "seeds = [0]").replace("patience=100", "patience=9999")
    plain = write(tmp_path, endless, rounds=9999)  # no cell ends before it is killed
    process = start(plain, out)
    first, second = load_grid(plain).cells
    wait_until((out / "runs" / first.id / "rounds.jsonl").exists, process)
    worker = next(
        child
        for child in in_session(process)
        if child != process.pid and b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    os.kill(worker, signal.SIGKILL)
    wait_until((out / "runs" / second.id / "rounds.jsonl").exists, process)
    failure = json.loads((out / "failures.jsonl").read_text())
    assert (failure["cell"], failure["reason"]) == (first.id, "the worker process ended by signal 9")
    os.killpg(process.pid, signal.SIGINT)
    _, output = process.communicate(timeout=20)
    assert process.returncode == 1
    assert output.rstrip().endswith("error: interrupted; the same command goes on")
    assert "Traceback" not in output
    assert ends(process)
    rounds = out / "runs" / first.id / "rounds.jsonl"
    before = rounds.stat().st_size
    again = start(plain, out)  # the killed cell is tried again, and goes on from its checkpoint
    wait_until(lambda: rounds.stat().st_size > before, again)
    assert not (out / "failures.jsonl").exists()
    os.killpg(again.pid, signal.SIGINT)
    assert "interrupted" in again.communicate(timeout=20)[1]
    assert ends(again)


# What is refused, and what is said


def test_a_worker_that_has_done_many_cells_is_replaced(one_cell):
    cell, place, _, _ = one_cell
    task = Task(TaskKind.CHECK, cell)
    first, last = (answer(task, place, lambda _text: None, cells) for cells in (1, CELLS_PER_WORKER))
    assert (first.ended, first.text, last.worn_out) == (True, "", True)
    other = Task(TaskKind.RUN, replace(cell, data=replace(cell.data, prepare=("synthetic", "--sites", "0"))))
    refused = answer(other, place, lambda _text: None, 1)
    assert (refused.entry, refused.text) == (None, "--sites is 0, expected at least one hospital")


def test_an_unexpected_error_costs_only_its_cell(one_cell, monkeypatch):
    cell, place, _, _ = one_cell
    monkeypatch.setattr("simulation.grid.cell._federation", lambda _cell, _place: 1 / 0)
    found = answer(Task(TaskKind.RUN, cell), place, lambda _text: None, 1)
    assert (found.ended, found.text) == (True, "ZeroDivisionError: division by zero")
    assert "_federation" in found.trace


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param(
            "grid.toml", '[grid]\nname = "other"\n', "holds the grid 'other', expected 'tiny'", id="other"
        ),
        pytest.param("diary.txt", "x", "holds 'diary.txt' and no grid", id="foreign"),
        pytest.param("results.jsonl", "dear diary\n", "holds 'results.jsonl' and no grid", id="no grid.toml"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path, quiet, name, content, words):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    with pytest.raises(InputError) as caught:
        run_grid(load_grid(write(tmp_path)), Workplace.make({}, out), quiet)
    assert words in str(caught.value)
    assert files_of(out) == {name}


def test_two_grids_do_not_share_a_folder(tmp_path, quiet):
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is running this grid"):
            run_grid(load_grid(write(tmp_path)), Workplace.make({}, out), quiet)


def test_bad_flags_are_refused(tmp_path, quiet):
    grid = load_grid(write(tmp_path))
    with pytest.raises(InputError, match="--source is 'a=/x', expected NAME=PATH with one of none"):
        Workplace.make(grid.sources, tmp_path, ["a=/x"])
    with pytest.raises(InputError, match="no such folder"):
        Workplace.make(grid.sources, tmp_path, weights=tmp_path / "none")
    with pytest.raises(InputError, match="--jobs is 0"):
        run_grid(grid, Workplace.make({}, tmp_path / "out"), quiet, jobs=0)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_cells_and_writes_nothing(tmp_path):
    path = write(tmp_path)
    done = CliRunner().invoke(
        app, ["grid", str(path), "--out", str(tmp_path / "out"), "--dry-run", "--only", "model=mmare"]
    )
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "2 cells on 2 federations, 0 done"
    assert "tiny, mcar 0.3, mmare, federated, seed 1" in done.stdout
    assert not (tmp_path / "out").exists()


def test_time_left_is_that_of_cells_alike(tmp_path):
    first, other, second, _ = load_grid(write(tmp_path)).cells
    estimate = Estimate()
    assert estimate.left([second], {}, 1) is None
    estimate.add(first.settings, 10.0)
    assert estimate.of(other.settings) == 10.0  # no late-mean yet: as any cell
    estimate.add(other.settings, 2.0)
    assert (estimate.of(second.settings), estimate.of(other.settings)) == (10.0, 2.0)
    assert estimate.left([second, other], {first: 4.0}, jobs=2) == (10 + 2 + 6) / 2
    assert estimate.left([], {first: 99.0}, jobs=2) == 0


def test_progress_on_a_terminal_shows_where_cells_are(tmp_path):
    cell, other, *_ = load_grid(write(tmp_path)).cells
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system=None)
    progress = GridProgress(4, 1, Estimate(), 2, console)
    with live_grid(progress, console):
        progress.queue([cell, other])
        progress.begin(cell)
        progress.say(cell, "round 3")
        with console.capture() as capture:
            console.print(progress.render())
        assert "1/4" in capture.get()
        assert "tiny, mcar 0.3, mmare, federated, seed 0  round 3" in capture.get()
        progress.end(cell, {"seconds": 60.0, "result": {}})
        with console.capture() as capture:
            console.print(progress.render())
    assert "2/4" in capture.get()
    assert "about 30 s left" in capture.get()
    assert "round 3" not in capture.get()
