"""Two studies at the same hospitals and one at another, all at once: each ends as it would alone."""

import shutil
import tempfile
from pathlib import Path

import pytest
import tomli_w

from mmare.study.study import load_study
from server.deployment.queue import QueueState, queued
from server.deployment.run_records import runs_under_way
from tests.federations import all_events, outcome, run_nodes, tiny_federation, tiny_study
from tests.system.deployment import Coordinator, Hospital, command, free_ports, needs_nginx, until

pytestmark = [pytest.mark.system, needs_nginx]

LONG_S = 400
SITES = ("ash", "birch", "cedar")
STUDIES = {"one": SITES[:2], "two": SITES[:2], "far": SITES[2:]}  # who approves which


def study_of(name):
    return tiny_study(
        study={"name": name, "seed": 3 + len(name)},
        training={"rounds": 12, "patience": 12},
        federation={"min_sites": len(STUDIES[name]), "deadline_s": 60},
    )


@pytest.mark.long
def test_studies_side_by_side_end_as_they_would_alone(tmp_path):
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        place = Path(folder)
        federation = tiny_federation(place / "fed", study_of("one"), sites=SITES)
        coordinator = Coordinator(place / "kit")
        hospitals = {
            name: Hospital(federation / name, port)
            for name, port in zip(SITES, free_ports(len(SITES)), strict=True)
        }
        coordinator.hospitals += hospitals.values()
        files = {}
        for name in STUDIES:
            files[name] = place / f"{name}.toml"
            files[name].write_text(tomli_w.dumps(study_of(name).to_dict()))
        for hospital in hospitals.values():
            hospital.join(coordinator)
            for name, sites in STUDIES.items():
                if hospital.name in sites:
                    hospital.approve(files[name])
            hospital.start()
        coordinator.stay("--side-by-side", 3)
        try:
            all_at_once(coordinator, files)
        finally:
            coordinator.close()
            for hospital in hospitals.values():
                hospital.stop()
        for name, sites in STUDIES.items():
            alone = tmp_path / name
            for site in sites:
                shutil.copytree(federation / site, alone / site)
            shutil.copy(files[name], alone / "study.toml")
            run_nodes(alone, tmp_path / f"{name}-alone")
            run = coordinator.folder / "runs" / f"{name}-federated-seed{study_of(name).seed}"
            assert untold(outcome(run)) == untold(outcome(tmp_path / f"{name}-alone")), name


def untold(result):
    """Less the sites that have not approved the study, and say so."""
    return {**result, "left_out": []}


def all_at_once(coordinator, files):
    for file in files.values():
        command("mmare-server", "submit", file, "--kit", coordinator.folder)
    kit = coordinator.kit

    def states():
        return [entry.state for entry in queued(kit)]

    until(lambda: len(runs_under_way(kit)) == 3, "all are under way", LONG_S, coordinator.logs)
    assert states() == [QueueState.RUNNING] * 3
    assert command("mmare-server", "queue", "--kit", coordinator.folder).count("running") == 3
    until(lambda: QueueState.RUNNING not in states(), "all end", LONG_S, coordinator.logs)
    assert states() == [QueueState.FINISHED] * 3, [entry.said for entry in queued(kit)]
    runs = {
        file.stem: kit.runs / f"{file.stem}-federated-seed{load_study(file).seed}" for file in files.values()
    }
    spans = {name: times(run, "round_started") for name, run in runs.items()}
    assert spans["one"][0] < spans["two"][-1]
    assert spans["two"][0] < spans["one"][-1]  # neither waited for the other's end
    for name, run in runs.items():
        told = {
            event["site"]: event["accepted"] for event in all_events(run) if event["event"] == "roll_call"
        }
        assert told == {site: site in STUDIES[name] for site in SITES}
        assert [event for event in all_events(run) if event["event"] == "site_left_out"] == []
        assert times(run, "run_started")[1:] == []  # in one attempt


def times(run, event):
    return [each["time"] for each in all_events(run) if each["event"] == event]
