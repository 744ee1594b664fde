"""The same app through Flower's own engines: same bits, honest exit codes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.run.request import RunRequest
from simulation.run import run_federation
from sites.datasets.synthetic import prepare_synthetic

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flower") / "federation"
    prepare_synthetic(out=folder, patients=40)
    return folder


@pytest.fixture(scope="module")
def in_process(federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("flower") / "inprocess"
    run_federation(RunRequest(federation, out, set=("training.rounds=2",)))
    return out


def environment(home: Path) -> dict[str, str]:
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "FLWR_HOME": str(home),
    }
    return {**os.environ, **quiet, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def simulate(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "flower-simulation"), "--app", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(home),
        check=False,
    )


def config(federation: Path, out: Path) -> str:
    return f'federation="{federation}" out="{out}" set="training.rounds=2"'


def test_ray_gives_the_same_bits(federation, in_process, tmp_path):
    out = tmp_path / "ray"
    done = simulate("--num-supernodes", "3", "--run-config", config(federation, out), home=tmp_path)
    assert done.returncode == 0, done.stderr
    model = Path("model/model.safetensors")
    assert (out / model).read_bytes() == (in_process / model).read_bytes()
    result, expected = (json.loads((folder / "result.json").read_text()) for folder in (out, in_process))
    assert result["backend"] == "ray"
    assert result["metrics"] == expected["metrics"]


def test_a_failed_run_has_an_honest_exit_code(federation, tmp_path):
    out = tmp_path / "ray"
    settings = f'federation="{federation}" out="{out}" set="federation.min_sites=9"'
    done = simulate("--run-config", settings, home=tmp_path)
    assert done.returncode == 1
    assert "error: 3 sites with training rows took part in the roll call, expected at least 9" in done.stderr


def test_another_number_of_nodes_is_refused(federation, tmp_path):
    done = simulate(
        "--num-supernodes", "2", "--run-config", config(federation, tmp_path / "x"), home=tmp_path
    )
    assert done.returncode == 2
    assert "--num-supernodes is 2, expected 3" in done.stderr
    assert not (tmp_path / "x").exists()


def test_flwr_run_gives_the_same_bits(federation, in_process, tmp_path):
    out, home = tmp_path / "flwr", tmp_path / "home"
    home.mkdir()
    arguments = [
        "run",
        str(ROOT),
        "--federation-config",
        "num-supernodes=3",
        "--run-config",
        config(federation, out),
    ]
    try:
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(home),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        end = time.monotonic() + 180  # flwr run returns once the run is submitted
        while time.monotonic() < end and not (out / "report.html").exists():
            time.sleep(0.5)
    finally:
        stop_superlink(home)
    model = Path("model/model.safetensors")
    assert (out / model).read_bytes() == (in_process / model).read_bytes()


def stop_superlink(home: Path) -> None:
    """End the SuperLink that ``flwr run`` left behind: the one whose files are below ``home``."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(home).encode() in word for word in words) and any(
            b"flower-superlink" in word for word in words
        ):
            os.kill(int(process.name), 15)
