"""The studies that a hospital has approved: one file per study, named by its hash."""

from __future__ import annotations

import getpass
import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import tomli_w

from client.privacy.proposals import Proposal, ProposalFolder
from client.privacy.records.audit_chain import START, Head
from mmare.errors import DataError, StudyError
from mmare.host.files import own_folder, replacing
from mmare.study.choices import ExtraAnswer
from mmare.study.study import Study, parse_study
from mmare.study.tables import TableError, convert, read_toml

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

__all__ = ["Approval", "ApprovalFolder", "Approvals", "FixedApprovals", "default_releases"]

LOG = logging.getLogger(__name__)

RUNS: Final = 5  # full runs that an approval covers by default
EXTRA_ANSWERS: Final = 4  # per run, besides its rounds: roll call, scaling, test, comparison

_HASH: Final = re.compile(r"[0-9a-f]{64}")  # used as a file name, so no path
_HEAD: Final = "approval"


@dataclass(frozen=True)
class Approval:
    """A hospital's approval of one study."""

    study_hash: str
    time: str = ""  # ISO in UTC; releases count from then on, from the beginning if empty
    user: str = ""  # who approved it
    max_releases: int | None = None  # None: unlimited
    study: Study | None = None  # as shown; None if the approval is not a file
    head: Head = START  # of the audit log then, which lacks none of its lines since
    seeds: frozenset[int] | None = None  # that a run may have; None: any
    extra: frozenset[ExtraAnswer] | None = None  # None: what the study names


class Approvals(Protocol):
    """Where a gate looks up a study."""

    def find(self, study_hash: str) -> Approval | None:
        """The approval of a study, if any."""

    def propose(self, study: Study) -> None:
        """Keep a study that was asked for without approval, for the hospital to read."""


class FixedApprovals:
    """Approval of given study hashes with any seed and every answer, for a simulation's own study."""

    def __init__(self, hashes: Iterable[str]) -> None:
        self._hashes = frozenset(hashes)

    def find(self, study_hash: str) -> Approval | None:
        """As of `Approvals`."""
        if study_hash not in self._hashes:
            return None
        return Approval(study_hash, extra=frozenset(ExtraAnswer))

    def propose(self, study: Study) -> None:
        """Nobody reads it."""


class ApprovalFolder:
    """Approvals as human-readable files in a site's folder: the study as shown, who approved it and when.

    Files are re-read when they change, so neither approving nor revoking needs a restart of the worker. A
    study whose hash differs from the file name is not approved.
    """

    def __init__(self, site_folder: Path) -> None:
        self._folder = site_folder / "approved"
        self._proposals = ProposalFolder(site_folder)
        self._read: dict[str, tuple[tuple[int, int], Approval | None]] = {}

    def find(self, study_hash: str) -> Approval | None:
        """As of `Approvals`; a damaged file is reported in the site's log."""
        if not _HASH.fullmatch(study_hash):
            return None
        path = self._path(study_hash)
        try:
            status = path.stat()
        except OSError:
            return None
        state = (status.st_mtime_ns, status.st_ino)
        known = self._read.get(study_hash)
        if known is None or known[0] != state:
            known = self._read[study_hash] = (state, _read(path, study_hash))
        return known[1]

    def propose(self, study: Study) -> None:
        """As of `Approvals`."""
        self._proposals.keep(study)

    def proposals(self) -> list[Proposal]:
        """Studies that were asked for without approval, the latest first."""
        return self._proposals.all()

    def all(self) -> list[Approval]:
        """Every approval, latest first."""
        found = (self.find(path.stem) for path in self._folder.glob("*.toml"))
        return sorted(
            (approval for approval in found if approval is not None),
            key=lambda approval: (approval.time, approval.study_hash),
            reverse=True,
        )

    def record(
        self, study: Study, max_releases: int | None, log: Head = START, seeds: Collection[int] = ()
    ) -> Path:
        """Approve a study and return the file, written atomically. Again, it resets the count of releases.

        ``log`` is the head of the audit log after the line of this approval, ``seeds`` are those that a run
        may have beside the study's own.
        """
        head: dict[str, Any] = {
            "study_hash": study.hash,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "user": getpass.getuser(),
        }
        if max_releases is not None:
            head["max_releases"] = max_releases
        if log.lines:
            head["log"] = log.text().strip()
        if seeds:
            head["seeds"] = sorted({study.seed, *seeds})
        own_folder(self._folder)
        path = self._path(study.hash)
        with replacing(path, private=True) as partial:
            partial.write_text(tomli_w.dumps({_HEAD: head, **study.to_dict()}), encoding="utf-8")
        self._proposals.forget(study.hash)
        return path

    def revoke(self, study_hash: str) -> None:
        """Withdraw an approval with effect from the next message; raises `DataError` if there is none."""
        path = self._path(study_hash)
        if not path.exists():
            raise DataError(f"{self._folder}: no approval of the study with the hash {study_hash}")
        path.unlink()

    def _path(self, study_hash: str) -> Path:
        return self._folder / f"{study_hash}.toml"


def default_releases(study: Study) -> int:
    """The default limit of an approval: the answers of five full runs."""
    return RUNS * (study.training.rounds + EXTRA_ANSWERS)


def _read(path: Path, study_hash: str) -> Approval | None:
    """Read a file; None if it is damaged or its study does not match its name."""
    try:
        content = dict(read_toml(path, "approval"))
        head = content.pop(_HEAD)
        study = parse_study(content, source=str(path))
        time, user, most = head["time"], head["user"], head.get("max_releases")
        log = Head.parse(f"{head['log']}\n") if "log" in head else START
        seeds = convert(head.get("seeds", (study.seed,)), tuple[int, ...], "seeds")
    except (TableError, StudyError, KeyError, TypeError):
        LOG.exception("%s: not an approval; it approves nothing", path)
        return None
    if (
        {study.hash, head.get("study_hash")} != {study_hash}
        or type(most) not in (int, type(None))
        or log is None
    ):
        LOG.error("%s: changed after it was approved; it approves nothing", path)
        return None
    return Approval(study_hash, str(time), str(user), most, study, log, frozenset(seeds))
