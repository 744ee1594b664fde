"""Studies that were asked for without approval: kept within bounds, listed, approved by name."""

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.privacy import proposals
from client.privacy.approvals import ApprovalFolder
from client.privacy.gate import Gate
from client.privacy.proposals import MOST_PROPOSALS, ProposalFolder
from client.privacy.records.audit_log import log_of
from mmare.errors import InputError, SiteCode, SiteError
from mmare.host.console import run_command
from tests.federations import tiny_study
from tests.kits import site_config

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def site(tmp_path):
    return site_config(tmp_path / "ash")


def asked_for(site, study):
    """As a request for it does."""
    gate = Gate(site.id, ApprovalFolder(site.folder), 5, log_of(site))
    with pytest.raises(SiteError) as refused:
        gate.admit(study.to_dict())
    assert refused.value.code is SiteCode.STUDY


def named(name, rounds=2):
    return tiny_study(study={"name": name}, training={"rounds": rounds})


def invoke(*words):
    result = RUNNER.invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_study_that_is_asked_for_is_kept_and_not_approved(site):
    study = tiny_study()
    asked_for(site, study)
    (kept,) = ProposalFolder(site.folder).all()
    assert kept.study == study
    assert kept.path.stat().st_mode & 0o077 == 0
    asked_for(site, study)
    assert len(ProposalFolder(site.folder).all()) == 1
    assert ApprovalFolder(site.folder).find(study.hash) is None


def test_a_thousand_proposals_are_twenty(site, caplog):
    for number in range(MOST_PROPOSALS + 5):
        asked_for(site, named(f"study-{number}", rounds=number + 1))
    names = {each.study.name for each in ProposalFolder(site.folder).all()}
    assert names == {f"study-{number}" for number in range(MOST_PROPOSALS)}
    assert "20 proposals are kept already" in caplog.text


def test_a_proposal_of_a_megabyte_is_not_kept(site, caplog, monkeypatch):
    monkeypatch.setattr(proposals, "MOST_BYTES", 500)
    asked_for(site, tiny_study())
    assert ProposalFolder(site.folder).all() == []
    assert "too large to keep" in caplog.text


def test_a_full_disk_loses_the_proposal_and_nothing_else(site, caplog):
    (site.folder / "proposed").write_text("in the way")
    asked_for(site, tiny_study())
    assert "cannot be written" in caplog.text


def test_a_damaged_proposal_is_none(site):
    asked_for(site, tiny_study())
    (path,) = (site.folder / "proposed").iterdir()
    path.write_text("[study")
    assert ProposalFolder(site.folder).all() == []


def test_a_proposal_is_found_by_name_or_hash(site):
    folder = ProposalFolder(site.folder)
    study, twin = named("kidney"), tiny_study(study={"name": "kidney"}, training={"rounds": 9})
    asked_for(site, study)
    assert folder.find("kidney").study == folder.find(study.hash[:8]).study == study
    asked_for(site, twin)
    with pytest.raises(InputError, match="several studies of this name were proposed"):
        folder.find("kidney")
    with pytest.raises(InputError, match="neither a file nor a study that was proposed"):
        folder.find("liver")


def test_it_is_listed_approved_by_name_and_listed_as_approved(site):
    file, study = site.folder / "site.toml", named("kidney")
    assert invoke("studies", file).count("none") == 3
    asked_for(site, study)
    said = invoke("studies", file)
    assert f"kidney, hash {study.hash[:12]}" in said
    assert f"mmare-site approve {study.hash[:12]} --site {file}" in said
    said = invoke("approve", "kidney", "--site", file, "--yes")
    assert "What will leave" in said
    assert ApprovalFolder(site.folder).find(study.hash) is not None
    before, _, after = invoke("studies", file).partition("approved")
    assert "none" in before
    assert "answers released since: 0 of at most " in after
    assert "no longer approved" in invoke("approve", "kidney", "--site", file, "--revoke")


def test_a_proposal_can_be_forgotten(site):
    asked_for(site, named("kidney"))
    assert "forgotten: kidney" in invoke("studies", site.folder / "site.toml", "--forget", "kidney")
    assert ProposalFolder(site.folder).all() == []


def test_a_name_that_nobody_proposed_is_bad_input(site, capsys):
    words = ["approve", "liver", "--site", str(site.folder / "site.toml")]
    assert run_command(lambda given: app(given, standalone_mode=True), words) == 2
    assert "liver: neither a file nor a study that was proposed; proposed: none" in capsys.readouterr().err
