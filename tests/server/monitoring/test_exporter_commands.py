"""``mmare-server export``, ``status --watch`` and ``mmare-sim run --metrics-port`` as commands."""

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmare.errors import InputError
from server.cli import app as server_app
from server.membership.kit import init_kit
from simulation.cli import app as simulation_app
from tests.deploy.watching import end, start_exporter
from tests.federations import tiny_federation
from tests.server.journals import a_round, called, event, started, write

RUNNER = CliRunner()


def invoke(arguments, application=server_app):
    result = RUNNER.invoke(application, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def test_export_serves_until_it_is_stopped(tmp_path):
    write(tmp_path / "one", [started(), called("ash")])
    program = str(Path(sys.executable).parent / "mmare-server")
    process = subprocess.Popen(
        [program, "export", "--runs", str(tmp_path), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        line = process.stderr.readline()
        port = int(line.rsplit(":", 1)[1].split("/")[0])
        assert 'mmare_sites_expected{run="0123abcd",study="tiny"} 1.0' in fetch(port)
        write(tmp_path / "one", a_round(1, ["ash"]), mode="ab")
        assert 'mmare_sites_in{run="0123abcd",study="tiny"} 1.0' in fetch(port)  # read when asked
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()


def test_export_needs_a_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere: no folder"):
        invoke(["export", "--runs", tmp_path / "nowhere"])


def test_status_watches_a_run_to_its_end(tmp_path):
    write(tmp_path, [started(), called("ash"), *a_round(1, ["ash"]), event("run_finished", 9)])
    told = invoke(["status", tmp_path, "--watch"])
    assert told.exit_code == 0
    assert "finished" in told.stdout
    assert "no alerts" in told.stdout


def test_a_simulation_serves_its_metrics_while_it_runs(tmp_path):
    federation, port, over, pages = (
        tiny_federation(tmp_path / "federation"),
        free_port(),
        threading.Event(),
        [],
    )

    def look():
        while not over.wait(0.02):
            try:
                pages.append(fetch(port))
            except (urllib.error.URLError, ConnectionError):
                continue

    looker = threading.Thread(target=look)
    looker.start()
    try:
        arguments = ["run", federation, "--out", tmp_path / "run", "--metrics-port", port]
        assert invoke(arguments, simulation_app).exit_code == 0
    finally:
        over.set()
        looker.join()
    assert any('mmare_rounds_started_total{study="tiny"}' in page for page in pages)
    with pytest.raises(urllib.error.URLError):
        fetch(port)


def test_export_of_a_kit_tells_of_the_deployment(tmp_path):
    kit = init_kit(tmp_path / "coordinator", "localhost", days=20)
    (tmp_path / "runs").mkdir()
    process, port = start_exporter(tmp_path / "runs", "--kit", str(kit.folder))
    try:
        assert 'mmare_certificate_expiry_timestamp_seconds{certificate="server"} ' in fetch(port)
    finally:
        end(process)
        process.stderr.close()
    assert process.returncode == 0


def test_export_needs_a_kit_that_is_one(tmp_path):
    with pytest.raises(InputError, match=r"no kit here \(kit.toml is missing\)"):
        invoke(["export", "--runs", tmp_path, "--kit", tmp_path])
