"""Three hospitals behind firewalls, real TLS, real kills: the weights are those of the updates that arrived.

Each host is a network namespace; a hospital drops whatever comes in and lets out TCP 443 to the coordinator
alone. After every run the same federation is run in one process, less the updates that the journal says were
left out: the weights must be the same, bit for bit.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w

from mmare.errors import SiteCode
from mmare.study.study import load_study
from server.membership.kit import load_kit, renew
from tests.federations import (
    events,
    run_nodes,
    tiny_federation,
    tiny_study,
    weights,
    while_training,
)
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
from tests.system.network import COORDINATOR, PUBLIC_PORT, needs_namespaces, network, open_ports

pytestmark = [pytest.mark.system, needs_nginx]

LONG_S = 600  # for a run with faults on a busy machine
DEADLINE_S = 15
CUT_S = 35
STUDY = {
    "training": {"patience": 500},
    "federation": {"deadline_s": DEADLINE_S, "max_norm": 100, "min_sites": 2},
}
NAMES = ("ash", "birch", "cedar")


@pytest.fixture(scope="module")
def hosts():
    needs_namespaces()
    with network(3) as found:
        yield found


@pytest.fixture(scope="module")
def place(hosts):
    """The hospitals run for all tests, which each begin a run of their own."""
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        found = Deployment(Path(folder), hosts)
        try:
            for hospital in found.hospitals.values():
                hospital.join(found.coordinator, found.study)
                hospital.start()
            yield found
        finally:
            found.close()


class Deployment:
    """A coordinator and its hospitals, each on a host of its own, with a federation folder between them."""

    def __init__(self, folder: Path, hosts) -> None:
        self.hosts = hosts
        self.federation = tiny_federation(folder / "fed", tiny_study(**STUDY))
        self.study = self.federation / "study.toml"
        self.settings: tuple[str, ...] = ()
        self.coordinator = Coordinator(folder / "kit", COORDINATOR, PUBLIC_PORT, hosts.coordinator.inside())
        self.host_of = dict(zip(NAMES, hosts.hospitals, strict=True))
        self.hospitals = {
            name: Hospital(self.federation / name, port, host.inside())
            for (name, host), port in zip(self.host_of.items(), free_ports(3), strict=True)
        }
        self.coordinator.hospitals += self.hospitals.values()

    def prepare(self, folder: Path, *settings: str) -> None:
        """A study that the hospitals approve, and the folder of its run."""
        self.coordinator.close()
        self.settings, self.study, self.out = settings, folder / "study.toml", folder / "run"
        study = load_study(self.federation / "study.toml").override(settings)
        self.study.write_text(tomli_w.dumps(study.to_dict()))
        for hospital in self.hospitals.values():
            hospital.approve(self.study)

    def start(self, *options: object) -> None:
        self.coordinator.start(self.study, self.out, *options)

    def close(self) -> None:
        self.coordinator.close()
        for hospital in self.hospitals.values():
            hospital.stop()

    def rounds(self) -> int:
        """Rounds that have been finished, counted each time."""
        return sum(event["event"] == "aggregated" for event in whole_events(self.out))

    def after(self, more: int, timeout_s: float = 240) -> None:
        """Until some more rounds are finished."""
        wanted = self.rounds() + more
        until(lambda: self.rounds() >= wanted, f"{more} more rounds", timeout_s, self.coordinator.logs)

    def back(self, site: str, timeout_s: float = 150) -> float:
        """Seconds until the next good update of a site."""
        since = time.time()

        def there() -> bool:
            return any(
                event["event"] == "site_update" and event["site"] == site and moment(event) > since
                for event in whole_events(self.out)
            )

        until(there, f"{site} is back", timeout_s, self.coordinator.logs)
        return time.time() - since

    def left_out(self) -> list[tuple[int, str, str]]:
        found = events(self.out, "site_left_out")
        return [(event["round"], event["site"], event["reason"]) for event in found if "phase" not in event]

    def ends_as_in_one_process(self, folder: Path) -> None:
        """The weights are those of a run in one process that lacks the same updates."""
        arrived = {
            (event["round"], event["site"])
            for event in events(self.out, "site_update")
            if event["train_loss"] is not None
        }
        rounds = {event["round"] for event in events(self.out, "round_started")}
        missing = {name: [each for each in rounds if (each, name) not in arrived] for name in NAMES}

        def absent(_site, _header, _payload):
            raise ConnectionError

        faults = {NAMES.index(site): while_training(absent, *lost) for site, lost in missing.items() if lost}
        run_nodes(self.federation, folder, settings=self.settings, faults=faults)
        assert weights(self.out) == weights(folder), self.left_out()


def moment(event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def test_only_the_public_door_is_open_and_hospitals_have_none(place, tmp_path):
    place.prepare(tmp_path)
    place.start("--min-nodes", 4)  # one who never comes
    assert all(
        [place.coordinator.pid("serverapp"), *(each.pid("supernode") for each in place.hospitals.values())]
    )
    hospital, coordinator = place.host_of["ash"], place.hosts.coordinator
    wanted = sorted(
        {22, 80, PUBLIC_PORT, 8000, 8080, 9094, 9095, 9464, place.coordinator.superlink_port}
        | {each.site.coordinator.runtime_port for each in place.hospitals.values()}
    )
    assert open_ports(hospital, coordinator, wanted) == [PUBLIC_PORT]
    for each in place.hosts.hospitals:
        assert open_ports(coordinator, each, wanted) == []
    for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/v1/fleet/../control/x"):
        told = hospital.run(
            *("curl", "-sk", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST"),
            f"https://{COORDINATOR}{path}",
        )
        assert told in ("403", "404"), path


@pytest.mark.long
def test_whatever_dies_at_a_hospital_the_run_ends_with_what_arrived(place, tmp_path):
    place.prepare(tmp_path, "training.rounds=40")
    took = {}
    with odd_worker(place.hospitals["cedar"], "slow"):
        place.start()
        place.after(2)
        for site, part in (("ash", "worker"), ("birch", "superexec"), ("cedar", "supernode")):
            place.hospitals[site].kill(part)
            took[part] = place.back(site)
        host = place.host_of["birch"]
        host.cut()
        time.sleep(CUT_S)
        host.mend()
        took[f"a cut of {CUT_S} s"] = place.back("birch")
        place.coordinator.finish(LONG_S)
    sys.stderr.write("".join(f"{what}: back after {seconds:.1f} s\n" for what, seconds in took.items()))
    assert "birch" in {site for _, site, _ in place.left_out()}  # it was away for two deadlines
    place.ends_as_in_one_process(tmp_path / "plain")


LYING = "nan:3 huge:5 stale:7 late:9"


def test_a_site_that_sends_what_it_should_not_is_left_out_by_name(place, tmp_path):
    place.prepare(tmp_path, "training.rounds=10")
    with odd_worker(place.hospitals["cedar"], *LYING.split()):
        place.start()
        place.coordinator.finish(LONG_S)
    told = {number: reason for number, site, reason in place.left_out() if site == "cedar"}
    assert set(told) == {3, 5, 7, 9}
    assert told[3] == "values that are not finite"
    assert told[5].startswith("a change of norm")
    assert told[7] == "an answer of site 'cedar' to round 6, expected 'cedar' and 7"
    assert told[9] in ("no answer before the deadline", f"refused: S402, {SiteCode.LATE.meaning}")
    assert {site for _, site, _ in place.left_out()} == {"cedar"}
    place.ends_as_in_one_process(tmp_path / "plain")


def test_another_encoder_and_another_site_s_name_are_named_at_the_roll_call(place, tmp_path):
    place.prepare(tmp_path, "training.rounds=2", "federation.min_sites=1")
    sites = place.hospitals
    with odd_worker(sites["birch"], "other-site"), odd_worker(sites["cedar"], "other-encoder"):
        place.start()
        place.coordinator.finish(LONG_S)
    called = {event["site"]: event for event in events(place.out, "roll_call")}
    assert {site for site, event in called.items() if event["accepted"]} == {"ash"}
    assert called["birch"]["reason"] == "answers as the site 'ash', but its key was admitted for 'birch'"
    assert re.fullmatch(r"encoder of \w+ is another, expected .+", called["cedar"]["reason"])
    assert {event["site"] for event in events(place.out, "site_update")} == {"ash"}


def test_an_expired_certificate_stops_nobody_silently(place, tmp_path):
    place.prepare(tmp_path, "training.rounds=2")
    kit = load_kit(place.coordinator.folder)
    renew(kit, days=2, start=datetime.now(UTC) - timedelta(days=5))
    try:
        place.start()
        assert place.coordinator.wait(60) == 2
        assert place.coordinator.says("expired")
    finally:
        renew(kit)
    place.start()
    place.coordinator.finish(LONG_S)
    place.ends_as_in_one_process(tmp_path / "plain")


@pytest.mark.long
def test_a_full_disk_is_said_and_the_same_command_goes_on(place, tmp_path):
    place.prepare(tmp_path, "training.rounds=12")
    with small_disk(tmp_path / "disk", "96k") as disk:
        place.out = disk / "run"
        place.start("--tries", 2)
        assert place.coordinator.wait(LONG_S) == 1
        assert place.coordinator.says("No space left on device") or place.coordinator.says("disk")
        assert not place.coordinator.processes()
        done = place.rounds()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, timeout=10)
        place.start()
        place.coordinator.finish(LONG_S)
        assert place.rounds() >= done
        place.ends_as_in_one_process(tmp_path / "plain")


def test_who_does_not_belong_is_named_at_the_roll_call_or_not_heard_at_all(place, tmp_path):
    """Another study at one hospital; at another a key that nobody admitted, to the end of these tests."""
    place.prepare(tmp_path, "training.rounds=3", "federation.min_sites=1")
    other, stranger = place.hospitals["birch"], place.hospitals["cedar"]
    changed = tmp_path / "other.toml"
    changed.write_text(place.study.read_text().replace("learning_rate = 0.01", "learning_rate = 0.02"))
    assert changed.read_text() != place.study.read_text()
    command("mmare-site", "approve", place.study, "--site", other.file, "--revoke")
    other.approve(changed)
    stranger.stop()
    command("mmare-site", "kit", "request", stranger.file, "--new-key", "--out", tmp_path / "request.json")
    stranger.start()
    place.start("--min-nodes", 2)
    place.coordinator.finish(LONG_S)
    called = {event["site"]: event for event in events(place.out, "roll_call") if event.get("site")}
    assert [site for site, event in called.items() if event["accepted"]] == ["ash"]
    refused = [event for event in events(place.out, "roll_call") if not event["accepted"]]
    # The node of cedar's old key is gone, and may be asked until SuperLink has noticed.
    assert [event["reason"] for event in refused if event.get("site") != "cedar"] == [
        f"refused: S102, {SiteCode.STUDY.meaning}"
    ]
    assert (stranger.folder / "bundle.zip").exists()
    until(
        lambda: "not admitted" in stranger.logs() or "305" in stranger.logs(),
        "the stranger is told",
        60,
        stranger.logs,
    )


@contextmanager
def small_disk(folder: Path, size: str):
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("a small disk needs root")
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "mmare", str(folder)], check=True, timeout=10
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=10)
