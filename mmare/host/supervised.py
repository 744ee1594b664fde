"""Programs that are kept running: started, watched, started again with growing pauses, stopped together.

Both ends of a federation need it: the coordinator for SuperLink, SuperExec and proxy, a hospital for worker,
SuperNode and SuperExec. Linux only, like the Unix socket between worker and relay.
"""

from __future__ import annotations

import ctypes
import os
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
MOST_LOG_BYTES: Final = 50_000_000  # at the start of a program; then the log begins anew beside the old one
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Program:
    """A program that should run.

    Args:
        name: As a person knows it, such as ``superlink``; unique in a supervisor.
        command: With arguments; the first is a path or is found on ``PATH``.
        log: File that its output is appended to.
        environment: Added to that of this process.
        first_pause_s: Before it is started again; doubles up to ``longest_pause_s`` while it keeps ending.
        longest_pause_s: See above.
        healthy_s: After running for this long it counts as started well, and pauses begin small again.
        stop_s: From SIGTERM to SIGKILL.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    healthy_s: float = 60.0
    stop_s: float = 15.0


@dataclass(frozen=True)
class Change:
    """What happened to a program.

    Args:
        name: Of the program.
        pid: Of its process.
        code: Exit code as of `subprocess`; none where it has just started.
        again_s: Until it is started again.
    """

    name: str
    pid: int
    code: int | None = None
    again_s: float = 0.0


@dataclass
class _Kept:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    due: float = 0.0
    pause_s: float = 0.0
    starts: int = 0


class ProcessSupervisor:
    """Keeps programs running until it is left; each is a process group of its own.

    If this process is killed, the kernel sends its programs SIGTERM, so that none is left behind.
    All methods belong to one thread, which must live as long as the programs do.

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

    def __enter__(self) -> ProcessSupervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def keep(self, program: Program) -> None:
        """Run a program from the next look on."""
        self._kept[program.name] = _Kept(program)

    def poll(self) -> list[Change]:
        """Notice which programs ended and start those that are due; does not block."""
        changes = []
        for kept in self._kept.values():
            if kept.process is not None and kept.process.poll() is not None:
                changes.append(_ended(kept))
            if kept.process is None and time.monotonic() >= kept.due:
                _start(kept)
                assert kept.process is not None  # noqa: S101 - just started
                changes.append(Change(kept.program.name, kept.process.pid))
        return changes

    def pid(self, name: str) -> int | None:
        """Of a program, while it runs."""
        process = self._kept[name].process
        return process.pid if process is not None and process.poll() is None else None

    def starts(self, name: str) -> int:
        """How often a program has been started."""
        return self._kept[name].starts

    def running(self) -> dict[str, int]:
        """Process ids by program."""
        return {name: pid for name in self._kept if (pid := self.pid(name)) is not None}

    def stop(self, names: Iterable[str] | None = None) -> None:
        """End programs, the last kept first; those that do not listen are killed, with all they started."""
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


def _start(kept: _Kept) -> None:
    program = kept.program
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if program.log.stat().st_size > MOST_LOG_BYTES:
            program.log.replace(program.log.with_name(f"{program.log.name}.1"))
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
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one libc call, nothing that another thread may hold
        )
    kept.since = time.monotonic()
    kept.starts += 1


def _ended(kept: _Kept) -> Change:
    process = kept.process
    assert process is not None  # noqa: S101 - asked before
    _kill_group(process.pid)  # what it left behind would keep its port
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
