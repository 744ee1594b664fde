"""One run to its end, whatever dies on the way: does what `server.deployment.retry_policy` decides."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from mmare.errors import Ending, InputError, RunError
from mmare.host.files import write_whole
from server.deployment.flower_runs import FlowerRun, flower_status, run_log, stop_run, stop_runs, submit_run
from server.deployment.retry_policy import (
    COMPLETED,
    Attempt,
    Limits,
    RunProgress,
    Seen,
    Step,
    Tries,
    decide,
    is_permanent,
)
from server.store.events import RunFailed
from server.store.journal import JOURNAL, RESULT, Journal

if TYPE_CHECKING:
    from pathlib import Path

    from mmare.host.signals import Stop
    from server.deployment.services import Services
    from server.deployment.start_view import StartView
    from server.membership.kit import Kit
    from server.run.request import RunRequest

__all__ = ["Supervision", "last_run"]

RECORD: Final = "run.json"  # of the kit's state: the run under way, for a successor and for `status`
LOOK_S: Final = 0.25
UNREACHABLE_S: Final = 300.0  # SuperLink, before a run is given up
LITTLE_BYTES: Final = 100 * 2**20  # free on a disk, which then is named as the likely reason
RESUMES: Final = "the same command resumes the run"


@dataclass(frozen=True)
class _Record:
    """The run that a coordinator has under way.

    Args:
        out: Run folder.
        run: Flower's number of the attempt.
        attempts: Since the start of the command.
        since: When the attempt was submitted, ISO in UTC.
    """

    out: str
    run: int
    attempts: int
    since: str


class Supervision:
    """Submits a run, watches it, and submits it again until it has its result or there is no hope.

    Args:
        kit: Of the coordinator.
        request: Of the run.
        limits: Of patience.
        services: The coordinator's programs, answering.
        view: For people.
        stopped: Set when this process is told to stop.
    """

    def __init__(
        self,
        kit: Kit,
        request: RunRequest,
        limits: Limits,
        services: Services,
        view: StartView,
        stopped: Stop,
    ) -> None:
        self._kit = kit
        self._request = request
        self._out = request.out
        self._limits = limits
        self._services = services
        self._view = view
        self._stopped = stopped
        self._progress = RunProgress(self._out, time.monotonic)
        self._tries = Tries(limits.tries)
        self._attempt: Attempt | None = None
        self._attempts = 0
        self._due = time.monotonic()
        self._reached = time.monotonic()  # SuperLink, last
        self._tidy = False  # whether SuperLink holds no run but ours for unfinished

    def run(self) -> None:
        """Until the run's result is there.

        Raises:
            InputError: If it cannot be run as it is.
            RunError: If it is given up, or this process is told to stop.
        """
        while not self._over():
            if self._stopped.wait(LOOK_S):
                self._stop()
                raise RunError(f"stopped; {RESUMES}")
            self._services.look()
            self._show()
        self._show()
        with suppress(OSError):
            (self._kit.state / RECORD).unlink(missing_ok=True)

    def _show(self) -> None:
        self._view.take(self._progress.read(), self._progress.state)

    def _over(self) -> bool:
        """Do what is due; whether the run's result is there."""
        if self._attempt is None:
            if time.monotonic() >= self._due:
                self._submit()
            return False
        app = self._services.app() is not None
        if app and not self._attempt.app_seen:
            self._attempt = replace(self._attempt, app_seen=True)
        if self._progress.begun:
            self._request = replace(self._request, overwrite=False)  # from here on it is taken up
        seen = Seen(
            time.monotonic(),
            app,
            self._progress.finished,
            self._progress.failed,
            self._progress.word,
            (self._out / RESULT).exists(),
            self._services.shaken if self._services.shaken > self._progress.round_since else 0.0,
            self._progress.round_s,
        )
        decision = decide(self._attempt, seen, self._limits)
        if decision.step is Step.ASK:
            self._attempt = replace(self._attempt, status=self._status(), asked=time.monotonic())
        elif decision.step is Step.END:
            return self._end(decision.reason)
        elif decision.step is Step.DONE:
            self._services.end_app()
        return decision.step is Step.DONE

    def _submit(self) -> None:
        now = time.monotonic()
        if not self._services.answering():
            if now - self._reached > UNREACHABLE_S:
                self._give_up(f"SuperLink has not answered for {UNREACHABLE_S:.0f} s; {RESUMES}")
            return
        self._reached = now
        self._show()
        self._progress.begin()
        self._attempts += 1
        try:
            if not self._tidy:
                stop_runs(self._kit)
                self._services.end_app()
            self._tidy = False
            run = submit_run(self._kit, self._request)
        except RunError as error:
            self._again(str(error), None, progress=False)
            return
        self._attempt = Attempt(run, time.monotonic())
        self._record(run)
        self._view.say(f"attempt {self._attempts} submitted, Flower's run {run}")

    def _end(self, reason: str) -> bool:
        """End an attempt; whether it has reached the result after all."""
        attempt = self._attempt
        assert attempt is not None  # noqa: S101 - asked before
        self._show()
        self._services.end_app()
        self._tidy = stop_run(self._kit, attempt.run)
        status = None if self._tidy else self._status()
        self._tidy |= status is not None
        if status is not None and status.status == COMPLETED and (self._out / RESULT).exists():
            return True
        if status is not None:
            self._keep_log(attempt.run)
            reason = self._progress.failed or status.details or reason
        self._attempt = None
        self._again(reason, status, progress=self._progress.new_checkpoint)
        return False

    def _again(self, reason: str, status: FlowerRun | None, *, progress: bool) -> None:
        """Let the next attempt be due, or give up."""
        decision = self._tries.after(reason, status, progress=progress)
        if decision.step is Step.GIVE_UP:
            self._give_up(decision.reason, permanent=status is not None and is_permanent(status))
        self._due = time.monotonic() + self._tries.pause_s
        self._view.say(f"attempt {self._attempts} ended: {reason}; the next one follows")

    def _give_up(self, reason: str, *, permanent: bool = False) -> None:
        self._services.stop_runs()
        self._note_end(reason)
        if permanent:
            raise InputError(reason)
        raise RunError(f"{self._out}: {reason}{self._disk_note()}")

    def _stop(self) -> None:
        """Let go of the run in order: no site works for it any more, and its journal says why."""
        self._view.say("stopping")
        self._services.stop_runs()
        if self._attempt is not None:
            stop_run(self._kit, self._attempt.run)
        self._progress.read()
        self._note_end("interrupted", Ending.INTERRUPTED)

    def _note_end(self, reason: str, code: Ending = Ending.OTHER) -> None:
        """Write the end that an attempt which died could not write."""
        if self._progress.begun and not self._progress.finished and self._progress.failed is None:
            with suppress(OSError):
                journal = Journal(self._out / JOURNAL, self._progress.state.name)
                journal.write(RunFailed(reason=reason, code=code))

    def _status(self) -> FlowerRun | None:
        assert self._attempt is not None  # noqa: S101 - asked before
        try:
            return flower_status(self._kit, self._attempt.run)
        except RunError:
            return None  # SuperLink is being started again

    def _record(self, run: int) -> None:
        record = _Record(str(self._out), run, self._attempts, datetime.now(UTC).isoformat())
        with suppress(OSError):
            write_whole(self._kit.state / RECORD, json.dumps(record.__dict__, indent=2).encode())

    def _keep_log(self, run: int) -> None:
        """What a ServerApp that failed wrote is Flower's: keep it beside the other programs' logs."""
        text = run_log(self._kit, run)
        with suppress(OSError), (self._kit.logs / "serverapp.log").open("a", encoding="utf-8") as file:
            file.write(f"--- Flower's run {run} of {self._out}\n{text}\n")

    def _disk_note(self) -> str:
        for path in (self._out, self._kit.folder):
            with suppress(OSError):
                free = shutil.disk_usage(path).free
                if free < LITTLE_BYTES:
                    return f" (the disk of {path} has {free / 2**20:.0f} MiB left: make room first)"
        return ""


def last_run(kit: Kit) -> tuple[Path, int] | None:
    """Folder and Flower's number of the run under way, or of one that was cut short."""
    try:
        found = json.loads((kit.state / RECORD).read_text(encoding="utf-8"))
        return kit.folder / str(found["out"]), int(found["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
