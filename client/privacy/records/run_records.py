"""What each run was answered: rounds only advance, and a resumed run may repeat identical requests only.

The records are the released lines of the audit log, so they are durable and outlive the worker.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from client.privacy.records.audit_log import Event
from mmare.wire.messages import Task, encode
from mmare.wire.received import digest_of

if TYPE_CHECKING:
    from client.privacy.records.audit_log import AuditLog
    from mmare.wire.messages import Request

__all__ = ["OrderError", "RunRecord", "RunRecords", "in_order", "request_digest"]


_MOST: Final = 1000  # runs in memory


class OrderError(ValueError):
    """A request out of order; the message is for the site's own log."""


@dataclass
class RunRecord:
    """What one run was answered."""

    answered: dict[tuple[str, int, bool], str] = field(default_factory=dict)  # task, round, final: digest
    last: int = 0  # round
    trained: int = 0  # last round of training
    final: bool = False  # the run trains no more
    table: str = ""  # version of the site's table at the first answer
    drawn: dict[tuple[str, int, bool], str] = field(default_factory=dict)  # digests of answers with noise

    def check(self, request: Request, asked: str) -> None:
        """Raise `OrderError` unless the request is a next one, or one that was answered before."""
        before = self.answered.get(_key(request))
        if before is not None:
            if before != asked:
                raise OrderError(f"{_words(request)} was answered already, to another request")
            return
        if self.final and request.task is not Task.COMPARE:
            raise OrderError(f"{_words(request)} after the end of the run")
        least = self.trained + 1 if request.train else self.last
        if request.task in (Task.TRAIN, Task.EVALUATE) and not request.final and request.round < least:
            raise OrderError(f"{_words(request)}, expected {least} or later")

    def check_draw(self, request: Request, drawn: str) -> None:
        """Raise `OrderError` if this answer was given before with other noise: only the first is paid for."""
        if self.drawn.get(_key(request), drawn) != drawn:
            raise OrderError(f"{_words(request)} would be drawn a second time; a new run can be charged anew")

    def add(self, key: tuple[str, int, bool], asked: str, drawn: str = "") -> None:
        """Note an answer."""
        task, number, final = key
        self.answered[key] = asked
        if drawn:
            self.drawn[key] = drawn
        self.final |= final
        if task in (Task.TRAIN, Task.EVALUATE) and not final:
            self.last = max(self.last, number)
        if task == Task.TRAIN:
            self.trained = max(self.trained, number)


class RunRecords:
    """Records by run; read from the log when a run is first seen, in memory only without one."""

    def __init__(self, audit: AuditLog | None) -> None:
        self._audit = audit
        self._runs: dict[str, RunRecord] = {}

    def of(self, run: str) -> RunRecord:
        """The record of a run; an empty one if it was never answered."""
        if run not in self._runs:
            if self._audit is not None and len(self._runs) >= _MOST:
                del self._runs[next(iter(self._runs))]
            record = self._runs[run] = RunRecord()
            for line in self._audit.lines(of_run=run) if self._audit else ():
                if line["event"] == Event.RELEASED:
                    record.table = record.table or line.get("table", "")
                    if "asked" in line:
                        key = line["task"], line["round"], line.get("final", False)
                        record.add(key, line["asked"], line.get("drawn", ""))
        return self._runs[run]

    def add(self, request: Request, asked: str, table: str, drawn: str = "") -> None:
        """Note a released answer; ``asked`` is empty where no order matters, ``drawn`` without noise."""
        record = self.of(request.run)
        record.table = record.table or table
        if asked:
            record.add(_key(request), asked, drawn)


def in_order(request: Request) -> bool:
    """Whether the order of requests matters: it brings a model, so that another answer may follow."""
    return request.task not in (Task.DESCRIBE, Task.STATISTICS, Task.UNMASK)


def request_digest(request: Request, received: bytes) -> str:
    """SHA-256 of a request and its tensors' SHA-256, whoever shares its sum (see `client.privacy.masker`)."""
    digest = hashlib.sha256(encode(replace(request, roster={})).encode())
    digest.update(digest_of(received))
    return digest.hexdigest()


def _key(request: Request) -> tuple[str, int, bool]:
    return request.task.value, request.round, request.final


def _words(request: Request) -> str:
    return f"{request.task.value} of round {request.round}{' at the end' if request.final else ''}"
