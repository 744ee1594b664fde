"""What ``mmare-site start`` says of the relay's programs, in a small file, for ``mmare-site status``."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mmare.host.files import write_whole
from mmare.host.locks import is_held
from mmare.study.tables import TableError, from_table

if TYPE_CHECKING:
    from pathlib import Path

    from client.relay.programs import RelayFolder

__all__ = ["ProgramState", "RelayState", "last_contact", "listens", "read_state", "write_state"]


@dataclass(frozen=True)
class ProgramState:
    """One program that is kept running.

    Args:
        name: Of it.
        starts: How often it has been started.
        since: Unix time of the last start.
        pid: Of its process; none while it is not running.
        ended: How it ended last, in words; none where it has not.
    """

    name: str
    starts: int
    since: float
    pid: int | None = None
    ended: str | None = None


@dataclass(frozen=True)
class RelayState:
    """What one ``mmare-site start`` keeps running.

    Args:
        pid: Of it.
        since: Unix time of its start.
        federation: That the site takes part in.
        address: Of the coordinator.
        programs: In the order in which they were started.
    """

    pid: int
    since: float
    federation: str
    address: str
    programs: tuple[ProgramState, ...]


def write_state(path: Path, state: RelayState) -> None:
    """Replace the file in one step."""
    write_whole(path, json.dumps(asdict(state)).encode(), mode=0o600)


def read_state(folder: RelayFolder) -> RelayState | None:
    """What the running ``mmare-site start`` says; none where none runs.

    Raises:
        PermissionError: If the folder is another user's.
    """
    if not is_held(folder.lock):
        return None
    try:
        return from_table(RelayState, json.loads(folder.state.read_bytes()), "the state")
    except (FileNotFoundError, ValueError, TableError):
        return None  # it has just been started


def last_contact(folder: RelayFolder) -> datetime | None:
    """When the coordinator answered last; none where that is not known."""
    try:
        return datetime.fromtimestamp(folder.contact.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None


def listens(path: Path) -> bool:
    """Whether someone listens on a socket."""
    with socket.socket(socket.AF_UNIX) as found:
        found.settimeout(1.0)
        try:
            found.connect(str(path.absolute()))
        except OSError:
            return False
    return True
