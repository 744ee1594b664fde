"""The console of a site: the same words and the same deeds as the commands."""

import json
from dataclasses import asdict

import pytest

from client.console.pages import SiteConsole
from client.privacy.approvals import ApprovalFolder
from client.privacy.approving import Approving
from client.privacy.proposals import ProposalFolder
from client.privacy.records.audit_log import Entry, Event, log_of
from client.telemetry.embed_record import FILE, EmbedRecord, ScanCounts
from sites.config import load_site
from tests.consoles import Visitor, words
from tests.federations import tiny_study
from tests.kits import site_config

PORT = 9466
KIDNEY = tiny_study(study={"name": "kidney <b>"}, training={"rounds": 77})


@pytest.fixture
def site(tmp_path):
    site_config(tmp_path / "ash")
    return load_site(tmp_path / "ash" / "site.toml")


@pytest.fixture
def visitor(site):
    return Visitor(SiteConsole(site, site.folder / "site.toml").app(PORT), PORT)


def test_the_first_page_says_what_runs(site, visitor):
    said = words(visitor.see("/"))
    assert "not running" in said
    assert "this site has joined no federation" in said
    assert f"mmare-site status {site.folder / 'site.toml'}" in said
    ProposalFolder(site.folder).keep(KIDNEY)
    assert "1 proposed: read and decide" in words(visitor.see("/"))


def test_a_proposal_is_read_approved_and_taken_back(site, visitor):
    ProposalFolder(site.folder).keep(KIDNEY)
    page = visitor.see("/studies")
    assert "kidney &lt;b&gt;" in page
    assert f'href="/study/{KIDNEY.hash}"' in page
    assert "up to 77 rounds" in words(visitor.see(f"/study/{KIDNEY.hash}"))
    status, said = visitor.send(f"/approve/{KIDNEY.hash}")
    assert (status, "tick the box" in said) == (400, True)
    assert ApprovalFolder(site.folder).find(KIDNEY.hash) is None
    status, said = visitor.send(f"/approve/{KIDNEY.hash}", read="yes")
    assert (status, "Approved: kidney" in said) == (303, True)
    assert ApprovalFolder(site.folder).find(KIDNEY.hash).study == KIDNEY
    assert [line["event"] for line in log_of(site).lines()] == ["approved"]  # as by the command
    assert "--revoke" in words(visitor.see(f"/study/{KIDNEY.hash}"))
    assert "No longer approved" in visitor.send(f"/revoke/{KIDNEY.hash}")[1]
    assert ApprovalFolder(site.folder).find(KIDNEY.hash) is None


def test_a_proposal_is_forgotten(site, visitor):
    ProposalFolder(site.folder).keep(KIDNEY)
    assert "Forgotten: kidney" in visitor.send(f"/forget/{KIDNEY.hash}")[1]
    assert ProposalFolder(site.folder).all() == []


@pytest.mark.parametrize(
    "path", ["/study/x", "/study/../../etc", "/study", "/approve/x", "/revoke/x", "/forget/x"]
)
def test_a_study_that_is_not_there_is_a_sentence(visitor, path):
    if path.startswith("/study"):
        status, _, said = visitor.ask("GET", path)
    else:
        status, said = visitor.send(path, read="yes")
    assert status == 400
    assert "no such study at this site" in words(said)


def test_what_left_is_listed_and_a_broken_log_named(site, visitor):
    assert "nothing yet" in words(visitor.see("/log"))
    Approving(site, KIDNEY).approve()
    log = log_of(site)
    log.append(Entry(Event.RELEASED, task="train", study=KIDNEY.hash, what=("update",), bytes=5123))
    log.append(Entry(Event.REFUSED, task="describe", code="S102"))
    log.append(Entry(Event.CHANGED, task="train", study=KIDNEY.hash, table="ab" * 32))
    said = words(visitor.see("/log"))
    assert "4 lines in the chain, none missing or changed" in said
    assert f"table changed train {KIDNEY.hash[:12]} now of version abababababab" in said
    assert "S102, the hospital has not approved this study" in said
    assert "5,123 bytes" in said
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:1] + lines[2:]))
    assert "none missing or changed" not in words(visitor.see("/log"))


def test_scans_and_why_some_cannot_be_used(site, visitor):
    assert "no scan was encoded yet" in words(visitor.see("/scans"))
    site.cache.mkdir(parents=True)
    counts = ScanCounts(1200, 1000, {"truncated-pixel-data": 2})
    (site.cache / FILE).write_text(json.dumps(asdict(EmbedRecord(1e9, True, {"ct": counts}))))
    said = words(visitor.see("/scans"))
    assert "being encoded" in said
    assert "ct 1,200 1,000 2" in said
    assert "Pixel data end before the picture does." in said


def test_predictions_are_counted(site, visitor):
    assert "none yet" in words(visitor.see("/predictions"))
    found = {"model": "ab" * 32, "input": "x", "presence": "10", "call": "dead", "distance": {}}
    log_of(site).append(Entry(Event.PREDICTED, prediction=found))
    assert "abababababab 1 dead 1 10 1" in words(visitor.see("/predictions"))
