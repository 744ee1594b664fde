"""The gate: the last check before an answer leaves a site.

An answer is released if its study is approved, its content is what that study releases
(`client.privacy.release_rules`), the norm of its update and the number of answers are within the site's
limits, and it is in the audit log.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from client.privacy.accountant import BudgetError, plan_of
from client.privacy.records.audit_chain import START
from client.privacy.records.audit_log import ChainError, Entry, Event
from client.privacy.records.run_records import OrderError, RunRecords, in_order, request_digest
from client.privacy.release_rules import Facts, ReleaseError, StudyRules, check_answer
from client.privacy.request_rules import RequestError, check_request
from mmare.errors import SiteCode, SiteError
from mmare.study.study import parse_study
from mmare.wire.limits import RUN_NAME
from mmare.wire.messages import Masked, Statistics, Update, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from typing import TypeVar

    from torch import Tensor

    from client.privacy.accountant import Plan
    from client.privacy.approvals import Approval, Approvals
    from client.privacy.masker import Masker
    from client.privacy.records.audit_log import AuditLog
    from client.privacy.records.ledger import Ledger
    from client.privacy.release_rules import Answer
    from mmare.study.study import Study
    from mmare.wire.messages import Request

    Group = TypeVar("Group", bound=Hashable)
    Protect = Callable[[Study, Update | Statistics, bytes], tuple[Masked, bytes]]

__all__ = ["Gate", "budgeted"]

LOG = logging.getLogger(__name__)


class Gate:
    """Releases what the hospital approved and logs every release and refusal.

    Args:
        min_count: The site's smallest group to disclose; the larger of this and the study's applies.
        audit: None keeps no log.
        max_norm: Largest L2 norm of an update; None for any finite one.
        max_releases: Answers per study; None for the limit of its approval.
        masker: For studies of secure sums, which are refused without one.
        ledger: For studies with differential privacy, likewise.
    """

    def __init__(
        self,
        site: str,
        approvals: Approvals,
        min_count: int,
        audit: AuditLog | None = None,
        max_norm: float | None = None,
        max_releases: int | None = None,
        masker: Masker | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.masker = masker
        self._ledger = ledger
        self._charged = START  # head of the ledger, as the audit log names it
        self._anew = ""  # when the audit log was begun anew
        self._chain = ""  # the first line of the audit log's chain, for which both are known
        self.min_count = min_count
        self._site = site
        self._approvals = approvals
        self._audit = audit
        self._max_norm = max_norm
        self._max_releases = max_releases
        self._read: tuple[Mapping[str, Any], Study] | None = None
        self._rules: StudyRules | None = None
        self._released: tuple[Approval, int] | None = None
        self._records = RunRecords(audit)
        self._asked: tuple[Request, bytes, str] | None = None  # the last one checked, and its digest

    def check(self, request: Request, received: bytes) -> Study:
        """The study of a request that it calls for, in the order of rounds.

        Args:
            request: To be answered.
            received: Tensors that came with it.

        Raises:
            StudyError: If its tables are not a valid study.
            SiteError: If it is not to be answered.
        """
        study = self.admit(request.study)
        approval = self._approvals.find(study.hash)
        extra = approval.extra if approval and approval.extra is not None else study.privacy.extra
        try:
            check_request(request, study, extra)
        except RequestError as error:
            LOG.error("asked for what the study does not call for: %s", error)  # noqa: TRY400 - the sentence is enough
            raise SiteError(SiteCode.REQUEST) from None
        try:
            if in_order(request):
                self._records.of(request.run).check(request, self._digest_of(request, received))
        except OrderError as error:
            LOG.error("asked out of order: %s", error)  # noqa: TRY400 - the sentence is enough
            raise SiteError(SiteCode.ROUND) from None
        return study

    def admit(self, tables: Mapping[str, Any]) -> Study:
        """The study of a request, if it is approved and its limit of answers is not reached.

        Raises:
            StudyError: If ``tables`` are not a valid study.
            SiteError: If it is not approved or its limit is reached.
        """
        if self._read is None or self._read[0] != tables:
            self._read = (tables, parse_study(tables, source="request"))
        study = self._read[1]
        approval = self._approvals.find(study.hash)
        if approval is None:
            LOG.error("study %s with the hash %s is not approved", study.name, study.hash)
            self._approvals.propose(study)
            raise SiteError(SiteCode.STUDY)
        self._check_log(approval)
        if approval.seeds is not None and study.seed not in approval.seeds:
            approved = ", ".join(map(str, sorted(approval.seeds)))
            LOG.error("study %s: seed %s is not approved, only %s", study.name, study.seed, approved)
            raise SiteError(SiteCode.STUDY)
        most = self._most(approval)
        if most is not None and self._count(approval) >= most:
            LOG.error("study %s: all %s answers are released; approve it again", study.name, most)
            raise SiteError(SiteCode.RELEASES)
        return study

    def plan(self, study: Study, run: str, train_rows: int) -> Plan | None:
        """How a study with differential privacy is answered; None for one without.

        Args:
            study: Approved.
            run: Its name; empty for one to come.
            train_rows: Counted from the site's data.

        Raises:
            BudgetError: If the site's budget does not allow it, or its data cannot carry it.
            SiteError: If the site keeps no ledger.
            ChainError: If the ledger lost lines.
        """
        if study.privacy.dp is None:
            return None
        if self._ledger is None:
            LOG.error("study %s asks for differential privacy, for which no ledger is kept", study.name)
            raise SiteError(SiteCode.BUDGET)
        if self._audit is not None and (first := self._audit.examine()[0].first) != self._chain:
            self._charged, self._anew, self._chain = self._audit.budget, self._audit.begun_anew, first
        self._ledger.check(self._charged)
        self._ledger.admit(study, run, self._anew)
        return plan_of(study, train_rows if train_rows >= self._limit(study) else 0)

    def release(
        self,
        request: Request,
        received: bytes,
        answer: Answer,
        tensors: Tensor | None,
        train_rows: int,
        table: str = "",
        protect: Protect | None = None,
    ) -> tuple[str, bytes]:
        """Check and log an answer, then return the header and payload to send.

        Args:
            request: The request answered.
            received: Tensors that came with the request.
            answer: The service's.
            tensors: ``(bytes,)`` uint8, those of the answer, if any.
            train_rows: Counted from the site's data.
            table: Version of these data.
            protect: Masks a checked answer to a study of secure sums.

        Raises:
            SiteError: If it may not be released.
        """
        study = self.admit(request.study)
        if self._rules is None or self._rules.study.hash != study.hash:
            self._rules = StudyRules(study)
        facts = Facts(self._site, self._limit(study), train_rows)
        try:
            what = check_answer(answer, request, self._rules, facts)
            payload, change = self._payload(request, received, answer, tensors, self._rules)
        except ReleaseError as error:
            LOG.error("held back: %s", error)  # noqa: TRY400 - the sentence is enough
            raise SiteError(SiteCode.RELEASE) from None
        if isinstance(answer, Update):
            answer = replace(answer, norm=change)
        drawn = self._charge(study, request, answer, payload, train_rows)
        sent: Answer | Masked = answer
        if study.privacy.secure_sum and isinstance(answer, Update | Statistics):
            if protect is None:
                raise SiteError(SiteCode.SUM)
            sent, payload = protect(study, answer, payload)
            what = (*what, "masked")
        header = encode(sent)
        entry = Entry(
            event=Event.RELEASED,
            task=request.task.value,
            study=study.hash,
            run=_run(request),
            round=request.round,
            what=what,
            bytes=len(header.encode()) + len(payload),
            sha256=_digest(header.encode(), payload) if self._audit and self._audit.digests else "",
            asked=self._digest_of(request, received) if in_order(request) else "",
            final=request.final,
            table=table,
            drawn=drawn,
            budget=self._charged.text().strip() if drawn else "",
        )
        self._log(entry)
        self._records.add(request, entry.asked, table, drawn)
        if self._released is not None:
            self._released = (self._released[0], self._released[1] + 1)
        return header, payload

    def _charge(self, study: Study, request: Request, answer: Answer, payload: bytes, train_rows: int) -> str:
        """Charge the run of an answer with noise, once, and return the answer's digest; empty without noise.

        Raises:
            SiteError: If the budget does not allow it, or the answer was given before with other noise.
        """
        if study.privacy.dp is None or not isinstance(answer, Update):
            return ""
        drawn = _digest(encode(replace(answer, seconds={})).encode(), payload)
        with budgeted():
            plan = self.plan(study, request.run, train_rows)
            self._records.of(request.run).check_draw(request, drawn)
            if self._ledger is not None and plan is not None:
                head = self._ledger.charge(study, request.run, plan, self._anew)
                self._charged = head or self._charged
        return drawn

    def _limit(self, study: Study) -> int:
        return max(self.min_count, study.privacy.min_count)

    def begun_with(self, run: str) -> str:
        """The version of the table with which a run began here; empty before its first answer."""
        return self._records.of(run).table

    def note_change(self, request: Request, table: str) -> None:
        """Log that a request found another version of the table than the one before."""
        study = parse_study(request.study, source="request")
        self._log(Entry(Event.CHANGED, request.task.value, study.hash, _run(request), table=table))

    def refuse(self, request: Request | None, code: SiteCode) -> None:
        """Log a refusal, whose code alone leaves; ``request`` is None if the message was not a valid one.

        A log that cannot be written is only reported in the site's log.
        """
        entry = Entry(Event.REFUSED, code=code.value)
        if request is not None:
            study = self._read[1].hash if self._read and self._read[0] == request.study else ""
            entry = replace(
                entry, task=request.task.value, study=study, run=_run(request), round=request.round
            )
        try:
            self._log(entry)
        except SiteError:
            LOG.error("a refusal (%s) is not in the audit log", code.value)  # noqa: TRY400 - logged before

    def _payload(
        self, request: Request, received: bytes, answer: Answer, tensors: Tensor | None, rules: StudyRules
    ) -> tuple[bytes, float | None]:
        """The checked bytes of an update's tensors and the L2 norm of its change.

        Raises:
            ReleaseError: If the study does not release them.
            SiteError: If a value is not finite or the norm too large.
        """
        if not isinstance(answer, Update) or not request.train:
            if tensors is not None:
                raise ReleaseError("tensors with an answer that must not have any")
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
            LOG.error("held back: an update of norm %.6g, the limit is %.6g", change, longest)
            raise SiteError(SiteCode.NORM)
        return sent.tobytes(), change

    def _digest_of(self, request: Request, received: bytes) -> str:
        if self._asked is None or self._asked[0] is not request or self._asked[1] is not received:
            self._asked = request, received, request_digest(request, received)
        return self._asked[2]

    def _most(self, approval: Approval) -> int | None:
        limits = [most for most in (approval.max_releases, self._max_releases) if most is not None]
        return min(limits, default=None)

    def _count(self, approval: Approval) -> int:
        """Answers released since the approval; read from the log once, then counted."""
        if self._released is None or self._released[0] != approval:
            since = self._audit.released(approval.study_hash, approval.time) if self._audit else 0
            self._released = (approval, since)
        return self._released[1]

    def _check_log(self, approval: Approval) -> None:
        """Raise `SiteError` if the log, which counts what was released, lost lines."""
        if self._audit is not None:
            with _coded():
                self._audit.check(approval.head)

    def _log(self, entry: Entry) -> None:
        """Write a line; raises `SiteError` if that fails."""
        if self._audit is not None:
            with _coded():
                self._audit.append(entry)


@contextmanager
def budgeted() -> Iterator[None]:
    """Turn what stands against an answer with noise into a code."""
    try:
        yield
    except (BudgetError, ChainError, OrderError) as error:
        LOG.error("%s", error)  # noqa: TRY400 - the sentence is enough
        raise SiteError(SiteCode.BUDGET) from None
    except OSError:
        LOG.exception("the ledger cannot be read or written")
        raise SiteError(SiteCode.BUDGET) from None


@contextmanager
def _coded() -> Iterator[None]:
    """Turn what the audit log raises into a code."""
    try:
        yield
    except ChainError as error:
        LOG.error("%s", error)  # noqa: TRY400 - the sentence is enough
        raise SiteError(SiteCode.CHAIN) from None
    except OSError:
        LOG.exception("the audit log cannot be read or written")
        raise SiteError(SiteCode.AUDIT) from None


def _digest(*parts: bytes) -> str:
    """SHA-256 of the concatenated parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _run(request: Request) -> str:
    """The run's name for the log; empty if what was received is not a valid name."""
    return request.run if RUN_NAME.fullmatch(request.run) else ""
