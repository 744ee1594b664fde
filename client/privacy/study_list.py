"""The studies that a site knows: proposed, approved, ended; for ``mmare-site studies`` and the console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.privacy.approvals import ApprovalFolder
from client.privacy.proposals import ProposalFolder
from client.privacy.records.audit_log import log_of
from mmare.errors import InputError
from mmare.host.console import visible
from mmare.study.study import load_study
from mmare.wire.joining import SiteKit

if TYPE_CHECKING:
    from pathlib import Path

    from client.privacy.approvals import Approval
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["StudyRow", "coordinator_of", "named_study", "studies_text", "study_rows"]


@dataclass(frozen=True)
class StudyRow:
    """A study, and what is to be said of it."""

    name: str
    hash: str
    about: str
    study: Study | None = None  # as far as it is kept


def study_rows(site: SiteConfig) -> dict[str, list[StudyRow]]:
    """Every study that the site knows, by ``proposed``, ``approved`` and ``ended``.

    An approved study has ended when the last answer said so, or no answer is left of those allowed.
    """
    approvals = ApprovalFolder(site.folder).all()
    log = log_of(site)
    tallies = log.tallies({each.study_hash: each.time for each in approvals})
    over = {line["study"]: bool(line.get("final")) for line in log.lines() if line.get("study")}
    rows: dict[str, list[StudyRow]] = {"proposed": [], "approved": [], "ended": []}
    known = {approval.study_hash for approval in approvals}
    asks = coordinator_of(site)
    for each in ProposalFolder(site.folder).all():
        if each.study.hash not in known:
            about = f"asked for by {asks}, first {_time(each.first)}, last {_time(each.last.isoformat())}"
            rows["proposed"].append(StudyRow(visible(each.study.name), each.study.hash, about, each.study))
    for approval in approvals:
        used = tallies[approval.study_hash].released if approval.study_hash in tallies else 0
        spent = approval.max_releases is not None and used >= approval.max_releases
        ended = spent or over.get(approval.study_hash, False)
        rows["ended" if ended else "approved"].append(_approved(approval, used, ended=ended))
    for study_hash in sorted(tallies.keys() - known):
        if study_hash and (released := tallies[study_hash].released):
            about = f"no longer approved; {released:,} answers were released"
            rows["ended"].append(StudyRow("a study", study_hash, about))
    return rows


def _approved(approval: Approval, used: int, *, ended: bool) -> StudyRow:
    most = "" if approval.max_releases is None else f" of at most {approval.max_releases:,}"
    about = f"approved by {approval.user} on {_time(approval.time)}; answers released since: {used:,}{most}"
    name = visible(approval.study.name) if approval.study else "a study"
    return StudyRow(name, approval.study_hash, about + "; its last run has ended" * ended, approval.study)


def studies_text(site: SiteConfig, file: Path) -> str:
    """The same for a terminal; ``file`` is the ``site.toml``, for the command to type."""
    lines = []
    for heading, rows in study_rows(site).items():
        lines += [heading, *([] if rows else ["  none"])]
        for row in rows:
            lines += [f"  {row.name}, hash {row.hash[:12]}", f"    {row.about}"]
            if heading == "proposed":
                lines.append(f"    read it and decide: mmare-site approve {row.hash[:12]} --site {file}")
    return "\n".join(lines)


def named_study(site: SiteConfig, name: Path) -> Study:
    """A study file, or a study by the name or hash under which it was proposed or approved.

    Raises:
        InputError: If there is neither.
    """
    if name.exists() or name.suffix == ".toml":
        return load_study(name)
    for approval in ApprovalFolder(site.folder).all():
        if approval.study is not None and str(name) in (approval.study.name, approval.study_hash):
            return approval.study
    return ProposalFolder(site.folder).find(str(name)).study


def coordinator_of(site: SiteConfig) -> str:
    """Who asks, as far as this user can read it."""
    try:
        found = SiteKit(site.coordinator.kit).coordinator()
    except InputError:  # another user's, or absent
        return "the coordinator"
    return f"the coordinator of {visible(found.federation)}, {found.address}"


def _time(iso: str) -> str:
    return f"{iso[:10]} {iso[11:16]} UTC" if iso else "an unknown time"
