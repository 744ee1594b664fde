"""``mmare-site start`` as a hospital runs it: all is back after a kill, and nothing is left behind."""

import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
import tomli_w

from client.relay.programs import RelayFolder
from client.relay.status_file import read_state
from mmare.study.study import load_study
from tests.federations import events, run_nodes, tiny_federation, tiny_study, weights
from tests.system.deployment import (
    Coordinator,
    Hospital,
    command,
    free_ports,
    needs_nginx,
    odd_worker,
    until,
    whole_events,
)

pytestmark = [pytest.mark.system, needs_nginx]

NAMES = ("ash", "birch", "cedar")
RUN_S = 600  # on a busy machine
BACK_S = 150


class Place:
    """A coordinator and three sites on this machine, joined but not started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        study = tiny_study(training={"patience": 5000}, federation={"min_sites": 2, "deadline_s": 60})
        self.federation = tiny_federation(folder / "fed", study)
        self.coordinator = Coordinator(folder / "kit")
        self.sites = {
            name: Hospital(self.federation / name, port)
            for name, port in zip(NAMES, free_ports(3), strict=True)
        }
        self.coordinator.hospitals += self.sites.values()
        for site in self.sites.values():
            site.join(self.coordinator, self.federation / "study.toml")

    def prepare(self, rounds: int) -> Path:
        """The study with other rounds, which all sites approve; what ran before is stopped."""
        self.coordinator.close()
        study = load_study(self.federation / "study.toml").override([f"training.rounds={rounds}"])
        path = self.folder / f"study-{rounds}.toml"
        path.write_text(tomli_w.dumps(study.to_dict()))
        self.out = self.folder / f"run-{rounds}"
        for site in self.sites.values():
            site.approve(path)
        return path

    def begin(self, rounds: int) -> None:
        """Start a run, and the sites that do not run."""
        study = self.prepare(rounds)
        for site in self.sites.values():
            if not site.running:
                site.start()
        self.coordinator.start(study, self.out)

    def after(self, more: int) -> None:
        """Until some more rounds are finished."""
        wanted = self.rounds() + more
        until(lambda: self.rounds() >= wanted, f"{more} more rounds", BACK_S, self.coordinator.logs)

    def rounds(self) -> int:
        return len(self.events("aggregated"))

    def events(self, kind: str) -> list[dict]:
        """Events of the run so far."""
        return [event for event in whole_events(self.out) if event["event"] == kind]

    def back(self, site: str) -> float:
        """Seconds until the next good update of a site."""
        since = time.time()

        def there() -> bool:
            return any(
                event["site"] == site and datetime.fromisoformat(event["time"]).timestamp() > since
                for event in self.events("site_update")
            )

        until(there, f"{site} is back", BACK_S, self.coordinator.logs)
        return time.time() - since

    def close(self) -> None:
        for site in self.sites.values():
            site.stop()
        self.coordinator.close()


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        found = Place(Path(folder))
        try:
            yield found
        finally:
            found.close()


@pytest.fixture(scope="module")
def endless(place):
    """A run that does not end, two rounds old."""
    with odd_worker(place.sites["birch"], "slow"):
        place.begin(rounds=4000)
        until(lambda: place.rounds() > 1, "two rounds", RUN_S, place.coordinator.logs)
        yield place


# Processes


def processes() -> dict[int, tuple[int, int, str]]:
    """Living ones by id: parent, process group, command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state, parent, group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state != "Z":
            found[int(path.name)] = (int(parent), int(group), words)
    return found


def of_site(site: Hospital) -> set[int]:
    """All processes of a site: those that name its folder, and their groups."""
    everything = processes()
    named = {pid for pid, (_, _, words) in everything.items() if f"{site.folder}/" in words}
    return {pid for pid, (_, group, _) in everything.items() if pid in named or group in named}


def message_process(site: Hospital) -> int | None:
    """The process that answers a message: a child of SuperExec's warm process."""
    superexec = site.pid("superexec")
    found = [
        pid
        for pid, (parent, group, _) in processes().items()
        if group == superexec and superexec not in (parent, pid)
    ]
    return found[0] if found else None


def holds_torch(pid: int) -> bool:
    return "/torch/lib/" in Path(f"/proc/{pid}/maps").read_text()


@contextmanager
def in_hand(site: Hospital):
    """A message of the site in the middle of its work, whose process this gives."""
    worker = site.pid("worker")
    found: list[int] = []

    def there() -> bool:
        pid = message_process(site)
        if pid is None:
            return False
        time.sleep(1.0)  # so that it has come as far as the worker; that of the message before has ended
        found[:] = [pid]
        return message_process(site) == pid

    os.kill(worker, signal.SIGSTOP)
    try:
        until(there, "a message is in hand", BACK_S, site.logs)
        yield found[0]
    finally:
        os.kill(worker, signal.SIGCONT)


def test_a_run_gives_the_same_bits_and_its_relay_is_light(place, tmp_path):
    place.begin(rounds=5)
    place.coordinator.until_round(place.out, 2)
    site = place.sites["birch"]
    with in_hand(site) as pid:
        assert holds_torch(site.pid("worker"))
        light = of_site(site) - {site.pid("worker")}
        assert {pid, site.pid("superexec"), site.pid("supernode")} <= light
        assert [each for each in light if holds_torch(each)] == []
    place.coordinator.finish(RUN_S)
    run_nodes(place.federation, tmp_path / "plain", settings=["training.rounds=5"])
    assert weights(place.out) == weights(tmp_path / "plain")
    assert events(place.out, "site_left_out") == []

    told = command("mmare-site", "status", site.file)
    assert f"localhost:{place.coordinator.port}, federation test" in told
    assert "the coordinator may be unreachable" not in told
    assert all(f"{name}: running for" in told for name in ("worker", "supernode", "superexec"))
    second = command("mmare-site", "start", site.file, expect=1)
    assert "mmare-site start of this site is running already" in second

    assert site.running.pop("all").stop() == 0
    assert of_site(site) == set()
    assert not RelayFolder.of(site.site).state.exists()
    assert "not running" in command("mmare-site", "status", site.file, expect=1)


def test_whatever_is_killed_is_back_in_seconds(endless):
    took = {}
    for name, part in zip(NAMES, ("worker", "supernode", "superexec"), strict=True):
        site = endless.sites[name]
        pid = site.pid(part)
        site.kill(part)
        took[part] = endless.back(name)
        assert site.pid(part) != pid
        endless.after(1)
    site = endless.sites["ash"]
    with in_hand(site) as pid:
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}/root").exists(), "it is gone", 30)
        since = time.time()
    endless.back("ash")
    took["process of a message"] = time.time() - since
    sys.stderr.write("".join(f"killed {what}: back after {took[what]:.1f} s\n" for what in took))
    assert max(took.values()) < 60, took  # Flower alone needs a minute to notice

    everything = of_site(site)
    assert len(everything) >= 5
    site.running["all"].kill()  # who keeps them all
    until(lambda: not of_site(site), "no orphan", 60, site.logs)
    site.running.pop("all").wait(10)
    site.start()
    endless.back("ash")
    assert endless.coordinator.running.alive()


def test_told_to_stop_it_finishes_the_message_in_hand(endless):
    site = endless.sites["cedar"]
    with in_hand(site):
        left = site.running.pop("all")
        left.kill(signal.SIGTERM)
        time.sleep(2.0)
        assert left.alive()
        number = endless.rounds() + 1
    assert left.wait(60) == 0
    assert of_site(site) == set()
    endless.after(1)
    given = {(event["site"], event["round"]) for event in endless.events("site_update")}
    left_out = endless.events("site_left_out")
    assert ("cedar", number) in given, left_out
    assert [event for event in left_out if event["round"] == number] == []


def test_the_worker_alone_and_the_relay_alone(place):
    """As two users would start them; the relay is told, and waits, until there is a worker."""
    study = place.prepare(rounds=3)
    apart = place.sites["cedar"]
    apart.stop()
    apart.start("relay")
    log = apart.folder / "start-relay.log"
    until(lambda: "starts once the site worker answers" in log.read_text(), "it says so", 60, apart.logs)
    state = read_state(RelayFolder.of(apart.site))
    assert {program.name: program.starts for program in state.programs} == {"supernode": 0, "superexec": 0}
    for name in NAMES[:2]:
        if not place.sites[name].running:
            place.sites[name].start()
    apart.start("worker")
    place.coordinator.start(study, place.out)
    place.coordinator.finish(RUN_S)
    assert events(place.out, "site_left_out") == []
    assert {event["site"] for event in events(place.out, "site_update")} == set(NAMES)
    assert apart.running["relay"].stop() == 0
    assert apart.running["worker"].alive()
    assert apart.running["worker"].stop() == 0
    assert of_site(apart) == set()
