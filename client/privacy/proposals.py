"""Studies that a coordinator asked for and the hospital has not approved: kept to be read, never acted on.

One ordinary study file each, named by its hash, in the folder ``proposed`` of the site. Whoever may send
messages could send many or large ones, so both are bounded.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import tomli_w

from mmare.errors import InputError, StudyError
from mmare.host.files import own_folder, write_whole
from mmare.study.study import Study, load_study

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Proposal", "ProposalFolder"]

LOG = logging.getLogger(__name__)

MOST_PROPOSALS: Final = 20
MOST_BYTES: Final = 64 << 10  # of one; a long prompt and fifty modalities have a tenth
LEAST_HASH: Final = 6  # digits by which a proposal is named
_FIRST_LINE: Final = re.compile(r"# asked for first at (\S+)")


@dataclass(frozen=True)
class Proposal:
    """A study that was asked for."""

    study: Study
    path: Path
    first: str  # ISO, UTC
    last: datetime


class ProposalFolder:
    """The proposals of a site."""

    def __init__(self, site_folder: Path) -> None:
        self.folder = site_folder / "proposed"

    def keep(self, study: Study) -> None:
        """Keep a study that was asked for; what does not fit is only logged."""
        path = self.folder / f"{study.hash}.toml"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = f"# asked for first at {now}\n{tomli_w.dumps(study.to_dict())}".encode()
        try:
            if path.exists():
                os.utime(path)
            elif len(content) > MOST_BYTES:
                LOG.error("a study of %s bytes was asked for, too large to keep", len(content))
            elif len(list(self.folder.glob("*.toml"))) >= MOST_PROPOSALS:
                LOG.error("%s proposals are kept already: read and forget some", MOST_PROPOSALS)
            else:
                own_folder(self.folder)
                write_whole(path, content, 0o600)
        except OSError as error:  # such as a full disk
            LOG.warning("%s: cannot be written (%s)", path, type(error).__name__)

    def all(self) -> list[Proposal]:
        """Every proposal, the one asked for last first; a damaged file is none."""
        found = []
        for path in self.folder.glob("*.toml"):
            try:
                study = load_study(path)
                first = _FIRST_LINE.match(path.read_text(encoding="utf-8"))
                last = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            except (StudyError, OSError, ValueError):
                LOG.warning("%s: not a proposal", path)
                continue
            found.append(Proposal(study, path, first[1] if first else "", last))
        return sorted(found, key=lambda proposal: (proposal.last, proposal.path), reverse=True)

    def find(self, name: str) -> Proposal:
        """The proposal of this name, or whose hash begins like this.

        Raises:
            InputError: If there is none, or several.
        """
        known = self.all()
        found = [each for each in known if each.study.name == name]
        found = found or [
            each for each in known if len(name) >= LEAST_HASH and each.study.hash.startswith(name)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            hashes = ", ".join(each.study.hash[:12] for each in found)
            raise InputError(f"{name}: several studies of this name were proposed; expected a hash: {hashes}")
        names = ", ".join(each.study.name for each in known) or "none"
        raise InputError(f"{name}: neither a file nor a study that was proposed; proposed: {names}")

    def forget(self, study_hash: str) -> None:
        """Remove a proposal, if there is one."""
        (self.folder / f"{study_hash}.toml").unlink(missing_ok=True)
