"""A client that crashes with a path and a patient's id in its exception, and all that the server received."""

import json
import logging
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

import client.privacy.gate
import client.training.service
from client.privacy.approvals import ApprovalFolder
from client.privacy.records.audit_log import AuditLog
from client.relay.app import app as client_app
from client.relay.app import register_factory
from client.worker import Worker, make_service, serve
from mmare.errors import DataError, SiteCode
from mmare.study.study import load_study
from server.rounds.flower_fleet import GridFleet
from server.run.folder import execute
from simulation.engine import InProcessGrid
from sites.config import load_site
from tests.federations import all_events, node_configs, request_of, tiny_federation
from tests.properties import first_quick

PRIVATE = "/data/oncology/patients.csv: patient TCGA-07-1234 born 1951"
WORDS = ("oncology", "TCGA", "patients.csv", "born")  # no number: metric states are full of them
SITE = "birch"


class Listening(InProcessGrid):
    """Keeps every message that reaches the server, as text."""

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.has_error():
                self.heard.append(f"{reply.error.code} {reply.error.reason}")
            else:
                records = reply.content
                self.heard += [str(dict(record)) for record in records.config_records.values()]
                self.heard += [
                    str((list(record), [array.data for array in record.values()]))
                    for record in records.array_records.values()
                ]
        return replies

    heard: list[str]


@pytest.fixture
def federation():
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        yield tiny_federation(Path(folder) / "federation")


@contextmanager
def working(federation):
    """The second site's worker behind its socket; gives the configuration of its node."""
    site = load_site(federation / SITE / "site.toml")
    approvals = ApprovalFolder(site.folder)
    approvals.record(load_study(federation / "study.toml").override(["training.rounds=2"]), None)
    service = make_service(site, approvals, AuditLog(site.folder / "audit.jsonl"))
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=serve, args=(Worker(service), site.worker, ready.set, stop))
    thread.start()
    assert ready.wait(10)
    try:
        yield {"socket": str(site.worker.socket)}
    finally:
        stop.set()
        thread.join(10)


def run(federation, out, node):
    """A run in which the second site is ``node``; gives all that the server heard."""
    request = request_of(federation, out, settings=("training.rounds=2",))
    configs = node_configs(3, {})
    grid = Listening(client_app, [configs[0], node, configs[2]], request.to_config())
    grid.heard = []
    execute(GridFleet(grid, poll_s=0.0), request)
    return grid.heard


def raising(error):
    def fail(*_arguments, **_more):
        raise error

    return fail


def in_service(name):
    """Crash a function of the service where the worker calls it; the other sites are in this process, too."""

    def arm(patch, error):
        real = getattr(client.training.service, name)

        def maybe(*arguments, **more):
            if threading.current_thread().name.startswith("ThreadPoolExecutor"):  # of the worker
                raise error
            return real(*arguments, **more)

        patch.setattr(client.training.service, name, maybe)

    return arm


def in_data(patch, error):
    patch.setattr("client.worker.load_data", raising(error))


def in_gate(patch, error):
    real = client.privacy.gate.check_answer

    def maybe(answer, *more):
        if answer.site == SITE:
            raise error
        return real(answer, *more)

    patch.setattr(client.privacy.gate, "check_answer", maybe)


CRASHES = {
    "data": in_data,
    "training": in_service("train_round"),
    "evaluation": in_service("evaluate"),
    "packing": in_service("pack"),
    "gate": in_gate,
}


ERRORS = {
    "data": DataError(PRIVATE),
    "os": OSError(2, PRIVATE, "/data/oncology/patients.csv"),
    "key": KeyError(PRIVATE),
    "exit": SystemExit(PRIVATE),
}
CASES = [("data", error) for error in ERRORS] + [(where, "key") for where in CRASHES if where != "data"]


@pytest.mark.parametrize(("where", "kind"), first_quick(*CASES))
def test_the_server_receives_a_code_and_nothing_else_of_a_crash(
    federation, tmp_path, monkeypatch, caplog, where, kind
):
    error = ERRORS[kind]
    with ExitStack() as stack:
        node = stack.enter_context(working(federation))
        CRASHES[where](monkeypatch, error)
        with caplog.at_level(logging.ERROR):
            heard = run(federation, tmp_path / "run", node)
    code = SiteCode.DATA if isinstance(error, DataError) else SiteCode.INTERNAL
    assert any(f'"code":"{code.value}"' in text for text in heard)
    for text in (*heard, json.dumps(all_events(tmp_path / "run"))):
        assert not [word for word in WORDS if word in text]
    assert "TCGA-07-1234" in caplog.text  # the hospital's own log says it all
    audit = (federation / SITE / "audit.jsonl").read_text()
    assert not [word for word in WORDS if word in audit]


def test_a_relay_that_crashes_says_no_more(federation, tmp_path):
    register_factory("crashing", raising(FileNotFoundError(2, PRIVATE)))
    heard = run(federation, tmp_path / "run", {"site-factory": "crashing"})
    assert f"2 {SiteCode.INTERNAL.value}" in heard
    assert not [word for word in WORDS if any(word in text for text in heard)]


def test_a_trainer_that_lies_is_held_back_by_the_gate(federation, tmp_path, monkeypatch, caplog):
    """What it says of itself would let a patient's row out; the study does not."""
    real = client.training.service.pack
    row = torch.frombuffer(bytearray(PRIVATE.encode()), dtype=torch.uint8)

    def smuggling(tensors):
        packed = real(tensors)
        if threading.current_thread().name.startswith("ThreadPoolExecutor"):
            return torch.cat([packed, row])
        return packed

    with working(federation) as node:
        monkeypatch.setattr(client.training.service, "pack", smuggling)
        heard = run(federation, tmp_path / "run", node)
    assert any(f'"code":"{SiteCode.RELEASE.value}"' in text for text in heard)
    assert not [word for word in WORDS if any(word in text for text in heard)]
    assert "held back" in caplog.text
    left_out = {
        (event["site"], event["reason"])
        for event in all_events(tmp_path / "run")
        if event["event"] == "site_left_out"
    }
    assert (SITE, f"refused: {SiteCode.RELEASE.value}, {SiteCode.RELEASE.meaning}") in left_out


def test_what_left_is_what_the_log_says(federation, tmp_path):
    with working(federation) as node:
        heard = run(federation, tmp_path / "run", node)
    log = AuditLog(federation / SITE / "audit.jsonl")
    lines = list(log.lines())
    assert [line["task"] for line in lines] == ["describe", "statistics", *["train"] * 2, *["evaluate"] * 2]
    assert {line["event"] for line in lines} == {"released"}
    assert len(heard) >= 3 * len(lines)
    updates = [
        event["bytes_up"]
        for event in all_events(tmp_path / "run")
        if event["event"] == "site_update" and event["site"] == SITE
    ]
    assert [line["bytes"] for line in lines[2:]] == updates
    assert log.tallies()[lines[0]["study"]].released == 6
