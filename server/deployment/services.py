"""The coordinator's programs, kept running and answering."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmare.errors import RunError
from mmare.host.supervised import ProcessSupervisor, how_it_ended
from server.deployment.programs import (
    programs,
    proxy_answers,
    server_app_pid,
    server_app_pids,
    started_at,
    superlink_answers,
    write_record,
)
from server.membership.kit import PROXY, SUPEREXEC, SUPERLINK

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmare.host.signals import Stop
    from mmare.host.supervised import Change
    from server.membership.kit import Kit

__all__ = ["Services"]

LOOK_S: Final = 0.1  # while waiting for the first answer
BEGIN_S: Final = 120.0  # to the first answer; Flower's imports take 5 s on a busy machine
HEALTH_S: Final = 10.0  # between questions
UNANSWERED_S: Final = 60.0  # after which a program that lives but does not answer is started anew
HOPELESS: Final = 4  # starts before the first answer
APP_S: Final = 5.0  # from SIGTERM to SIGKILL


class Services:
    """Runs SuperLink, SuperExec and the public door, and sees to it that they answer.

    Args:
        kit: Of the coordinator.
        processes: Stopped by the caller.
        tell: Takes a line for people.
        proxy: Whether an own nginx stands in front.
    """

    def __init__(
        self, kit: Kit, processes: ProcessSupervisor, tell: Callable[[str], None], *, proxy: bool = True
    ) -> None:
        self._kit = kit
        self._processes = processes
        self._tell = tell
        self._answers = {SUPERLINK: superlink_answers, **({PROXY: proxy_answers} if proxy else {})}
        self._answered: dict[str, float] = {}
        self._asked = 0.0
        self._programs = programs(kit, proxy=proxy)
        self._files = self._new_files = self._stamp()
        self._app: tuple[int, str] | None = None  # process id and time of start
        self.shaken = 0.0  # when SuperLink or the door was last started again: a message may be lost then

    def begin(self, stopped: Stop) -> bool:
        """Start everything and wait until it answers.

        Returns:
            Whether it does; not where somebody stopped it before.

        Raises:
            RunError: If a program keeps ending, or does not answer.
        """
        for program in self._programs:
            self._processes.keep(program)
        waiting = dict(self._answers)
        end = time.monotonic() + BEGIN_S
        while waiting and not stopped.is_set():
            self.look()
            for name in [name for name, answers in waiting.items() if answers(self._kit)]:
                del waiting[name]
            for name in waiting:
                if self._processes.starts(name) >= HOPELESS or time.monotonic() > end:
                    raise RunError(f"{name} does not start: {self._last_words(name)}")
            stopped.wait(LOOK_S)
        self._answered = dict.fromkeys(self._answers, time.monotonic())
        return not stopped.is_set()

    def look(self) -> None:
        """Start again what ended, renew what the kit renewed, and now and then ask whether all answer."""
        changes = self._processes.poll()
        for change in changes:
            self._tell_of(change)
        if changes:
            write_record(self._kit, self._processes.running())
        if self._answered and time.monotonic() - self._asked > HEALTH_S:
            self._take_up_certificate()
            self._ask()

    def answering(self) -> bool:
        """Whether SuperLink can be spoken to now."""
        return superlink_answers(self._kit)

    def app(self) -> int | None:
        """Process id of the ServerApp, while it lives."""
        if self._app is not None and started_at(self._app[0]) == self._app[1]:
            return self._app[0]
        pid = server_app_pid(self._processes.pid(SUPEREXEC))
        since = started_at(pid) if pid is not None else None
        self._app = (pid, since) if pid is not None and since is not None else None
        return pid if since is not None else None

    def end_app(self) -> None:
        """End every ServerApp that still lives."""
        superexec = self._processes.pid(SUPEREXEC)
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + APP_S
            for pid in server_app_pids(superexec):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            while server_app_pids(superexec) and time.monotonic() < end:
                time.sleep(LOOK_S)

    def stop_runs(self) -> None:
        """End SuperExec, and with it the ServerApp; nothing is started again."""
        self._processes.stop([SUPEREXEC])

    def _tell_of(self, change: Change) -> None:
        if change.code is not None:
            self._tell(
                f"{change.name} {how_it_ended(change.code)} and is started again in {change.again_s:.1f} s "
                f"({self._kit.logs / change.name}.log)"
            )
        elif self._processes.starts(change.name) > 1:
            self._tell(f"{change.name} started again")
            if change.name in self._answers:
                self.shaken = time.monotonic()

    def _ask(self) -> None:
        self._asked = now = time.monotonic()
        for name, answers in self._answers.items():
            if self._processes.pid(name) is None or answers(self._kit):
                self._answered[name] = now
            elif now - self._answered[name] > UNANSWERED_S:
                self._answered[name] = now
                self._end(name, signal.SIGKILL, f"has not answered for {UNANSWERED_S:.0f} s")
                return  # the door cannot answer without SuperLink

    def _take_up_certificate(self) -> None:
        before, self._new_files = self._new_files, self._stamp()
        if self._new_files not in (self._files, before) or not all(self._new_files):
            return  # just written: a key and its certificate are two files
        if self._new_files != self._files:
            self._files = self._new_files
            for name in self._answers:
                self._end(name, signal.SIGTERM, "takes up the kit's new certificate")

    def _end(self, name: str, number: int, why: str) -> None:
        pid = self._processes.pid(name)
        if pid is not None:
            self._tell(f"{name} {why}: started anew")
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _stamp(self) -> tuple[int, ...]:
        """When certificate and key were written; 0 for one that is not there."""
        return tuple(_written(path) for path in (self._kit.certificate, self._kit.key))

    def _last_words(self, name: str) -> str:
        path = self._kit.logs / f"{name}.log"
        try:
            with path.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        if not lines:
            return f"{path} is empty"
        telling = [line for line in lines if "ERROR" in line or "[emerg]" in line] or lines
        return f"{path} says {telling[-1].strip()[:200]!r}"


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
