"""The pages of a site's console and what its forms do; every action is also a command."""

from __future__ import annotations

import json
import shlex
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from client.ingest.reasons import ScanReason, explain
from client.privacy.approvals import ApprovalFolder
from client.privacy.proposals import ProposalFolder
from client.privacy.records.audit_log import Event, log_of
from client.privacy.records.ledger import budget_table, budget_text, ledger_of
from client.privacy.study_list import StudyRow, study_rows
from client.relay.status_file import worker_status
from client.status import relay_text, worker_text
from client.telemetry.audit_tally import AuditTally
from client.telemetry.embed_record import read_record
from mmare.errors import InputError, MmareError, SiteCode
from mmare.host.console import visible
from mmare.host.web import Asked, Done, LocalApp, Page, button, element, table

if TYPE_CHECKING:
    from pathlib import Path

    from client.privacy.approving import Approving
    from mmare.host.web import Html
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["SiteConsole"]

SHOWN: Final = 200  # lines of the audit log, the latest
MENU: Final = (
    ("", "Now"),
    ("studies", "Studies"),
    ("log", "What left"),
    ("scans", "Scans"),
    ("predictions", "Predictions"),
)


@dataclass(frozen=True)
class SiteConsole:
    """The console of a site; it reads the site's files at every request.

    Args:
        site: Whose.
        file: Its ``site.toml``, for the commands that are shown.
    """

    site: SiteConfig
    file: Path

    def app(self, port: int) -> LocalApp:
        """The application, to be served on a port of 127.0.0.1."""
        pages = {
            "": self.now,
            "studies": self.studies,
            "study": self.study,
            "log": self.log,
            "scans": self.scans,
            "predictions": self.predictions,
        }
        actions = {"approve": self.approve, "revoke": self.revoke, "forget": self.forget}
        return LocalApp(f"{self.site.id}, site console", port, pages, actions, MENU)

    # Pages

    def now(self, _asked: Asked) -> Page:
        """What runs, who is reached, and what of the privacy budget is spent."""
        found, now = worker_status(self.site.worker), datetime.now(UTC)
        relay = relay_text(self.site, now, found)
        proposals = len(ProposalFolder(self.site.folder).all())
        waiting = element("p", element("a", f"{proposals} proposed: read and decide", href="/studies"))
        try:
            budget = budget_text(budget_table(self.site.id, ledger_of(self.site)))
        except MmareError as error:
            budget = str(error)
        return Page(
            "Now",
            (
                *([waiting] if proposals else []),
                element("h2", "Worker"),
                element("pre", worker_text(self.site.worker, found, now)),
                element("h2", "Relay to the coordinator"),
                element("pre", relay.lines or "this site has joined no federation"),
                element("h2", "Budget of differential privacy"),
                element("pre", budget),
                self._same("status", str(self.file)),
            ),
        )

    def studies(self, _asked: Asked) -> Page:
        """Studies that were proposed, that are approved, that have ended."""
        sections = []
        for heading, rows in study_rows(self.site).items():
            made = [
                (element("a", row.name, href=f"/study/{row.hash}"), row.hash[:12], row.about) for row in rows
            ]
            shown = (
                table(heading, ("study", "hash", ""), made) if rows else element("p", "none", class_="quiet")
            )
            sections += [element("h2", heading.capitalize()), shown]
        return Page("Studies", (*sections, self._same("studies", str(self.file))))

    def study(self, asked: Asked) -> Page:
        """One study in plain words, and the decision on it."""
        row, study = self._known(asked.rest)
        if study is None:
            raise InputError(f"{row.hash[:12]}: the study is not kept at this site any more")
        approving = self._approving(study)
        doubt = approving.doubt()
        parts = [element("p", row.about, class_="quiet"), element("pre", approving.words)]
        if doubt:
            parts.append(element("p", f"The audit log does not verify: {doubt}", class_="said bad"))
        short = study.hash[:12]
        if ApprovalFolder(self.site.folder).find(study.hash) is None:
            agreed = element("input", type="checkbox", name_="read", value="yes", required=True, id_="read")
            label = element(
                "label", agreed, f"I have read this, and approve it for {self.site.id}", class_="check"
            )
            command = self._command("approve", short, "--site", str(self.file))
            parts.append(button("Approve", f"/approve/{study.hash}", label, command=command))
            command = self._command("studies", str(self.file), "--forget", short)
            parts.append(button("Forget the proposal", f"/forget/{study.hash}", command=command, grave=True))
        else:
            command = self._command("approve", row.name, "--site", str(self.file), "--revoke")
            parts.append(
                button("Take the approval back", f"/revoke/{study.hash}", command=command, grave=True)
            )
        return Page(f"Study {visible(study.name)}", tuple(parts))

    def log(self, _asked: Asked) -> Page:
        """The audit log, latest first."""
        log = log_of(self.site)
        chain, wrong = log.examine()
        words = wrong or f"{chain.head.lines} lines in the chain, none missing or changed"
        rows = []
        for line in reversed(deque(_lines(log.path), SHOWN)):
            code = str(line.get("code", ""))
            kinds = line.get("what")
            what = ", ".join(map(str, kinds if isinstance(kinds, list) else ())) or (
                f"{code}, {SiteCode(code).meaning}" if code in list(SiteCode) else ""
            )
            if line.get("event") == Event.CHANGED:
                version = str(line.get("table", ""))[:12]
                what = f"now of version {version}; [policy] on_table_change says what follows"
            size = f"{line.get('bytes', 0):,} bytes" if line.get("bytes") else ""
            time = str(line.get("time", ""))[:19].replace("T", " ")
            words_of = (line.get("event", ""), line.get("task", ""), str(line.get("study", ""))[:12])
            rows.append((time, *map(str, words_of), what, size))
        headings = ("time, UTC", "event", "asked for", "study", "what", "size")
        return Page(
            "What left",
            (
                element("p", words, class_="said bad" if wrong else "said"),
                table("Audit log", headings, rows) if rows else element("p", "nothing yet", class_="quiet"),
                self._same("audit", "verify", str(self.file)),
            ),
        )

    def scans(self, _asked: Asked) -> Page:
        """How far the scans are encoded, and which cannot be used and why."""
        record = read_record(self.site.cache)
        if record is None:
            return Page(
                "Scans", (element("p", "no scan was encoded yet"), self._same("embed", str(self.file)))
            )
        when = datetime.fromtimestamp(record.updated, UTC)
        state = "being encoded" if record.active else "encoded"
        progress = [
            (name, f"{counts.scans:,}", f"{counts.usable:,}", f"{sum(counts.refused.values()):,}")
            for name, counts in record.modalities.items()
        ]
        refused = [
            (name, f"{count:,}", reason, explain(ScanReason(reason)))
            for name, counts in record.modalities.items()
            for reason, count in sorted(counts.refused.items())
        ]
        parts = [
            element("p", f"{state}, last change {when:%Y-%m-%d %H:%M:%S} UTC", class_="quiet"),
            table("Progress", ("modality", "scans", "usable", "cannot be used"), progress),
        ]
        if refused:
            parts.append(element("h2", "Cannot be used, and count as missing"))
            parts.append(table("Refused scans", ("modality", "scans", "reason", ""), refused))
        return Page("Scans", (*parts, self._same("embed", str(self.file))))

    def predictions(self, _asked: Asked) -> Page:
        """How often each installed model was asked, and what it said."""
        tally = AuditTally(log_of(self.site).path)
        tally.read_on()
        rows = [
            (digest[:12], f"{sum(found.calls.values()):,}", _counts(found.calls), _counts(found.patterns))
            for digest, found in tally.models.items()
        ]
        headings = ("model", "predictions", "said", "presence of modalities")
        shown = table("Predictions", headings, rows) if rows else element("p", "none yet", class_="quiet")
        return Page("Predictions", (shown, self._same("drift", str(self.file), "--out", "drift.html")))

    # Actions

    def approve(self, asked: Asked) -> Done:
        """Approve a study that was read."""
        _, study = self._known(asked.rest)
        if study is None or asked.form.get("read") != "yes":
            raise InputError(
                "not approved: tick the box that says that you have read what the study computes"
            )
        self._approving(study).approve()
        return Done(
            f"Approved: {study.name}, hash {study.hash[:12]}. A running worker knows at once.", "/studies"
        )

    def revoke(self, asked: Asked) -> Done:
        """Take an approval back."""
        row, _ = self._known(asked.rest)
        ApprovalFolder(self.site.folder).revoke(row.hash)
        return Done(f"No longer approved: {row.name}, hash {row.hash[:12]}.", "/studies")

    def forget(self, asked: Asked) -> Done:
        """Remove a proposal."""
        row, _ = self._known(asked.rest)
        ProposalFolder(self.site.folder).forget(row.hash)
        return Done(f"Forgotten: {row.name}, hash {row.hash[:12]}.", "/studies")

    def _approving(self, study: Study) -> Approving:
        from client.privacy.approving import Approving  # noqa: PLC0415 - torch, which no other page needs

        return Approving(self.site, study)

    def _known(self, study_hash: str) -> tuple[StudyRow, Study | None]:
        rows = [row for found in study_rows(self.site).values() for row in found]
        row = next((each for each in rows if each.hash == study_hash), None)
        if row is None:
            raise InputError(
                f"{visible(study_hash[:64])}: no such study at this site; the page Studies has all"
            )
        return row, row.study

    def _command(self, *words: str) -> str:
        return shlex.join(["mmare-site", *words])

    def _same(self, *words: str) -> Html:
        return element("p", "as a command: ", element("code", self._command(*words)), class_="quiet")


def _lines(path: Path) -> list[dict[str, object]]:
    """Whole lines of the audit log; a damaged one is left to ``examine``."""
    found = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{visible(name)} {count:,}" for name, count in sorted(counts.items()))
