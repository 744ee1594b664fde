"""Process supervision: start, watch, restart with backoff, stop together. Linux only."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

__all__ = ["Change", "ProcessSupervisor", "Program", "how_it_ended"]

POLL_S: Final = 0.05
PR_SET_PDEATHSIG: Final = 1  # of prctl(2)
MOST_LOG_BYTES: Final = 50_000_000  # a larger log goes to NAME.log.1, and what was there is gone
ROTATE_S: Final = 60.0  # between looks at the logs of running programs
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Program:
    """A program to keep running."""

    name: str  # for people, such as ``superlink``; unique in a supervisor
    command: tuple[str, ...]
    log: Path  # its output is appended
    environment: Mapping[str, str] = field(default_factory=dict)  # added to that of this process
    first_pause_s: float = 0.5  # before a restart; doubles while it keeps ending
    longest_pause_s: float = 30.0
    healthy_s: float = 60.0  # after running this long, pauses start from the first again
    stop_s: float = 15.0  # from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Change:
    """A program started or ended."""

    name: str
    pid: int
    code: int | None = None  # exit code as in `subprocess`; ``None``: it started
    again_s: float = 0.0  # until the restart


@dataclass
class _Kept:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    due: float = 0.0
    pause_s: float = 0.0
    starts: int = 0


class ProcessSupervisor:
    """Keeps programs running, each in its own process group; leaving the context stops them.

    If this process is killed, the kernel sends its programs SIGTERM. Call all methods from one thread, which
    must live as long as the programs do.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, ProcessSupervisor() as processes:
        ...     processes.keep(Program("nap", ("sleep", "60"), Path(folder) / "nap.log"))
        ...     [change.name for change in processes.poll()]
        ['nap']
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._rotated = time.monotonic()

    def __enter__(self) -> ProcessSupervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def keep(self, program: Program) -> None:
        """Run a program from the next `poll` on."""
        self._kept[program.name] = _Kept(program)

    def poll(self) -> list[Change]:
        """Collect programs that ended and start those that are due, without blocking."""
        changes = []
        if time.monotonic() - self._rotated > ROTATE_S:
            self._rotated = time.monotonic()
            for kept in self._kept.values():
                _rotate(kept.program.log)
        for kept in self._kept.values():
            if kept.process is not None and kept.process.poll() is not None:
                changes.append(_ended(kept))
            if kept.process is None and time.monotonic() >= kept.due:
                _start(kept)
                assert kept.process is not None  # noqa: S101 - just started
                changes.append(Change(kept.program.name, kept.process.pid))
        return changes

    def pid(self, name: str) -> int | None:
        """Process id of a running program."""
        process = self._kept[name].process
        return process.pid if process is not None and process.poll() is None else None

    def starts(self, name: str) -> int:
        """How many times a program has been started."""
        return self._kept[name].starts

    def running(self) -> dict[str, int]:
        """Process ids of the running programs by name."""
        return {name: pid for name in self._kept if (pid := self.pid(name)) is not None}

    def stop(self, names: Iterable[str] | None = None) -> None:
        """Stop programs in reverse order: SIGTERM, then SIGKILL, with all they started."""
        wanted = set(self._kept) if names is None else set(names)
        for name in [name for name in reversed(self._kept) if name in wanted]:
            kept = self._kept.pop(name)
            if kept.process is not None:
                _stop(kept.process, kept.program.stop_s)


def how_it_ended(code: int) -> str:
    """An exit code in words.

    Example:
        >>> how_it_ended(-9), how_it_ended(3)
        ('ended by signal 9', 'ended with exit code 3')
    """
    return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _rotate(log: Path) -> None:
    """Move the content of a large log away; a program that has it open goes on at its beginning."""
    with suppress(OSError):  # not there yet, or a full disk, on which it is cut all the same
        if log.stat().st_size > MOST_LOG_BYTES:
            try:
                shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            finally:
                os.truncate(log, 0)


def _start(kept: _Kept) -> None:
    program = kept.program
    program.log.parent.mkdir(parents=True, exist_ok=True)
    _rotate(program.log)
    parent = os.getpid()

    def die_with_parent() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    with program.log.open("ab") as log:
        kept.process = subprocess.Popen(  # noqa: S603 - commands are our own
            program.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **program.environment},
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one libc call, takes no lock
        )
    kept.since = time.monotonic()
    kept.starts += 1


def _ended(kept: _Kept) -> Change:
    process = kept.process
    assert process is not None  # noqa: S101 - checked by the caller
    _kill_group(process.pid)  # its children would keep its port
    program = kept.program
    if time.monotonic() - kept.since >= program.healthy_s:
        kept.pause_s = 0.0
    kept.pause_s = min(kept.pause_s * 2 or program.first_pause_s, program.longest_pause_s)
    kept.process, kept.due = None, time.monotonic() + kept.pause_s
    return Change(program.name, process.pid, process.returncode, kept.pause_s)


def _stop(process: subprocess.Popen[bytes], stop_s: float) -> None:
    if process.poll() is None:
        process.terminate()
        end = time.monotonic() + stop_s
        while process.poll() is None and time.monotonic() < end:
            time.sleep(POLL_S)
    _kill_group(process.pid)
    process.wait()


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
