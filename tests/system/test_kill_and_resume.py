"""Real processes, killed with SIGKILL at points that nothing chose for them, then run again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sites.datasets.synthetic import prepare_synthetic
from tests.server.journals import read_journal

pytestmark = pytest.mark.system

ROUNDS = 8
SETTINGS = ["--set", f"training.rounds={ROUNDS}", "--set", "training.patience=50"]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed") / "federation"
    prepare_synthetic(out=folder, patients=60)
    return folder


def command(federation: Path, out: Path, *more: str) -> list[str]:
    program = Path(sys.executable).parent / "mmare-sim"
    return [str(program), "run", str(federation), "--out", str(out), *SETTINGS, *more]


def run(federation: Path, out: Path, *more: str) -> None:
    done = subprocess.run(
        command(federation, out, *more), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def kill_after(federation: Path, out: Path, lines: int, pause_s: float, *more: str) -> None:
    """Start a run and kill it once its journal has that many lines and a little time has passed."""
    process = subprocess.Popen(
        command(federation, out, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = out / "rounds.jsonl"
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.002)
    time.sleep(pause_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("killed") / "undisturbed"
    run(federation, out)
    return out


KILLS = ((0.1, 0.0), (0.5, 0.013), (0.95, 0.031))  # share of the journal, then seconds


@pytest.mark.parametrize(
    ("mode", "kills"), [("federated", KILLS), ("centralised", KILLS[1:2]), ("local", KILLS[1:2])]
)
def test_killed_again_and_again_a_run_ends_with_the_same_weights(
    federation, undisturbed, tmp_path, mode, kills
):
    whole, killed = undisturbed, tmp_path / "killed"
    if mode != "federated":
        run(federation, whole := tmp_path / "whole", "--mode", mode)
    lines = (whole / "rounds.jsonl").read_bytes().count(b"\n")
    for share, pause_s in kills:
        kill_after(federation, killed, int(lines * share), pause_s, "--mode", mode)
    run(federation, killed, "--mode", mode)
    result, expected = (json.loads((out / "result.json").read_text()) for out in (killed, whole))
    for key in ("metrics", "local", "rounds_run", "best_round"):
        first, second = result.get(key), expected.get(key)
        if key == "local":
            first, second = (
                {site: (entry["best_round"], entry["metrics"]) for site, entry in (part or {}).items()}
                for part in (first, second)
            )
        assert first == second, key
    models = sorted(path.relative_to(whole) for path in whole.rglob("model.safetensors"))
    assert models
    for model in models:
        assert (killed / model).read_bytes() == (whole / model).read_bytes()


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(federation, undisturbed, tmp_path):
    out = tmp_path / "run"
    kill_after(federation, out, 40, 0.0)
    newest = max((out / "checkpoints").glob("round-*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    run(federation, out)
    events = read_journal(out / "rounds.jsonl")
    assert any(event["event"] == "checkpoint_damaged" and newest.name in event["files"] for event in events)
    assert weights(out) == weights(undisturbed)


def test_a_finished_run_prints_its_result_and_trains_nothing(federation, undisturbed):
    before = (undisturbed / "rounds.jsonl").read_bytes()
    run(federation, undisturbed)
    assert (undisturbed / "rounds.jsonl").read_bytes() == before


def test_other_settings_are_refused(federation, undisturbed):
    done = subprocess.run(
        command(federation, undisturbed, "--set", "training.batch_size=8"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "training.batch_size: 64, now 8" in done.stderr
    assert "Traceback" not in done.stderr
