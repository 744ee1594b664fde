"""Approving a study, as the command and the console do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.privacy.approvals import ApprovalFolder, default_releases
from client.privacy.records.audit_log import Entry, Event, log_of
from client.privacy.records.ledger import ledger_of
from client.privacy.study_summary import study_in_words

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["Approving"]


class Approving:
    """A study before a site decides on it; ``seeds`` are those that runs may have beside its own.

    Raises:
        BudgetError: If the site's budget of differential privacy does not allow it.
        StudyError: If the study's model does not exist or cannot serve it.
    """

    def __init__(self, site: SiteConfig, study: Study, seeds: Collection[int] = ()) -> None:
        self._site, self._study, self._seeds = site, study, seeds
        self._folder, self._log = ApprovalFolder(site.folder), log_of(site)
        self._most = site.max_releases or default_releases(study)
        self.words = study_in_words(study, site, self._most, seeds)

    def doubt(self) -> str:
        """What is wrong with the audit log, so that approving begins it anew; empty if nothing is.

        Raises:
            BudgetError: If the site's budget does not allow the study.
        """
        ledger_of(self._site).admit(self._study)
        before = self._folder.find(self._study.hash)
        return self._log.examine(*([before.head] if before else []))[1]

    def approve(self) -> Path:
        """Record the approval, in the audit log too; returns its file."""
        entry = Entry(Event.APPROVED, study=self._study.hash, broken=self.doubt())
        return self._folder.record(self._study, self._most, self._log.append(entry, anew=True), self._seeds)
