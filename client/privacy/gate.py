"""The gate: what may leave a site, and the last step before it does.

An answer leaves when its study is approved, when everything in it is what that study lets out
(`client.privacy.release_rules`), when its update is not longer and the answers not more than the site allows,
and when the audit log has a line of it. What may be told of groups is decided here, too.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from client.privacy.audit_log import Entry, Event
from client.privacy.release_rules import Facts, ReleaseError, StudyRules, check_answer
from mmare.errors import SiteCode, SiteError
from mmare.study.study import parse_study
from mmare.wire.messages import Update, encode

if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import TypeVar

    from torch import Tensor

    from client.privacy.approvals import Approval, Approvals
    from client.privacy.audit_log import AuditLog
    from client.privacy.release_rules import Answer
    from mmare.study.study import Study
    from mmare.wire.messages import Request

    Group = TypeVar("Group", bound=Hashable)

__all__ = ["Gate"]

LOG = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")  # of a run, before a line of the log holds it


class Gate:
    """Lets out what the hospital approved, and writes down what it let out and what it refused.

    Args:
        site: Id.
        approvals: Where studies are looked up.
        min_count: The site's own smallest group; the study's applies too, the larger one wins.
        audit: Gets a line per answer; none keeps no log.
        max_norm: Longest update that leaves; none for any finite one.
        max_releases: Answers that may leave for one study; none for what its approval says.
    """

    def __init__(
        self,
        site: str,
        approvals: Approvals,
        min_count: int,
        audit: AuditLog | None = None,
        max_norm: float | None = None,
        max_releases: int | None = None,
    ) -> None:
        self.min_count = min_count
        self._site = site
        self._approvals = approvals
        self._audit = audit
        self._max_norm = max_norm
        self._max_releases = max_releases
        self._read: tuple[Mapping[str, Any], Study] | None = None
        self._rules: StudyRules | None = None
        self._released: tuple[Approval, int] | None = None

    def admit(self, tables: Mapping[str, Any]) -> Study:
        """The study of a request, once the hospital has approved it and more answers may leave.

        Args:
            tables: As they came.

        Raises:
            StudyError: If they are no study.
            SiteError: If it is not approved, or as many answers have left as may.
        """
        if self._read is None or self._read[0] != tables:
            self._read = (tables, parse_study(tables, source="request"))
        study = self._read[1]
        approval = self._approvals.find(study.hash)
        if approval is None:
            LOG.error("study %s with the hash %s is not approved", study.name, study.hash)
            raise SiteError(SiteCode.STUDY)
        most = self._most(approval)
        if most is not None and self._count(approval) >= most:
            LOG.error("study %s: %s answers have left, no more may; approve it again", study.name, most)
            raise SiteError(SiteCode.RELEASES)
        return study

    def release(
        self, request: Request, received: bytes, answer: Answer, tensors: Tensor | None, train_rows: int
    ) -> tuple[str, bytes]:
        """Check an answer, log it, and only then make the bytes that leave.

        Args:
            request: That it answers.
            received: Tensors that came with the request.
            answer: Of the service.
            tensors: ``(bytes,)`` uint8 that go with it, if any.
            train_rows: Of the site, from its data.

        Raises:
            SiteError: If it may not leave.
        """
        study = self.admit(request.study)
        if self._rules is None or self._rules.study.hash != study.hash:
            self._rules = StudyRules(study)
        facts = Facts(self._site, max(self.min_count, study.privacy.min_count), train_rows)
        try:
            what = check_answer(answer, request, self._rules, facts)
            payload, change = self._payload(request, received, answer, tensors, self._rules)
        except ReleaseError as error:
            LOG.error("held back: %s", error)  # noqa: TRY400 - a sentence, not a failure of ours
            raise SiteError(SiteCode.RELEASE) from None
        if isinstance(answer, Update):
            answer = replace(answer, norm=change)
        header = encode(answer)
        entry = Entry(
            event=Event.RELEASED,
            task=request.task.value,
            study=study.hash,
            run=_run(request),
            round=request.round,
            what=what,
            bytes=len(header.encode()) + len(payload),
            sha256=_digest(header.encode(), payload) if self._audit else "",
        )
        self._log(entry)
        if self._released is not None:
            self._released = (self._released[0], self._released[1] + 1)
        return header, payload

    def refuse(self, request: Request | None, code: SiteCode) -> None:
        """Log that nothing but a code leaves; a log that cannot be written does not make more of it.

        Args:
            request: That is refused; none where the message was not one.
            code: That leaves.
        """
        entry = Entry(Event.REFUSED, code=code.value)
        if request is not None:
            study = self._read[1].hash if self._read and self._read[0] == request.study else ""
            entry = Entry(
                Event.REFUSED,
                task=request.task.value,
                study=study,
                run=_run(request),
                round=request.round,
                code=code.value,
            )
        try:
            self._log(entry)
        except SiteError:
            LOG.error("a refusal (%s) is not in the audit log", code.value)  # noqa: TRY400 - logged before

    def _payload(
        self, request: Request, received: bytes, answer: Answer, tensors: Tensor | None, rules: StudyRules
    ) -> tuple[bytes, float | None]:
        """The bytes of an update's tensors, once they are what the study names, and how long a step they are.

        Raises:
            ReleaseError: If they are not.
            SiteError: If a value is not finite, or the step is too long.
        """
        if not isinstance(answer, Update) or not request.train:
            if tensors is not None:
                raise ReleaseError("tensors with an answer that has none")
            return b"", None
        if tensors is None:
            raise ReleaseError("an update without its tensors")
        layout = rules.check_blocks(answer)
        sent = tensors.numpy()
        change = rules.change(answer, layout, sent, received)
        if not math.isfinite(change):
            LOG.error("held back: an update with values that are not finite")
            raise SiteError(SiteCode.NON_FINITE)
        longest = min(self._max_norm or math.inf, rules.study.federation.max_norm or math.inf)
        if change > longest:
            LOG.error("held back: an update of norm %.6g, at most %.6g may leave", change, longest)
            raise SiteError(SiteCode.NORM)
        return sent.tobytes(), change

    def _most(self, approval: Approval) -> int | None:
        limits = [most for most in (approval.max_releases, self._max_releases) if most is not None]
        return min(limits, default=None)

    def _count(self, approval: Approval) -> int:
        """Answers that have left since the approval; the log is read once, then they are counted."""
        if self._released is None or self._released[0] != approval:
            since = self._audit.released(approval.study_hash, approval.time) if self._audit else 0
            self._released = (approval, since)
        return self._released[1]

    def _log(self, entry: Entry) -> None:
        """Write a line.

        Raises:
            SiteError: If it cannot be written.
        """
        if self._audit is None:
            return
        try:
            self._audit.append(entry)
        except OSError:
            LOG.exception("the audit log cannot be written")
            raise SiteError(SiteCode.AUDIT) from None


def _digest(*parts: bytes) -> str:
    """SHA-256 of parts one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _run(request: Request) -> str:
    """A run's name as the log holds it: what came over the wire, where it is a name."""
    return request.run if _NAME.fullmatch(request.run) else ""
