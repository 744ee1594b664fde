"""Which studies a hospital has agreed to: one file per study, named by the hash of what was agreed to."""

from __future__ import annotations

import getpass
import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import tomli_w

from mmare.errors import DataError, StudyError
from mmare.host.files import replacing
from mmare.study.study import Study, parse_study
from mmare.study.tables import TableError, read_toml

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Agreed", "Approval", "ApprovalFolder", "Approvals", "default_releases"]

LOG = logging.getLogger(__name__)

RUNS: Final = 5  # whole runs that an approval is good for, where the hospital sets no number
AROUND: Final = 4  # answers of a run beside its rounds: roll call, scaling, test, comparison

_HASH: Final = re.compile(r"[0-9a-f]{64}")  # names a file, so it must not lead elsewhere
_HEAD: Final = "approval"


@dataclass(frozen=True)
class Approval:
    """A hospital's yes to one study.

    Args:
        study_hash: Of what was agreed to.
        time: When, ISO in UTC; releases are counted from then on. Empty for always.
        user: Who typed it.
        max_releases: Answers that may leave for the study; none for any number.
        study: As it was shown; none where the approval is a setting and not a file.
    """

    study_hash: str
    time: str = ""
    user: str = ""
    max_releases: int | None = None
    study: Study | None = None


class Approvals(Protocol):
    """Where a gate looks a study up."""

    def find(self, study_hash: str) -> Approval | None:
        """The approval of a study, or nothing."""


class Agreed:
    """Approvals that whoever makes the gate brings along, such as of one's own study in a simulation.

    Args:
        hashes: Of the studies.
    """

    def __init__(self, hashes: Iterable[str]) -> None:
        self._hashes = frozenset(hashes)

    def find(self, study_hash: str) -> Approval | None:
        """The approval of a study, or nothing."""
        return Approval(study_hash) if study_hash in self._hashes else None


class ApprovalFolder:
    """Approvals as files that a person can read: the study as it was shown, and who agreed when.

    A file is looked at again when it changes: an approval needs no restart of the worker, nor does taking it
    back. The study in it must have the hash that the file is named by, else it approves nothing.

    Args:
        folder: Of the site.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "approved"
        self._read: dict[str, tuple[tuple[int, int], Approval | None]] = {}

    def find(self, study_hash: str) -> Approval | None:
        """The approval of a study, or nothing; a file that is damaged is named in the site's log."""
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

    def all(self) -> list[Approval]:
        """Every approval, the latest first."""
        found = (self.find(path.stem) for path in self._folder.glob("*.toml"))
        return sorted(
            (approval for approval in found if approval is not None),
            key=lambda approval: (approval.time, approval.study_hash),
            reverse=True,
        )

    def record(self, study: Study, max_releases: int | None) -> Path:
        """Agree to a study; a second time renews the count of releases.

        Args:
            study: As it was shown.
            max_releases: Answers that may leave for it from now on.

        Returns:
            The file, which is whole or absent.
        """
        head: dict[str, Any] = {
            "study_hash": study.hash,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "user": getpass.getuser(),
        }
        if max_releases is not None:
            head["max_releases"] = max_releases
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(study.hash)
        with replacing(path) as partial:
            partial.write_text(tomli_w.dumps({_HEAD: head, **study.to_dict()}), encoding="utf-8")
        return path

    def revoke(self, study_hash: str) -> None:
        """Take a yes back: the next message of the study is refused.

        Raises:
            DataError: If the study is not approved.
        """
        path = self._path(study_hash)
        if not path.exists():
            raise DataError(f"{self._folder}: no approval of the study with the hash {study_hash}")
        path.unlink()

    def _path(self, study_hash: str) -> Path:
        return self._folder / f"{study_hash}.toml"


def default_releases(study: Study) -> int:
    """Answers that an approval lets out where the hospital sets no number: those of five whole runs."""
    return RUNS * (study.training.rounds + AROUND)


def _read(path: Path, study_hash: str) -> Approval | None:
    """What a file approves; nothing where it is damaged or of another study than its name says."""
    try:
        content = dict(read_toml(path, "approval"))
        head = content.pop(_HEAD)
        study = parse_study(content, source=str(path))
        time, user, most = head["time"], head["user"], head.get("max_releases")
    except (TableError, StudyError, KeyError, TypeError):
        LOG.exception("%s: not an approval; it approves nothing", path)
        return None
    if {study.hash, head.get("study_hash")} != {study_hash} or type(most) not in (int, type(None)):
        LOG.error("%s: changed after it was approved; it approves nothing", path)
        return None
    return Approval(study_hash, str(time), str(user), most, study)
