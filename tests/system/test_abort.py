"""An abort in the middle of a checkpoint: nothing is lost, nothing half-written stays, the run resumes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmare.host.supervised import ProcessSupervisor, Program
from server.deployment import services
from server.deployment.programs import RUN_VARIABLE, server_apps
from server.deployment.services import Services
from server.membership.kit import SUPEREXEC, init_kit
from tests.federations import all_events, outcome, run_nodes, tiny_federation, tiny_study
from tests.system.deployment import needs_nginx, until

pytestmark = [pytest.mark.system, needs_nginx]

LONG_S = 120
RUN = 7  # Flower's number
# A run whose third checkpoint is half on the disk when the process sleeps, as on a slow disk.
APP = """
import sys, time
from pathlib import Path
from server.store import checkpoint
from tests.federations import run_nodes

write, times = checkpoint.save_file, []

def slow(tensors, path, metadata):
    write(tensors, path, metadata=metadata)
    times.append(path)
    if len(times) == 3:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        Path(sys.argv[3]).touch()
        time.sleep(600)

checkpoint.save_file = slow
run_nodes(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_aborted_in_the_middle_of_a_checkpoint_a_run_resumes_from_the_one_before(tmp_path, monkeypatch):
    federation = tiny_federation(tmp_path / "fed", tiny_study(training={"rounds": 5, "patience": 5}))
    script, half, run = tmp_path / "flwr-serverapp", tmp_path / "half", tmp_path / "run"
    script.write_text(APP)
    environment = {**os.environ, RUN_VARIABLE: str(RUN), "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, str(script), *map(str, (federation, run, half))]
    monkeypatch.setattr(services, "server_apps", lambda _: server_apps(os.getpid()))
    kit = init_kit(tmp_path / "kit", "localhost")
    with ProcessSupervisor() as processes, subprocess.Popen(words, env=environment) as app:
        coordinator = Services(kit, processes, print)
        processes.keep(Program(SUPEREXEC, ("sleep", "600"), tmp_path / "log"))
        until(half.exists, "half of a checkpoint is written", LONG_S)
        assert coordinator.app(RUN) == app.pid
        coordinator.end_app(RUN)  # as an abort does
        assert app.wait(20) != 0
    folder = run / "checkpoints"
    assert [path for path in folder.iterdir() if path.name.startswith(".")]  # what nobody could tidy up
    rounds = [event["round"] for event in all_events(run) if event["event"] == "checkpoint"]
    began = time.monotonic()
    run_nodes(federation, run)  # submitted again
    assert time.monotonic() - began < LONG_S
    resumed = [event["resumed_from"] for event in all_events(run) if event["event"] == "resumed"]
    assert resumed == [max(rounds)]
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []
    run_nodes(federation, tmp_path / "plain")
    assert outcome(run) == outcome(tmp_path / "plain")
