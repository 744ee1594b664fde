"""State of the relay's programs, written by ``mmare-site start`` for ``mmare-site status``."""

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
    from client.worker_pb.site_worker_pb2 import StatusAnswer
    from sites.config import WorkerConfig

__all__ = [
    "ProgramState",
    "RelayState",
    "last_contact",
    "listens",
    "read_state",
    "worker_status",
    "write_state",
]


@dataclass(frozen=True)
class ProgramState:
    """A supervised program."""

    name: str
    starts: int
    since: float  # Unix time of the last start
    pid: int | None = None  # while it runs
    ended: str | None = None  # reason of its last exit


@dataclass(frozen=True)
class RelayState:
    """A ``mmare-site start`` and its programs."""

    pid: int  # of mmare-site start
    since: float  # Unix time of its start
    federation: str
    address: str  # of the coordinator
    programs: tuple[ProgramState, ...]  # in starting order


def write_state(path: Path, state: RelayState) -> None:
    """Replace the file atomically."""
    write_whole(path, json.dumps(asdict(state)).encode(), mode=0o600)


def read_state(folder: RelayFolder) -> RelayState | None:
    """State of the running ``mmare-site start``, if any; `PermissionError` if another user's."""
    if not is_held(folder.lock):
        return None
    try:
        return from_table(RelayState, json.loads(folder.state.read_bytes()), "the state")
    except (FileNotFoundError, ValueError, TableError):
        return None  # just started


def last_contact(folder: RelayFolder) -> datetime | None:
    """Time of the coordinator's last answer, if known."""
    try:
        return datetime.fromtimestamp(folder.contact.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None


def worker_status(worker: WorkerConfig) -> StatusAnswer | None:
    """What the worker says of itself; None if none runs."""
    if worker.spool is not None:
        from client.relay.spool import SpoolLink  # noqa: PLC0415 - protocol buffers, only where needed

        return SpoolLink(worker.spool).status()
    if not listens(worker.socket):
        return None
    from client.relay.worker_link import WorkerLink  # noqa: PLC0415 - gRPC, only where somebody answers

    return WorkerLink(worker.socket).status()


def listens(path: Path) -> bool:
    """Whether someone listens on a socket."""
    with socket.socket(socket.AF_UNIX) as found:
        found.settimeout(1.0)
        try:
            found.connect(str(path.absolute()))
        except OSError:
            return False
    return True
