"""A real Prometheus watches a coordinator and a hospital: a real run between them, scans being encoded."""

import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from client.privacy.approvals import ApprovalFolder
from client.relay.worker_link import WorkerLink
from client.telemetry.embed_record import INTERVAL_S, read_record
from mmare.wire.messages import Refusal, Request, RollCall, Task, decode, encode
from server.membership.kit import renew
from server.monitoring.kit_metrics import KIT_METRICS
from sites.config import load_site
from sites.datasets.phantoms import prepare_synthetic_scans
from tests.deploy.watching import (
    DASHBOARDS,
    RULES,
    SITE_RULES,
    Prometheus,
    charts,
    end,
    free_port,
    start_exporter,
    tool,
)
from tests.federations import tiny_federation, tiny_study
from tests.system.deployment import Coordinator, Hospital, Running, free_ports, needs_nginx, until

pytestmark = pytest.mark.system

SITE = "birch"
SCANS = ("_scans", "_scan_", "_cache_hits", "_cache_misses", "_embedding")  # in what there is none of here
PREDICTIONS = ("_predictions_", "_pattern_", "_input_distance", "_scored_", "_calibration_gap")  # as above
KIT = tuple(metric.name for metric in KIT_METRICS)


@pytest.fixture
def place():
    """A folder whose path leaves room for a socket, and what is ended with it."""
    tool("prometheus")
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder, ExitStack() as stack:
        yield Path(folder), stack


def watched_site(file: Path, more: str = "") -> int:
    """Let a site's worker be watched; gives the port."""
    port = free_port()
    with file.open("a") as text:
        text.write(f"\n[metrics]\nport = {port}\n{more}")
    return port


def prometheus_of(folder, stack, jobs, rules):
    found = Prometheus(folder / "prometheus", jobs, rules)
    stack.callback(end, found.process)
    return found


def stays(stack, log, *words):
    """A command that runs until the test ends."""
    found = Running(log, *words)

    def stop():
        if found.alive():
            found.stop()

    stack.callback(stop)
    return found


def scraped(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def check_metrics(*ports):
    promtool = tool("promtool")
    for port in ports:
        done = subprocess.run(
            [promtool, "check", "metrics"], input=scraped(port), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def panels_with(*words):
    """Charts of dashboards that name one of these, for the watched site."""
    found = {chart for dashboard in DASHBOARDS for chart in charts(dashboard)}
    return sorted(chart.replace("$worker", SITE) for chart in found if any(word in chart for word in words))


class Both:
    """One federation of one hospital, watched at both ends: the real commands, as people run them."""

    def __init__(self, folder, stack):
        study = tiny_study(federation={"min_sites": 1, "deadline_s": 60})
        self.federation = tiny_federation(folder / "fed", study, sites=(SITE,))
        self.site = self.federation / SITE / "site.toml"
        policy = self.site.read_text().replace("[policy]\n", "[policy]\nmax_releases = 9\n")
        assert "max_releases" in policy
        self.site.write_text(policy)
        self.worker_port = watched_site(self.site)
        self.coordinator = Coordinator(folder / "kit")
        stack.callback(self.coordinator.close)
        hospital = Hospital(self.site.parent, free_ports(1)[0])
        hospital.join(self.coordinator, self.federation / "study.toml")
        self.coordinator.hospitals.append(hospital)
        self.out = folder / "runs" / "one"
        self.out.parent.mkdir()
        exporter, self.exporter_port = start_exporter(self.out.parent, "--kit", str(self.coordinator.folder))
        stack.callback(exporter.stderr.close)
        stack.callback(end, exporter)
        jobs = {"mmare": self.exporter_port, "mmare-site": self.worker_port}
        self.prometheus = prometheus_of(folder, stack, jobs, (RULES, SITE_RULES))
        self.hospital = stays(stack, self.site.parent / "start.log", "mmare-site", "start", self.site)
        self.worker = WorkerLink(load_site(self.site).worker.socket)

    def value(self, expression):
        return self.prometheus.query(expression)[0][1]

    def programs(self, metric):
        return {labels["program"] for labels, _ in self.prometheus.wait_for(f"{metric} == 1")}


@needs_nginx
def test_a_real_run_is_seen_at_both_ends(place):
    both = Both(*place)
    both.coordinator.start(both.federation, both.out)
    both.coordinator.until_round(both.out, 3)
    while_it_runs(both)
    both.coordinator.finish(180)
    when_it_is_over(both)
    check_metrics(both.exporter_port, both.worker_port)
    what_goes_wrong_afterwards(both)


def while_it_runs(both):
    prometheus = both.prometheus
    prometheus.wait_for("mmare_site_worker_run_open == 1")
    prometheus.wait_for('mmare_flower_run_status{status="running"} == 1')
    prometheus.wait_for(f'mmare_flower_node_online{{site="{SITE}"}} == 1')
    assert both.programs("mmare_deployment_program_up") == {"superlink", "superexec", "proxy"}
    assert both.programs("mmare_site_worker_program_up") == {"worker", "supernode", "superexec"}
    prometheus.wait_for("time() - mmare_site_worker_relay_contact_timestamp_seconds < 30")
    never = ("gpu", "refusals", "epsilon", *SCANS, *PREDICTIONS)
    for chart in panels_with("mmare_site_worker_", "mmare:site_worker_", *KIT):
        if not any(word in chart for word in never):
            prometheus.wait_for(chart)


def when_it_is_over(both):
    prometheus = both.prometheus
    prometheus.wait_for("mmare_site_worker_run_open == 0")
    prometheus.wait_for('mmare_flower_run_status{status="completed"} == 1')
    prometheus.wait_for("mmare_runs_finished_total == 1")
    prometheus.wait_for("mmare_deployment_program_up == 0")
    prometheus.wait_for('mmare_site_worker_phase_duration_seconds_count{phase="train", study="tiny"} == 4')
    assert both.value('mmare_kit_sites{state="admitted"}') == 1
    at_site, at_coordinator = both.value("mmare_site_worker_train_loss"), both.value("mmare_site_train_loss")
    assert at_coordinator == pytest.approx(at_site)
    left, come = (
        both.value(f"mmare_site_{name}") for name in ("worker_released_bytes_total", "received_bytes_total")
    )
    assert 0 < come <= left  # the coordinator counts updates only
    assert [found["study"] for found in prometheus.wait_for_alert("PrivacyBudget")] == ["tiny"]
    firing = {labels["alertname"] for labels, _ in prometheus.query('ALERTS{alertstate="firing"}')}
    assert firing <= {"PrivacyBudget", "Watchdog", "DiskLow"}  # the last is of this machine


def what_goes_wrong_afterwards(both):
    prometheus = both.prometheus
    renew(both.coordinator.kit, days=5)
    expiring = {
        (found["certificate"], found["severity"]) for found in prometheus.wait_for_alert("CertExpiry")
    }
    assert expiring == {("server", "critical")}

    other = tiny_study(training={"learning_rate": 0.5}).to_dict()
    answer, _ = both.worker(encode(Request(Task.DESCRIBE, "x", other)), b"")
    assert decode(Refusal, answer).code == "S102"
    assert [found["code"] for found in prometheus.wait_for_alert("PolicyDenied")] == ["S102"]

    trained = 'mmare_site_worker_releases_total{task="train"}'
    before = both.value(trained)
    os.kill(both.worker.status().pid, signal.SIGKILL)
    prometheus.wait_for('mmare_site_worker_program_starts_total{program="worker"} == 2', 60)
    assert both.value(trained) == before == 4
    assert both.hospital.stop() == 0
    assert [found["job"] for found in prometheus.wait_for_alert("SiteWorkerDown")] == ["mmare-site"]


def hold_up(embedding, cache, prometheus):
    """Let it go on in steps until it is seen on its way: a fast machine is through between two looks."""
    done = "mmare_site_worker_scans_done"
    until(lambda: any(each.done > 0 for each in read_record(cache).modalities.values()), "a scan is done", 60)
    for _ in range(20):
        embedding.kill(signal.SIGSTOP)
        time.sleep(INTERVAL_S + 0.5)  # with the next scan it writes down how far it is
        embedding.kill(signal.SIGCONT)
        if prometheus.query(f"{done} > 0 and {done} < mmare_site_worker_scans"):
            return
        time.sleep(0.2)


def test_scans_that_are_encoded_are_seen(place):
    folder, stack = place
    federation = folder / "fed"
    prepare_synthetic_scans(federation, subjects=30)
    site = federation / "guys" / "site.toml"
    site.write_text(site.read_text().replace("min_count = 0", "min_count = 5"))
    manifest = pd.read_csv(site.parent / "patients.csv")
    for modality, number in (("t1", 1), ("t2", 6)):
        for path in manifest[modality].dropna().iloc[-number:]:
            (site.parent / path).write_bytes(b"no picture")
    port = watched_site(site)
    prometheus = prometheus_of(folder, stack, {"mmare-site": port}, (SITE_RULES,))
    stays(stack, folder / "worker.log", "mmare-site", "start", site)
    until(lambda: prometheus.query("up == 1"), "the worker is scraped", 60)
    assert "mmare_site_worker_scans{" not in scraped(port)

    embedding = stays(stack, folder / "embed.log", "mmare-site", "embed", site)
    prometheus.wait_for("mmare_site_worker_embedding_active == 1", 60)
    hold_up(embedding, load_site(site).cache, prometheus)
    assert embedding.wait(240) == 1, embedding.log.read_text()  # some scans cannot be used
    prometheus.wait_for("mmare_site_worker_embedding_active == 0")
    scans = {name: int(manifest[name].notna().sum()) for name in ("t1", "t2", "pd", "mra")}
    told = {name: number for name, number in scans.items() if number >= 5}
    for metric in ("mmare_site_worker_scans", "mmare_site_worker_scans_done"):
        assert {labels["modality"]: value for labels, value in prometheus.query(metric)} == told
    usable = {labels["modality"] for labels, _ in prometheus.query("mmare_site_worker_scans_usable")}
    assert usable == set(told) - {"t1"}  # what is left of t1 tells how few are refused
    refused = prometheus.query("mmare_site_worker_scans_refused")
    assert [(labels["modality"], value) for labels, value in refused] == [("t2", 6)]
    expected = {("t1", "not-nifti"), ("t2", "not-nifti"), ("t2", None)}

    def alerts():
        return {
            (each["modality"], each.get("reason")) for each in prometheus.wait_for_alert("IngestFailures")
        }

    until(lambda: alerts() == expected, "all alerts fire", 30)
    assert "t1" in {
        labels["modality"]
        for labels, _ in prometheus.query("rate(mmare_site_worker_cache_misses_total[5m]) > 0")
    }
    moved = prometheus.query("max by (modality) (changes(mmare_site_worker_scans_done[5m]))")
    assert any(value > 1 for _, value in moved)  # it was seen on its way
    for path in ("IXI", str(federation), "p-0"):
        assert path not in scraped(port)
    empty = [chart for chart in panels_with(*SCANS) if not prometheus.query(chart.replace(SITE, "guys"))]
    assert empty == []
    check_metrics(port)


def test_a_run_that_falls_silent_is_seen(place):
    folder, stack = place
    study = tiny_study(federation={"deadline_s": 1})
    site = tiny_federation(folder / "fed", study, sites=(SITE,)) / SITE / "site.toml"
    port = watched_site(site)
    ApprovalFolder(site.parent).record(study, 100)
    prometheus = prometheus_of(folder, stack, {"mmare-site": port}, (SITE_RULES,))
    stays(stack, folder / "worker.log", "mmare-site", "start", site, "--part", "worker")
    prometheus.wait_for("mmare_site_worker_run_open == 0", 60)
    worker = WorkerLink(load_site(site).worker.socket)
    roll_call, _ = worker(encode(Request(Task.DESCRIBE, "run", study.to_dict())), b"")
    assert decode(RollCall, roll_call).site == SITE
    prometheus.wait_for("mmare_site_worker_run_open == 1")
    assert [found["site"] for found in prometheus.wait_for_alert("SiteWorkerSilent")] == [SITE]
