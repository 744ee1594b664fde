"""Seconds that a deployed round takes over the sites' own compute: stock Flower, and what is here.

Three sites and their coordinator on this machine, through the real door: nginx, TLS, node keys, SuperLink
with its database. ``MMARE_BENCH_ROUNDS`` sets the rounds (30 for a report). What is gated: bytes a round, and
that every update arrived.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
import tomli_w

from client.membership.kit import make_request
from client.relay.programs import SUPERNODE, RelayFolder, relay_programs
from mmare.study.study import load_study
from server.membership.records import admit
from sites.federation import site_folders
from tests.bench.printed import report
from tests.bench.test_bench import PARAMETERS, federation
from tests.system.deployment import BIN, Coordinator, Hospital, Running, free_ports, needs_nginx, tails, until

pytestmark = [pytest.mark.bench, needs_nginx, pytest.mark.filterwarnings("default")]

SITES = ("site000", "site001", "site002")
ROUNDS = int(os.environ.get("MMARE_BENCH_ROUNDS", "10"))
ROUND_S = 60  # at most, on a busy machine
TICK = os.sysconf("SC_CLK_TCK")
MANY_ROUNDS = 6
ROLES = (  # the first that is in a command line
    ("site_farm", "simulated SuperNodes"),
    ("forkserver", "processes of messages"),
    ("resource_tracker", "resource tracker"),
    ("relay.patched supernode", "SuperNode"),
    ("flower-supernode", "SuperNode"),
    ("relay.patched superexec", "site's SuperExec"),
    ("clientapp", "processes of messages"),
    ("flower-superlink", "SuperLink"),
    ("flwr-serverapp", "ServerApp"),
    ("server.deployment.superexec", "SuperExec"),
    ("--part worker", "worker"),
    ("nginx", "nginx"),
    ("mmare-site console", "mmare-site console"),
    ("mmare-server console", "mmare-server console"),
    ("mmare-site start", "mmare-site start"),
    ("mmare-server", "mmare-server start"),
)


class StockSite(Hospital):
    """Flower alone: a ClientApp that imports torch, reads the data and trains, in a process of its own."""

    def start(self, *_: str) -> None:
        place = f"partition-id={SITES.index(self.name)} num-partitions={len(SITES)}"
        self.start_relay(place)

    def start_relay(self, place: str = "") -> None:
        """Flower's own programs."""
        RelayFolder.of(self.site).make()
        for program in relay_programs(self.site):
            words = list(program.command[5:])  # less python -P -m client.relay.patched ROLE
            if program.name == SUPERNODE:
                words[words.index("--node-config") + 1] = place or words[words.index("--node-config") + 1]
            self.running[program.name] = Running(
                program.log, f"flower-{program.name}", *words, environment={**program.environment, **STOCK}
            )


class StockRelay(StockSite):
    """Flower's relay as it is, with a resident worker."""

    def start(self, *_: str) -> None:
        log = self.folder / "start-worker.log"
        self.running["worker"] = Running(
            log, "mmare-site", "start", self.file, "--part", "worker", environment=STOCK
        )
        self.start_relay()


STOCK = {"OMP_NUM_THREADS": "1"}
VARIANTS = {
    "stock Flower, torch in the ClientApp": StockSite,
    "stock relay, resident worker": StockRelay,
    "warm relay, resident worker": Hospital,
}


@contextmanager
def deployed(kind: type[Hospital], count: int = len(SITES)):
    with tempfile.TemporaryDirectory(prefix="mmare-") as name:
        folder = Path(name)
        source = federation(folder / "fed", count, 60, rounds=ROUNDS)
        coordinator = Coordinator(folder / "kit")
        folders = [source / site.id for site in site_folders(source)]
        sites = [kind(each, port) for each, port in zip(folders, free_ports(count), strict=True)]
        coordinator.hospitals += sites
        try:
            for site in sites:
                site.join(coordinator, source / "study.toml")
            coordinator.start(source, folder / "run")
            until_registered(coordinator, sites[-1].name)  # a stock SuperNode that comes sooner ends
            for site in sites:
                site.start()
            yield folder, coordinator
        finally:
            for site in sites:
                site.stop()
            coordinator.close()


def until_registered(coordinator: Coordinator, site: str) -> None:
    """Until SuperLink knows the keys of all sites, this one being the last."""
    told = f"registered {site}"
    until(lambda: coordinator.says(told), told, ROUND_S * 5, coordinator.logs)


# What processes use


def members(folder: Path) -> dict[int, str]:
    """Roles by process id: processes that name the folder, and those of their groups."""
    lines, groups = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            lines[int(path.name)] = (
                (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            groups[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[2])
        except OSError:
            continue
    leaders = {pid for pid, line in lines.items() if str(folder) in line}
    leaders |= {groups[pid] for pid in leaders if pid in groups}
    return {
        pid: next((role for mark, role in ROLES if mark in line), "other")
        for pid, line in lines.items()
        if groups.get(pid) in leaders and line
    }


def cpu_s(folder: Path) -> dict[str, float]:
    """CPU seconds so far by role, those of ended children in their parents'."""
    spent: dict[str, float] = {}
    for pid, role in members(folder).items():
        try:
            fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        spent[role] = spent.get(role, 0.0) + sum(map(int, fields[11:15])) / TICK
    return spent


def memory_mb(folder: Path) -> dict[str, float]:
    """Proportional set size by role: all processes of it together."""
    found: dict[str, float] = {}
    for pid, role in members(folder).items():
        try:
            text = (Path("/proc") / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        kilobytes = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
        found[role] = found.get(role, 0.0) + kilobytes / 1024
    return found


# What the journal says


def lines(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [event for event in found if "phase" not in event]


def at(event: dict) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def over_compute_s(run: Path) -> list[float]:
    """Per round but the first, seconds beyond those that the slowest site spent on it."""
    found = lines(run)
    begun = {event["round"]: at(event) for event in found if event["event"] == "round_started"}
    spent: dict[int, float] = {}
    for event in found:
        if event["event"] == "site_update" and event["train_loss"] is not None:
            spent[event["round"]] = max(spent.get(event["round"], 0.0), event["seconds"])
    return [
        begun[after] - begun[number] - spent[number]
        for number, after in pairwise(sorted(begun))
        if number > 1
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_round(name):
    with deployed(VARIANTS[name]) as (folder, coordinator):
        run = folder / "run"
        coordinator.until_round(run, 2, ROUND_S * 5)
        before, began, load = cpu_s(folder), time.monotonic(), os.getloadavg()[0]
        coordinator.until_round(run, ROUNDS, ROUND_S * ROUNDS)
        after, wall = cpu_s(folder), time.monotonic() - began
        memory = memory_mb(folder)
        coordinator.finish(ROUND_S * 5)
        rounds = ROUNDS - 2
        updates = [
            event
            for event in lines(run)
            if event["event"] == "site_update" and event["train_loss"] is not None
        ]
        assert len(updates) == ROUNDS * len(SITES), tails([coordinator.folder / "logs" / "start.log"])
        up, down = ({event[key] for event in updates} for key in ("bytes_up", "bytes_down"))
        assert all(abs(each / (PARAMETERS * 4) - 1) < 0.02 for each in up | down), (up, down)
        seconds = over_compute_s(run)
        report(
            f"deployed round, {name}",
            rounds=len(seconds),
            median_s=round(statistics.median(seconds), 2),
            least_s=round(min(seconds), 2),
            most_s=round(max(seconds), 2),
            wall_s=round(wall / rounds, 2),
            load=f"{load:.1f} on {os.cpu_count()} cores",
            up_bytes=f"{min(up):,} a site",
            down_bytes=f"{max(down):,} a site",
        )
        used = {role: (after[role] - before.get(role, 0.0)) / rounds for role in after}
        report("CPU seconds a round", all=round(sum(used.values()), 2), **_rounded(used, 2))
        report("memory, PSS in MB, all of a kind", **_rounded(memory, 0))


def test_a_round_of_secure_sums():
    """Beside plain rounds of the same seven hospitals."""
    with deployed(Hospital, 7) as (folder, coordinator):
        source = load_study(folder / "fed" / "study.toml")
        plain, masked = folder / "run", folder / "masked"
        coordinator.finish(ROUND_S * ROUNDS)
        study = folder / "masked.toml"
        study.write_text(
            tomli_w.dumps(source.override(["privacy.secure_sum=true", "federation.min_sites=7"]).to_dict())
        )
        for hospital in coordinator.hospitals:
            hospital.approve(study)
        coordinator.start(study, masked)
        coordinator.finish(ROUND_S * ROUNDS)
        seconds = {run: statistics.median(round_s(run)) for run in (plain, masked)}
        sent = {
            run: {event["bytes_up"] for event in lines(run) if event["event"] == "site_update"}
            for run in seconds
        }
        report(
            "deployed round of seven sites, secure sums beside plain",
            plain_s=f"{seconds[plain]:.2f}",
            masked_s=f"{seconds[masked]:.2f}",
            ratio=f"{seconds[masked] / seconds[plain]:.2f}",
            up_bytes=f"{max(sent[plain]):,} and {max(sent[masked], default=0):,} a site",
        )


def round_s(run: Path) -> list[float]:
    """Seconds from the start of a round to that of the next, of all but the first."""
    begun = [at(event) for event in lines(run) if event["event"] == "round_started"]
    return [after - before for before, after in pairwise(begun[1:])]


@contextmanager
def simulated_nodes(source: Path, coordinator: Coordinator):
    """SuperNodes of all sites of a federation, in one process."""
    command = ("-m", "tests.bench.site_farm", str(source), f"localhost:{coordinator.port}")
    log = coordinator.folder / "logs" / "farm.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *command, str(coordinator.kit.ca_certificate)],
            stdout=file,
            stderr=file,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("count", [3, 10, 30])
def test_many_sites(count):
    """What limits one coordinator: simulated SuperNodes, all through its one door."""
    with tempfile.TemporaryDirectory(prefix="mmare-") as name:
        folder = Path(name)
        run = folder / "run"
        source = federation(folder / "fed", count, 60, rounds=MANY_ROUNDS)
        coordinator = Coordinator(folder / "kit")
        sites = site_folders(source)
        for site in sites:
            admit(coordinator.kit, make_request(site))
        coordinator.start(source, run, "--min-nodes", count)
        until_registered(coordinator, sites[-1].id)
        with simulated_nodes(source, coordinator):
            coordinator.until_round(run, 2, ROUND_S * 5)
            before = cpu_s(folder)
            coordinator.until_round(run, MANY_ROUNDS, ROUND_S * MANY_ROUNDS)
            after, memory = cpu_s(folder), memory_mb(folder)
            coordinator.finish(ROUND_S * 5)
        coordinator.close()
        updates = [
            event
            for event in lines(run)
            if event["event"] == "site_update" and event["train_loss"] is not None
        ]
        assert len(updates) == MANY_ROUNDS * count, tails([coordinator.folder / "logs" / "start.log"])
        rounds = MANY_ROUNDS - 2
        begun = [at(event) for event in lines(run) if event["event"] == "round_started"]
        report(
            f"round with {count} simulated SuperNodes",
            median_s=round(statistics.median(later - one for one, later in pairwise(begun[1:])), 2),
            site_compute_s=round(sum(event["seconds"] for event in updates) / MANY_ROUNDS, 2),
            load=f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        )
        used = {role: (after[role] - before.get(role, 0.0)) / rounds for role in after}
        report("CPU seconds a round", all=round(sum(used.values()), 2), **_rounded(used, 2))
        report("memory, PSS in MB, all of a kind", **_rounded(memory, 0))


def _rounded(values: dict[str, float], digits: int) -> dict[str, str]:
    return {name: f"{value:.{digits}f}" for name, value in sorted(values.items(), key=lambda item: -item[1])}


def test_a_process_of_a_message():
    """What Flower starts for each message, against a fork of a process that has imported the same."""
    began = time.perf_counter()
    subprocess.run([str(BIN / "flwr-clientapp"), "--help"], check=True, capture_output=True, timeout=60)
    started = time.perf_counter() - began
    code = (
        "import time\n"
        "from multiprocessing import get_context, forkserver\n"
        "def nothing(): pass\n"
        "if __name__ == '__main__':\n"
        "    context = get_context('forkserver')\n"
        "    context.set_forkserver_preload(['client.relay.patched.clientapp'])\n"
        "    forkserver.ensure_running()\n"
        "    for _ in range(6):\n"
        "        began = time.perf_counter()\n"
        "        process = context.Process(target=nothing)\n"
        "        process.start(); process.join()\n"
        "        print(time.perf_counter() - began)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "forks.py"
        file.write_text(code)
        done = subprocess.run(
            [sys.executable, str(file)], check=True, capture_output=True, text=True, timeout=60
        )
    forked = statistics.median(map(float, done.stdout.split()[1:]))
    report("process of a message", started_s=round(started, 2), forked_s=round(forked, 3))
    assert forked < started
