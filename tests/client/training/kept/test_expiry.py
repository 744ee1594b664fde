"""Abandoned runs leave a site: the oldest beyond a number, and those that nobody went on with for days."""

import os

import pytest
import torch

from client.training.kept.expiry import DAY_S, KeptRuns, drop_abandoned
from client.training.kept.state import StateStore
from client.worker import make_service
from sites.config import load_site
from tests.federations import tiny_federation

NOW = 1_000 * DAY_S


@pytest.fixture
def folder(tmp_path):
    """Runs last written 0, 1, … 5 days ago."""
    for days in range(6):
        run = tmp_path / f"run-{days}"
        run.mkdir()
        (run / "000001.safetensors").write_bytes(b"state")
        os.utime(run, (0, NOW - days * DAY_S))
    return tmp_path


@pytest.mark.parametrize(
    ("kept", "current", "dropped"),
    [
        pytest.param(KeptRuns(), "run-9", [], id="no limit"),
        pytest.param(KeptRuns(days=3), "run-9", ["run-4", "run-5"], id="age"),
        pytest.param(KeptRuns(days=3), "run-5", ["run-4"], id="a run that is resumed is not dropped"),
        pytest.param(KeptRuns(number=3), "run-9", ["run-2", "run-3", "run-4", "run-5"], id="number"),
        pytest.param(KeptRuns(number=1), "run-3", ["run-0", "run-1", "run-2", "run-4", "run-5"], id="one"),
        pytest.param(KeptRuns(days=4, number=6), "run-9", ["run-5"], id="both"),
    ],
)
def test_runs_expire_by_age_and_number(folder, caplog, kept, current, dropped):
    assert drop_abandoned(folder, kept, current, NOW) == dropped
    assert {path.name for path in folder.iterdir()} == {f"run-{days}" for days in range(6)} - {*dropped}
    assert [record.args[0] for record in caplog.records] == dropped


def test_a_run_that_begins_drops_what_was_abandoned_and_keeps_what_belongs_to_a_model(tmp_path):
    store = StateStore(tmp_path, KeptRuns(number=2))
    for number, run in enumerate(("first", "second", "third")):
        store.save(run, 1, {"w": torch.zeros(1)}, None)
        assert store.held(run) == (1,)
        os.utime(tmp_path / "runs" / run, (0, NOW + number))
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"second", "third"}
    store.keep("second")
    os.utime(tmp_path / "runs" / "second", (0, NOW))
    store.held("fourth")
    store.save("fourth", 1, {"w": torch.zeros(1)}, None)
    store.held("fifth")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"second", "fourth"}


def test_the_hospital_says_how_many_stay(tmp_path):
    file = tiny_federation(tmp_path / "federation", sites=("ash",)) / "ash" / "site.toml"
    assert (load_site(file).keep_runs, load_site(file).keep_days) == (20, 90)
    file.write_text(file.read_text() + "\n[compute]\nkeep_runs = 3\nkeep_days = 7\n")
    site = load_site(file)
    assert make_service(site, None, None)._store._kept == KeptRuns(7, 3)
