"""Keeps the coordinator's programs running and responsive."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmare.errors import InputError, RunError
from mmare.host.supervised import ProcessSupervisor, how_it_ended
from server.deployment.programs import (
    programs,
    proxy_answers,
    server_apps,
    started_at,
    superlink_answers,
    write_record,
)
from server.deployment.proxy import write_admitted
from server.membership.kit import PROXY, SUPEREXEC, SUPERLINK

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmare.host.signals import Stop
    from mmare.host.supervised import Change, Program
    from server.membership.kit import Kit

__all__ = ["Services"]

POLL_S: Final = 0.1  # while waiting for the first answer
BEGIN_S: Final = 120.0  # to the first answer; Flower's imports take 5 s on a busy machine
HEALTH_S: Final = 10.0  # between health checks
UNANSWERED_S: Final = 60.0  # after which a running program that does not answer is restarted
MOST_STARTS: Final = 4  # before the first answer
APP_S: Final = 5.0  # from SIGTERM to SIGKILL


class Services:
    """Runs SuperLink, SuperExec and, if ``proxy``, nginx; restarts those that do not answer.

    Args:
        processes: Stopped by the caller.
        report: Takes a line for the console.
    """

    def __init__(
        self, kit: Kit, processes: ProcessSupervisor, report: Callable[[str], None], *, proxy: bool = True
    ) -> None:
        self._kit = kit
        self._processes = processes
        self._report = report
        self._answers = {SUPERLINK: superlink_answers, **({PROXY: proxy_answers} if proxy else {})}
        self._answered: dict[str, float] = {}
        self._asked = 0.0
        self._programs = programs(kit, proxy=proxy)
        self._files = self._new_files = self._stamp()
        self._sites = _written(kit.sites)  # when one was last admitted or revoked
        self._apps: dict[int, tuple[int, str]] = {}  # by run: process id and time of start
        self.runs: set[int] = set()  # Flower's numbers of the attempts under way
        self.restarted_at = 0.0  # of SuperLink or nginx, which may lose a message

    def begin(self, stopped: Stop, before_door: Callable[[], None] = lambda: None) -> bool:
        """Start everything and wait until it answers; false if stopped before.

        Args:
            before_door: Called once SuperLink answers and before nginx lets sites in, to register them.

        Raises:
            RunError: If a program keeps exiting or does not answer.
        """
        inside = [program for program in self._programs if program.name != PROXY]
        door = [program for program in self._programs if program.name == PROXY]
        if not self._await(inside, stopped):
            return False
        before_door()
        if not self._await(door, stopped):
            return False
        self._answered = dict.fromkeys(self._answers, time.monotonic())
        return True

    def _await(self, programs: list[Program], stopped: Stop) -> bool:
        for program in programs:
            self._processes.keep(program)
        names = [program.name for program in programs]
        waiting = {name: answers for name, answers in self._answers.items() if name in names}
        end = time.monotonic() + BEGIN_S
        self.poll()
        while waiting and not stopped.is_set():
            self.poll()
            for name in [name for name, answers in waiting.items() if answers(self._kit)]:
                del waiting[name]
            for name in waiting:
                if self._processes.starts(name) >= MOST_STARTS or time.monotonic() > end:
                    raise RunError(f"{name} does not start: {self._last_error(name)}")
            stopped.wait(POLL_S)
        return not stopped.is_set()

    def poll(self) -> None:
        """Restart programs that exited, hold an old certificate, or fail a periodic health check."""
        changes = self._processes.poll()
        for change in changes:
            self._report_change(change)
        if changes:
            write_record(self._kit, self._processes.running())
        self._apply_admissions()
        if self._answered and time.monotonic() - self._asked > HEALTH_S:
            self._apply_new_certificate()
            self._check_health()

    def answering(self) -> bool:
        """Whether SuperLink answers now."""
        return superlink_answers(self._kit)

    def app(self, run: int) -> int | None:
        """Process id of a run's ServerApp, while it runs."""
        pid, since = self._apps.get(run, (0, ""))
        if pid and started_at(pid) == since:
            return pid
        self._apps.pop(run, None)
        for pid, its_run in server_apps(self._processes.pid(SUPEREXEC)).items():
            started = started_at(pid)
            if its_run == run and started is not None:
                self._apps[run] = pid, started
                return pid
        return None

    def end_app(self, run: int) -> None:
        """End a run's ServerApp if it still runs."""
        self._end_apps(lambda its_run: its_run == run)

    def end_strays(self) -> None:
        """End every ServerApp that belongs to no attempt under way."""
        self._end_apps(lambda its_run: its_run not in self.runs)

    def _end_apps(self, which: Callable[[int], bool]) -> None:
        superexec = self._processes.pid(SUPEREXEC)

        def left() -> list[int]:
            return [pid for pid, run in server_apps(superexec).items() if which(run)]

        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + APP_S
            for pid in left():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            while left() and time.monotonic() < end:
                time.sleep(POLL_S)

    def stop_runs(self) -> None:
        """End SuperExec for good, and with it every ServerApp."""
        self._processes.stop([SUPEREXEC])

    def _report_change(self, change: Change) -> None:
        if change.code is not None:
            self._report(
                f"{change.name} {how_it_ended(change.code)} and restarts in {change.again_s:.1f} s "
                f"({self._kit.logs / change.name}.log)"
            )
        elif self._processes.starts(change.name) > 1:
            self._report(f"{change.name} restarted")
            if change.name in self._answers:
                self.restarted_at = time.monotonic()

    def _check_health(self) -> None:
        self._asked = now = time.monotonic()
        for name, answers in self._answers.items():
            if self._processes.pid(name) is None or answers(self._kit):
                self._answered[name] = now
            elif now - self._answered[name] > UNANSWERED_S:
                self._answered[name] = now
                self._end(name, signal.SIGKILL, f"has not answered for {UNANSWERED_S:.0f} s")
                return  # nginx cannot answer without SuperLink

    def _apply_admissions(self) -> None:
        """Let nginx know of sites that came or went; a record that cannot be read is tried again."""
        written = _written(self._kit.sites)
        if written == self._sites:
            return
        with suppress(InputError):
            write_admitted(self._kit)
            self._sites = written
            pid = self._processes.running().get(PROXY)  # not kept yet, or somebody else's
            if pid is not None:
                os.kill(pid, signal.SIGHUP)

    def _apply_new_certificate(self) -> None:
        before, self._new_files = self._new_files, self._stamp()
        if self._new_files not in (self._files, before) or not all(self._new_files):
            return  # being written: key and certificate are two files
        if self._new_files != self._files:
            self._files = self._new_files
            for name in self._answers:
                self._end(name, signal.SIGTERM, "needs the kit's new certificate")

    def _end(self, name: str, number: int, why: str) -> None:
        pid = self._processes.pid(name)
        if pid is not None:
            self._report(f"{name} {why}: restarting")
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _stamp(self) -> tuple[int, ...]:
        """Modification times of certificate and key; 0 for a missing one."""
        return tuple(_written(path) for path in (self._kit.certificate, self._kit.key))

    def _last_error(self, name: str) -> str:
        path = self._kit.logs / f"{name}.log"
        try:
            with path.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        if not lines:
            return f"{path} is empty"
        errors = [line for line in lines if "ERROR" in line or "[emerg]" in line] or lines
        return f"{path} says {errors[-1].strip()[:200]!r}"


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
