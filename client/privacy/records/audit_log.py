"""The site's append-only audit log: a line per approval and per released or refused answer.

A line has kind, time, study, number of bytes and their hash, which identify the answer at the coordinator,
but no patient value. It is written before the bytes leave: an answer that cannot be logged is not released.
The lines form a chain (`client.privacy.records.audit_chain`): a log that lost lines, or in which one was
changed, is not continued.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from client.privacy.records.audit_chain import Head
from client.privacy.records.chained_log import ChainedLog, ChainError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sites.config import SiteConfig

__all__ = ["AuditLog", "ChainError", "Entry", "Event", "Tally", "log_of"]


class Event(StrEnum):
    """What happened to an answer, or to a study."""

    RELEASED = "released"
    REFUSED = "refused"
    PREDICTED = "predicted"  # by a model package, for a patient of the site; nothing left
    SCORED = "scored"  # predictions whose outcome became known; nothing left
    APPROVED = "approved"
    CHANGED = "table changed"


@dataclass(frozen=True)
class Entry:
    """One line without its time."""

    event: Event
    task: str = ""  # empty if the message could not be read
    study: str = ""  # hash; empty if the message names none
    run: str = ""  # name; empty if not a valid one
    round: int = 0
    what: tuple[str, ...] = ()  # kinds of content released
    bytes: int = 0  # of header and tensors
    sha256: str = ""  # of header followed by tensors
    code: str = ""  # of a refusal
    broken: str = ""  # what was wrong with the log when a study was approved
    asked: str = ""  # SHA-256 of the request answered, header followed by tensors
    final: bool = False  # whether the run trains no more
    table: str = ""  # version of the site's table
    drawn: str = ""  # under differential privacy: SHA-256 of what was drawn, before it is masked
    budget: str = ""  # likewise: head of the ledger
    prediction: Mapping[str, Any] = field(default_factory=dict)  # by which model, of whom and what
    scores: Mapping[str, Any] = field(default_factory=dict)  # of which model, over how many patients


@dataclass
class Tally:
    """Totals of one study."""

    released: int = 0
    refused: int = 0
    bytes: int = 0


class AuditLog(ChainedLog):
    """The log, a line for each `Entry`.

    Args:
        digests: Whether lines tell the SHA-256 of what was sent; a simulation sends nothing anywhere.
    """

    def __init__(self, path: Path, *, durable: bool = False, digests: bool = True) -> None:
        super().__init__(path, durable=durable)
        self.digests = digests

    Events = Event
    REMEDY = (
        "nothing is released; restore the log and its head from a backup, or approve the studies again "
        "(mmare-site approve), which begins a new chain and says so in the log"
    )

    def append(self, *entries: Entry, anew: bool = False) -> Head:
        """Add a line each, as `add`."""
        return self.add(*map(_content, entries), anew=anew)

    @property
    def budget(self) -> Head:
        """Of the ledger, as the last line names it that does: the ledger has lost nothing since."""
        named = [line["budget"] for line in self.lines() if "budget" in line]
        return Head.parse(f"{named[-1]}\n") or Head() if named else Head()

    @property
    def begun_anew(self) -> str:
        """When its chain was begun anew last, as an ISO time in UTC: records of runs before may be lost."""
        return max((line["time"] for line in self.lines() if line.get("broken")), default="")

    def released(self, study_hash: str, since: str = "") -> int:
        """Number of answers released for a study since an ISO time in UTC."""
        return sum(
            line["event"] == Event.RELEASED and line.get("study") == study_hash and line["time"] >= since
            for line in self.lines()
        )

    def tallies(self, since: Mapping[str, str] = MappingProxyType({})) -> dict[str, Tally]:
        """Totals by study hash, empty for messages without a study; ``since``: ISO times in UTC by hash."""
        found: dict[str, Tally] = {}
        for line in self.lines():
            study = line.get("study", "")
            if line["time"] < since.get(study, ""):
                continue
            tally = found.setdefault(study, Tally())
            if line["event"] == Event.RELEASED:
                tally.released += 1
                tally.bytes += line.get("bytes", 0)
            elif line["event"] == Event.REFUSED:
                tally.refused += 1
        return found


def _content(entry: Entry) -> dict[str, Any]:
    found = asdict(entry)
    return {key: value for key, value in found.items() if value is not False and value not in ("", (), {})}


def log_of(site: SiteConfig) -> AuditLog:
    """The worker's audit log, beside ``site.toml`` since the cache may be deleted."""
    return AuditLog(site.folder / "audit.jsonl", durable=True)
