"""What tests of rules and dashboards share: where these lie, and a real Prometheus."""

import http
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "mmare.rules.yml"
SITE_RULES = DEPLOY / "prometheus" / "mmare-site.rules.yml"
DASHBOARDS = sorted((DEPLOY / "grafana").glob("*.json"))


def tool(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: prometheus, prometheus-alertmanager)")
    return found


def panels(dashboard):
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def charts(dashboard):
    return [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]


def expressions(dashboard):
    variables = json.loads(dashboard.read_text())["templating"]["list"]
    return charts(dashboard) + [each["definition"] for each in variables if each["type"] == "query"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_exporter(runs: Path, *options: str):
    """``mmare-server export`` of a folder of runs, and its port."""
    program = str(Path(sys.executable).parent / "mmare-server")
    process = subprocess.Popen(
        [program, "export", "--runs", str(runs), "--port", "0", "--interval", "0.1", *options],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    line = process.stderr.readline()
    assert "http://" in line, line
    return process, int(line.rsplit(":", 1)[1].split("/")[0])


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


class Prometheus:
    """One in a folder of its own, at short intervals, with real rules less their waiting times."""

    def __init__(self, folder: Path, jobs: Mapping[str, int], rules: Sequence[Path]):
        self.port = free_port()
        folder.mkdir()
        for path in rules:
            (folder / path.name).write_text(re.sub(r"(?m)^ *for: .*\n", "", path.read_text()))
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [path.name for path in rules],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for job, port in jobs.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        options = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": f"127.0.0.1:{self.port}",
            "log.level": "error",
        }
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [tool("prometheus"), *(f"--{name}={value}" for name, value in options.items())],
                stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"}, cwd=folder,
            )  # fmt: skip

    def query(self, expression):
        assert self.process.poll() is None, self.log.read_text()
        url = f"http://127.0.0.1:{self.port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:  # it is still starting
                return []
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        except (urllib.error.URLError, ConnectionError):
            return []
        return [(each["metric"], float(each["value"][1])) for each in found]

    def wait_for(self, expression, seconds=30):
        """What a query gives once it gives something."""
        end_at = time.monotonic() + seconds
        while time.monotonic() < end_at:
            found = self.query(expression)
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"nothing for {expression}")

    def wait_for_sites(self, name, sites, seconds=30):
        """Wait until an alert fires for these sites and no other."""
        expression, found = f'ALERTS{{alertname="{name}", alertstate="firing"}}', None
        end_at = time.monotonic() + seconds
        while found != sites and time.monotonic() < end_at:
            found = {labels["site"] for labels, _ in self.query(expression)}
            time.sleep(0.1)
        assert found == sites, name

    def wait_for_alert(self, name, seconds=30):
        """Labels of an alert once it fires."""
        found = self.wait_for(f'ALERTS{{alertname="{name}", alertstate="firing"}}', seconds)
        return [labels for labels, _ in found]
