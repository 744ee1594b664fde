"""A coordinator that stays: studies reach hospitals by themselves; runs wait, follow, are aborted."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tomli_w

from client.relay.worker_link import WorkerLink
from client.status import relay_text
from mmare.errors import SiteCode
from server.deployment.queue import find
from tests.federations import all_events, outcome, run_nodes, tiny_federation, tiny_study, weights
from tests.system.deployment import Coordinator, Hospital, command, free_ports, needs_nginx, until

pytestmark = [pytest.mark.system, needs_nginx]

LONG_S = 300
NAMES = ("ash", "birch")


def test_studies_reach_hospitals_and_runs_follow_each_other(tmp_path):
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        place = Path(folder)
        study = tiny_study(training={"rounds": 2}, federation={"min_sites": 2, "deadline_s": 40})
        federation = tiny_federation(place / "fed", study, sites=NAMES)
        coordinator = Coordinator(place / "kit")
        hospitals = [
            Hospital(federation / name, port) for name, port in zip(NAMES, free_ports(2), strict=True)
        ]
        coordinator.hospitals += hospitals
        for hospital in hospitals:
            hospital.join(coordinator)
            hospital.start()
        coordinator.stay()
        try:
            waits_and_finishes(coordinator, hospitals, federation, tmp_path)
            is_aborted_and_resumes(coordinator, hospitals, place)
        finally:
            coordinator.close()
            for hospital in hospitals:
                hospital.stop()


@pytest.mark.long
def test_a_run_is_taken_up_again_when_its_sites_are_back(tmp_path):
    """Given up for want of sites in the middle, with time to wait: it goes on where it was."""
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        place = Path(folder)
        study = tiny_study(
            training={"rounds": 12, "patience": 12}, federation={"min_sites": 2, "deadline_s": 10}
        )
        federation = tiny_federation(place / "fed", study, sites=NAMES)
        coordinator = Coordinator(place / "kit")
        hospitals = [
            Hospital(federation / name, port) for name, port in zip(NAMES, free_ports(2), strict=True)
        ]
        coordinator.hospitals += hospitals
        for hospital in hospitals:
            hospital.join(coordinator, federation / "study.toml")
            hospital.start()
        coordinator.stay()
        try:
            name = submitted(coordinator, federation / "study.toml", "--wait", "1h")
            coordinator.until_round(coordinator.kit.runs / name, 2, LONG_S)
            hospitals[1].stop()
            until(lambda: state(coordinator, name) == "queued", "it waits", LONG_S, coordinator.logs)
            assert "birch: not connected" in find(coordinator.kit, name).said
            hospitals[1].start()
            until(lambda: state(coordinator, name) == "finished", "it finishes", LONG_S, coordinator.logs)
            out = coordinator.kit.runs / name
            assert [event for event in all_events(out) if event["event"] == "resumed"]
        finally:
            coordinator.close()
            for hospital in hospitals:
                hospital.stop()
        run_nodes(federation, tmp_path / "plain")
        assert weights(out) == weights(tmp_path / "plain")


def state(coordinator, name):
    return find(coordinator.kit, name).state.value


def submitted(coordinator, study, *options):
    said = command("mmare-server", "submit", study, "--kit", coordinator.folder, *options)
    return said.split(",")[0].removeprefix("queued: ")


def waits_and_finishes(coordinator, hospitals, federation, tmp_path):
    """Nobody has approved it: the run waits, says for whom, and begins once both have, by its name."""

    def connected():
        worker = WorkerLink(hospitals[0].site.worker.socket).status()
        words = relay_text(hospitals[0].site, datetime.now(UTC), worker).lines
        return "connected, no study under way" in words

    until(connected, "it is connected", LONG_S, coordinator.logs)
    name = submitted(coordinator, federation / "study.toml", "--wait", "1h")
    meaning = f"ash: refused: S102, {SiteCode.STUDY.meaning}"
    until(
        lambda: meaning in find(coordinator.kit, name).said,
        "it says who is missing",
        LONG_S,
        coordinator.logs,
    )
    assert state(coordinator, name) == "queued"
    out = coordinator.kit.runs / name
    assert len([each for each in all_events(out) if each["event"] == "run_started"]) == 1  # not five times
    shown = " ".join(command("mmare-server", "queue", "--kit", coordinator.folder).split())
    assert "tried again until" in shown
    for hospital in hospitals:
        assert f"mmare-site approve {tiny_hash(federation)}" in command(
            "mmare-site", "studies", hospital.file
        )
        command("mmare-site", "approve", "tiny", "--site", hospital.file, "--yes")
    until(lambda: state(coordinator, name) == "finished", "it finishes", LONG_S, coordinator.logs)
    run_nodes(federation, tmp_path / "plain")
    assert outcome(out) == outcome(tmp_path / "plain")


def tiny_hash(federation):
    from mmare.study.study import load_study

    return load_study(federation / "study.toml").hash[:12]


def is_aborted_and_resumes(coordinator, hospitals, place):
    """The second study runs on the same programs; aborted in a round it ends, submitted again it resumes."""
    endless = tiny_study(
        study={"name": "endless"},
        training={"rounds": 4000, "patience": 4000},
        federation={"min_sites": 2, "deadline_s": 40},
    )
    file = place / "endless.toml"
    file.write_text(tomli_w.dumps(endless.to_dict()))
    for hospital in hospitals:
        hospital.approve(file)
    before = {name: pid for name, pid in coordinator.processes().items() if name != "serverapp"}
    name = submitted(coordinator, file)
    out = coordinator.kit.runs / name
    coordinator.until_round(out, 3)
    assert "ends within seconds" in command("mmare-server", "abort", name, "--kit", coordinator.folder)
    until(lambda: state(coordinator, name) == "aborted", "it is aborted", 60, coordinator.logs)
    until(lambda: "serverapp" not in coordinator.processes(), "its ServerApp ends", 30, coordinator.logs)
    assert coordinator.processes() == before
    reached = json.loads((out / "rounds.jsonl").read_text().splitlines()[-1])
    assert reached["event"] == "run_failed"
    rounds = len([each for each in all_events(out) if each["event"] == "checkpoint"])
    submitted(coordinator, file)
    coordinator.until_round(out, rounds + 2)
    assert [each for each in all_events(out) if each["event"] == "resumed"][-1]["resumed_from"] >= rounds - 1
    assert coordinator.running.stop() == 0
    assert state(coordinator, name) == "queued"  # and resumes with the next start
