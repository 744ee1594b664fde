"""Attack: take releases out of the audit log, so that the budget of an approval is whole again."""

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.privacy.approvals import ApprovalFolder
from client.privacy.gate import Gate
from client.privacy.records.audit_log import Entry, Event, log_of
from mmare.errors import RunError, SiteCode, SiteError
from mmare.study.study import load_study
from sites.config import load_site
from tests.federations import tiny_federation

RUNNER = CliRunner()
BUDGET = 3


@pytest.fixture
def spent(tmp_path):
    """A site whose budget of releases is used up."""
    federation = tiny_federation(tmp_path / "federation", sites=("ash",), patients=16)
    file = federation / "ash" / "site.toml"
    file.write_text(file.read_text().replace("[policy]\n", f"[policy]\nmax_releases = {BUDGET}\n"))
    command(federation, "approve", federation / "study.toml", "--site", file, "--yes")
    log = log_of(load_site(file))
    for _ in range(BUDGET):
        log.append(Entry(Event.RELEASED, study=load_study(federation / "study.toml").hash))
    assert refusal(federation) is SiteCode.RELEASES
    return federation


def command(_federation, *arguments):
    result = RUNNER.invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refusal(federation):
    """Of the gate of a worker that was started again."""
    site = load_site(federation / "ash" / "site.toml")
    gate = Gate(site.id, ApprovalFolder(site.folder), site.min_count, log_of(site))
    with pytest.raises(SiteError) as error:
        gate.admit(load_study(federation / "study.toml").to_dict())
    return error.value.code


def remove_last(log):
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-1]))


def remove_releases(log):
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:1]))


def remove_releases_and_head(log):
    remove_releases(log)
    log.head_path.unlink()


def remove_log(log):
    log.path.unlink()


def remove_log_and_head(log):
    log.path.unlink()
    log.head_path.unlink()


def change_one(log):
    log.path.write_text(log.path.read_text().replace("released", "refused", 1))


@pytest.mark.parametrize(
    "attack",
    [remove_last, remove_releases, remove_releases_and_head, remove_log, remove_log_and_head, change_one],
)
def test_lines_that_are_missing_or_changed_restore_no_budget(spent, attack, caplog):
    site = spent / "ash" / "site.toml"
    verified = command(spent, "audit", "verify", site)
    assert verified.exit_code == 0
    assert "4 lines in the chain" in verified.stdout
    attack(log_of(load_site(site)))
    assert refusal(spent) is SiteCode.CHAIN
    assert "approve the studies again" in caplog.text
    with pytest.raises(RunError, match=r"audit\.jsonl: .*(line|audit\.head)"):
        command(spent, "audit", "verify", site)
    approved = command(spent, "approve", spent / "study.toml", "--site", site, "--yes")
    assert "The audit log does not verify" in approved.stdout
    assert command(spent, "audit", "verify", site).exit_code == 0
    assert list(log_of(load_site(site)).lines())[-1]["broken"]


def test_a_worker_that_runs_notices_too(spent):
    config = load_site(spent / "ash" / "site.toml")
    study = load_study(spent / "study.toml").to_dict()
    ApprovalFolder(config.folder).record(load_study(spent / "study.toml"), None)
    gate = Gate(config.id, ApprovalFolder(config.folder), config.min_count, log_of(config))
    gate.admit(study)
    remove_last(log_of(config))
    with pytest.raises(SiteError) as error:
        gate.admit(study)
    assert error.value.code is SiteCode.CHAIN
