"""Runs that were submitted to a standing coordinator: a record each in the kit's folder ``queue``.

::

    submit ─► queue/NAME.json, NAME.toml (the study) ─► start: queued ─► running ─► finished | failed
    abort  ─► queue/NAME.abort                                                  └─► aborted

Only ``mmare-server start`` changes a record that it has taken up; an abort is a file beside it.
"""

from __future__ import annotations

import getpass
import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tomli_w

from mmare.errors import InputError
from mmare.host.files import own_folder, write_whole
from mmare.study.choices import Mode
from mmare.study.study import load_study
from mmare.study.tables import TableError, from_table
from server.run.request import RunRequest
from server.store.journal import make_run_folder

if TYPE_CHECKING:
    from mmare.study.study import Study
    from server.membership.kit import Kit

__all__ = ["QueueState", "QueuedRun", "abort", "aborting", "find", "parse_wait", "queued", "save", "submit"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")  # of a folder
_WAIT: Final = re.compile(r"(\d{1,4})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


class QueueState(StrEnum):
    """What becomes of a submitted run."""

    QUEUED = "queued"  # until its turn, or until enough sites take part
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    ABORTED = "aborted"


WAITS: Final = (QueueState.QUEUED, QueueState.RUNNING)


@dataclass(frozen=True)
class QueuedRun:
    """A submitted run; times are ISO, UTC."""

    name: str  # of its folder in the kit's runs, and of this record
    study: str  # name of the study
    submitted: str
    by: str  # user of the machine
    mode: Mode = Mode.FEDERATED
    min_nodes: int = 0  # that the roll call waits for; 0 for all that are admitted
    until: str = ""  # when it no longer waits for sites; empty: it does not wait
    state: QueueState = QueueState.QUEUED
    due: str = ""  # when it is tried again
    tried: int = 0  # times in a row that it lacked sites
    said: str = ""  # what last happened, in words
    start_from: str = ""  # package or run of the study's start model

    def request(self, kit: Kit) -> RunRequest:
        """What to run.

        Raises:
            InputError: If the copy of the study, or its start model, cannot be read.
        """
        return RunRequest(
            *(_study_file(kit, self.name), kit.runs / self.name, self.mode),
            nodes=self.min_nodes,
            start_from=Path(self.start_from),
        )


def submit(
    kit: Kit,
    study: Study,
    *,
    mode: Mode = Mode.FEDERATED,
    name: str = "",
    wait: timedelta | None = None,
    min_nodes: int = 0,
    start_from: Path = Path(),
) -> QueuedRun:
    """Queue a run of a study, or queue one again that failed or was aborted: it then resumes.

    Args:
        name: By default from the study's name, mode and seed.
        wait: For how long it is tried again while too few sites take part.
        start_from: Package or run of the study's start model, which has to stay there.

    Raises:
        InputError: If a run of this name is queued or finished, or was submitted with another study or mode.
    """
    name = name or RunRequest(kit.folder, mode=mode, study=study).out.name
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--name is {name[:100]!r}, expected at most 80 letters, digits, dots, dashes, underscores"
        )
    now = datetime.now(UTC)
    until = "" if wait is None else (now + wait).isoformat(timespec="seconds")
    model = "" if start_from == Path() else str(start_from.absolute())
    by = getpass.getuser()
    entry = QueuedRun(name, study.name, _now(), by, mode, min_nodes, until, start_from=model)
    with kit.locked():
        if _path(kit, name).exists():
            _check_again(kit, find(kit, name), study, mode)
        try:
            own_folder(kit.queue)
            write_whole(_study_file(kit, name), tomli_w.dumps(study.to_dict()).encode(), 0o600)
            _mark(kit, name).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{kit.queue}: cannot be written ({type(error).__name__})") from None
        make_run_folder(kit.runs / name)
        return save(kit, entry)


def _check_again(kit: Kit, old: QueuedRun, study: Study, mode: Mode) -> None:
    another = f"--name gives this one another, mmare-server queue --kit {kit.folder} lists all"
    if old.state in WAITS:
        raise InputError(f"{old.name}: {old.state} already; {another}")
    if (load_study(_study_file(kit, old.name)), old.mode) != (study, mode):
        raise InputError(f"{old.name}: was submitted with another study or mode before; {another}")
    if old.state is QueueState.FINISHED:
        raise InputError(f"{old.name}: is finished, in {kit.runs / old.name}; {another}")


def abort(kit: Kit, name: str) -> QueuedRun:
    """Ask for the end of a run that is queued or under way; what it has reached is kept.

    Raises:
        InputError: If there is no such run, or it has ended.
    """
    entry = find(kit, name)
    if entry.state not in WAITS:
        raise InputError(f"{name}: has ended, it is {entry.state}")
    try:
        write_whole(_mark(kit, name), b"", 0o600)
    except OSError as error:
        raise InputError(f"{_mark(kit, name)}: cannot be written ({type(error).__name__})") from None
    return find(kit, name)


def aborting(kit: Kit, name: str) -> bool:
    """Whether the end of a run was asked for."""
    return _mark(kit, name).exists()


def queued(kit: Kit) -> tuple[QueuedRun, ...]:
    """Every submitted run, oldest first.

    Raises:
        InputError: If a record cannot be read.
    """
    found = (_read(kit, path.stem) for path in kit.queue.glob("*.json"))
    return tuple(sorted(found, key=lambda entry: (entry.submitted, entry.name)))


def find(kit: Kit, name: str) -> QueuedRun:
    """One submitted run.

    Raises:
        InputError: If there is none; it lists those that are.
    """
    if not _NAME.fullmatch(name) or not _path(kit, name).exists():
        names = ", ".join(entry.name for entry in queued(kit)) or "none yet"
        raise InputError(f"{kit.folder}: no run {name[:100]!r} was submitted; there are: {names}")
    return _read(kit, name)


def save(kit: Kit, entry: QueuedRun) -> QueuedRun:
    """Replace a record atomically.

    Raises:
        InputError: If it cannot be written; the old one is kept.
    """
    path = _path(kit, entry.name)
    try:
        write_whole(path, (json.dumps(asdict(entry), indent=2) + "\n").encode(), 0o600)
        if entry.state not in WAITS:
            _mark(kit, entry.name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({type(error).__name__})") from None
    return entry


def parse_wait(text: str) -> timedelta:
    """A time such as ``30m``, ``12h`` or ``7d``.

    Raises:
        InputError: If it is none.

    Example:
        >>> parse_wait("7d").total_seconds()
        604800.0
    """
    found = _WAIT.fullmatch(text)
    if found is None:
        raise InputError(f"--wait is {text[:40]!r}, expected a time such as 30m, 12h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _read(kit: Kit, name: str) -> QueuedRun:
    path = _path(kit, name)
    try:
        entry = from_table(QueuedRun, json.loads(path.read_text(encoding="utf-8")), "the record")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        why = str(error) if isinstance(error, TableError) else type(error).__name__
        raise InputError(f"{path}: not the record of a run ({why})") from None
    if entry.name != name:
        raise InputError(f"{path}: the record of another run, {entry.name[:100]!r}")
    if entry.state is QueueState.QUEUED and aborting(kit, name):
        return replace(entry, state=QueueState.ABORTED)
    return entry


def _path(kit: Kit, name: str) -> Path:
    return kit.queue / f"{name}.json"


def _study_file(kit: Kit, name: str) -> Path:
    return kit.queue / f"{name}.toml"


def _mark(kit: Kit, name: str) -> Path:
    return kit.queue / f"{name}.abort"


def _now() -> str:
    return datetime.now(UTC).isoformat()
