"""A coordinator that stays: what waiting costs, two studies side by side, strangers at its door.

Through the real door, as `tests.bench.test_deployed_round`. ``MMARE_BENCH_ROUNDS`` sets the rounds.
"""

import http.client
import os
import secrets
import signal
import ssl
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import tomli_w

from client.relay.worker_link import WorkerLink
from client.status import relay_text
from mmare.study.study import load_study
from server.deployment.queue import QueueState, queued
from sites.federation import site_folders
from tests.bench.printed import report
from tests.bench.test_bench import federation
from tests.bench.test_deployed_round import ROUND_S, ROUNDS, cpu_s, memory_mb, round_s
from tests.kits import free_port
from tests.system.deployment import (
    Coordinator,
    Hospital,
    Running,
    command,
    free_ports,
    needs_nginx,
    until,
)

pytestmark = [pytest.mark.bench, needs_nginx, pytest.mark.filterwarnings("default")]

SITES = 3
SETTLES_S = 60.0  # until waiting sites ask as seldom as they ever do
WATCHED_S = 180.0
STRANGERS = 12
BODY = 15 << 20


@contextmanager
def standing(count: int = SITES):
    """A coordinator without a study, and sites that are connected."""
    with tempfile.TemporaryDirectory(prefix="mmare-") as name:
        folder = Path(name)
        source = federation(folder / "fed", count, 60, rounds=ROUNDS)
        coordinator = Coordinator(folder / "kit")
        places = [source / site.id for site in site_folders(source)]
        coordinator.hospitals += map(Hospital, places, free_ports(count))
        try:
            for hospital in coordinator.hospitals:
                hospital.join(coordinator, source / "study.toml")
            coordinator.stay()
            for hospital in coordinator.hospitals:
                hospital.start()
            for hospital in coordinator.hospitals:
                until(lambda it=hospital: connected(it), "it is connected", ROUND_S * 5, coordinator.logs)
            yield folder, coordinator
        finally:
            for hospital in coordinator.hospitals:
                hospital.stop()
            coordinator.close()


def connected(hospital):
    status = WorkerLink(hospital.site.worker.socket).status()
    return status is not None and "connected" in relay_text(hospital.site, datetime.now(UTC), status).lines


def test_waiting():
    """Requests of a site that waits, memory of all that stays, and their processor time."""
    with standing() as (folder, coordinator), ExitStack() as stack:
        site = coordinator.hospitals[0].file
        for words in (("mmare-site", "console", site), ("mmare-server", "console", "--kit", folder / "kit")):
            console = Running(folder / f"{words[0]}.log", *words, "--port", free_port())
            stack.callback(console.stop)
        config = coordinator.kit.nginx / "nginx.conf"
        config.write_text(config.read_text().replace(" refused if=$refused", " refused"))
        os.kill(coordinator.pid("proxy"), signal.SIGHUP)
        time.sleep(SETTLES_S)
        log = coordinator.kit.logs / "proxy.log"
        before, seen, began = cpu_s(folder), log.read_text().count("/v1/fleet/"), time.monotonic()
        time.sleep(WATCHED_S)
        took = time.monotonic() - began
        asked = log.read_text().count("/v1/fleet/") - seen
        spent, memory = cpu_s(folder), memory_mb(folder)
        report(
            "a waiting site",
            requests_an_hour=round(asked / SITES / took * 3600),
            sites=SITES,
            watched_s=round(took),
        )
        used = {role: 100 * (spent[role] - before.get(role, 0.0)) / took for role in spent}
        report("idle, percent of a core", **{role: f"{share:.1f}" for role, share in used.items()})
        report("idle, PSS in MB, all of a kind", **{role: f"{size:.0f}" for role, size in memory.items()})


def test_two_studies_side_by_side():
    """Seconds a round of each alone, one after the other, and of both at once at the same sites."""
    with standing() as (folder, coordinator):
        study = load_study(folder / "fed" / "study.toml")
        files = {}
        for name in ("one", "two"):
            files[name] = folder / f"{name}.toml"
            content = study.to_dict()
            content["study"]["name"] = name
            files[name].write_text(tomli_w.dumps(content))

        def run(name, *options):
            command("mmare-server", "submit", files[name], "--kit", coordinator.folder, *options)

        def finished():
            entries = queued(coordinator.kit)
            assert not {QueueState.FAILED, QueueState.ABORTED} & {entry.state for entry in entries}
            return all(entry.state is QueueState.FINISHED for entry in entries)

        spent = [sum(cpu_s(folder).values())]
        for name in files:
            run(name, "--name", f"{name}-alone")
            until(finished, name, ROUND_S * ROUNDS, coordinator.logs)
        spent.append(sum(cpu_s(folder).values()))
        for name in files:
            run(name, "--name", f"{name}-beside")
        until(finished, "both", ROUND_S * ROUNDS, coordinator.logs)
        spent.append(sum(cpu_s(folder).values()))
        medians = {
            path.name: statistics.median(round_s(path)) for path in sorted(coordinator.kit.runs.iterdir())
        }
        report(
            "seconds a round, two studies at the same sites",
            **{name: f"{seconds:.2f}" for name, seconds in medians.items()},
            ratio=f"{sum(medians[f'{name}-beside'] / medians[f'{name}-alone'] for name in files) / 2:.2f}",
            cpu_s_of_two_runs=f"{spent[1] - spent[0]:.0f} in turn, {spent[2] - spent[1]:.0f} side by side",
            load=f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        )


def test_strangers():
    """SuperLink's memory while twelve strangers send 15 MiB each: by the door, and without one."""
    with standing(1) as (_, coordinator):
        kit = coordinator.kit
        pid = coordinator.pid("superlink")
        for name, port in (("through the door", kit.port), ("without the door", kit.superlink_port)):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # its peak begins anew
            before = psutil.Process(pid).memory_info().rss
            threads = [
                threading.Thread(target=send, args=(kit.ca_certificate, port)) for _ in range(STRANGERS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
            after = psutil.Process(pid).memory_info().rss
            report(
                f"SuperLink, {STRANGERS} strangers of {BODY >> 20} MiB each, {name}",
                before_mb=f"{before / 1e6:.0f}",
                most_mb=f"{peak(pid) / 1e6:.0f}",
                after_mb=f"{after / 1e6:.0f}",
            )
            if port == kit.port:
                assert peak(pid) - before < BODY


def peak(pid):
    """Largest resident size of a process since it began anew."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def send(authority, port):
    """What a stranger sends whole, if it is let."""
    context = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=60)
    headers = {"flwr-public-key": secrets.token_urlsafe(90), "content-type": "application/protobuf"}
    with suppress(OSError, http.client.HTTPException):  # refused before it has sent it
        connection.request("POST", "/v1/fleet/push-object", bytes(BODY), headers)
        connection.getresponse().read()
    connection.close()
