"""A real site worker behind its socket as one of three sites: same bits, killed in a round, started again."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from client.privacy.records.audit_log import AuditLog
from client.relay.app import app as client_app
from client.relay.worker_link import WorkerLink
from mmare.errors import SiteCode
from server.rounds.flower_fleet import GridFleet
from server.run.folder import execute
from simulation.engine import InProcessGrid
from sites.config import load_site
from tests.federations import events, node_configs, outcome, request_of, run_nodes, tiny_federation

pytestmark = pytest.mark.system

PROGRAM = Path(sys.executable).parent / "mmare-site"
SITE, PARTITION = "birch", 1
START_S = 60


class WorkerProcess:
    """``mmare-site start`` of one site, started as often as a test wants."""

    def __init__(self, folder: Path):
        self.file = folder / "site.toml"
        self.link = WorkerLink(load_site(self.file).worker.socket)
        self.log = folder / "worker.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([str(PROGRAM), "start", str(self.file)], stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while self.link.status() is None:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "the worker does not answer"
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=30)


@pytest.fixture
def federation():
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        yield tiny_federation(Path(folder) / "federation")


@pytest.fixture
def worker(federation):
    site = federation / SITE
    arguments = ["approve", str(federation / "study.toml"), "--site", str(site / "site.toml"), "--yes"]
    subprocess.run([str(PROGRAM), *arguments], check=True, capture_output=True, timeout=60)
    found = WorkerProcess(site)
    found.start()
    yield found
    if found.process is not None and found.process.poll() is None:
        found.signal(signal.SIGKILL)
        found.wait()


def run(federation: Path, out: Path, worker: WorkerProcess, *listeners) -> None:
    """A run in this process whose second node has a socket instead of a partition."""
    request = request_of(federation, out)
    configs = node_configs(3, {})
    configs[PARTITION] = {"socket": str(load_site(worker.file).worker.socket)}
    grid = InProcessGrid(client_app, configs, request.to_config())
    execute(GridFleet(grid, poll_s=0.0), request, listeners)


def test_a_site_behind_a_socket_gives_the_same_bits(federation, worker, tmp_path):
    run(federation, tmp_path / "socket", worker)
    run_nodes(federation, tmp_path / "plain")
    assert outcome(tmp_path / "socket") == outcome(tmp_path / "plain")
    lines = list(AuditLog(federation / SITE / "audit.jsonl").lines())
    assert [line["event"] for line in lines] == ["approved", *["released"] * (len(lines) - 1)]
    assert worker.link.status().studies[0].released == len(lines) - 1 > 4


def test_killed_in_a_round_it_is_left_out_by_name_and_back_in_the_next(federation, worker, tmp_path):
    def listen(event):
        if event["event"] == "round_started" and event["round"] == 2:
            worker.signal(signal.SIGSTOP)  # so that it is certainly in the middle when it is killed
            threading.Timer(0.5, worker.signal, [signal.SIGKILL]).start()
        if event["event"] == "site_left_out":
            assert worker.wait() == -signal.SIGKILL
            worker.start()  # on the socket that the killed one left behind

    run(federation, tmp_path / "run", worker, listen)
    left_out = [
        (event["site"], event["round"], event["reason"])
        for event in events(tmp_path / "run", "site_left_out")
    ]
    assert left_out == [(SITE, 2, f"refused: S401, {SiteCode.WORKER.meaning}")]
    trained = {
        number: {
            event["site"]
            for event in events(tmp_path / "run", "site_update")
            if event["round"] == number and "phase" not in event
        }
        for number in (1, 2, 3, 4)
    }
    assert trained[2] == {"ash", "cedar"}
    assert trained[1] == trained[3] == trained[4] == {"ash", "birch", "cedar"}


def test_it_stops_when_it_is_told_and_a_second_one_does_not_start(worker):
    second = subprocess.run(
        [str(PROGRAM), "start", str(worker.file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 1
    assert second.stderr.endswith("worker.sock: a site worker is running there already\n")
    assert "Traceback" not in second.stderr
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert worker.link.status() is None
    assert "Traceback" not in worker.log.read_text()
