"""Takes one run to its end despite crashes, as `server.deployment.retry_policy` decides."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mmare.errors import Ending, InputError, RunError
from server.deployment.flower_runs import FlowerRun, flower_status, run_log, stop_run, stop_runs, submit_run
from server.deployment.retry_policy import (
    COMPLETED,
    Attempt,
    Limits,
    Observation,
    RetryCounter,
    RunProgress,
    Step,
    decide,
    is_hopeless,
    is_permanent,
    who_is_missing,
)
from server.deployment.run_records import forget_run, record_run
from server.membership.records import SiteState, listed
from server.store.events import RunFailed
from server.store.journal import JOURNAL, RESULT, Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmare.host.signals import Stop
    from server.deployment.services import Services
    from server.deployment.start_view import RunView
    from server.membership.kit import Kit
    from server.run.request import RunRequest

__all__ = ["AbortedError", "Supervision"]

POLL_S: Final = 0.25
UNREACHABLE_S: Final = 300.0  # of SuperLink, after which a run is given up
LITTLE_BYTES: Final = 100 * 2**20  # free disk space below which it is reported as the likely reason
RESUMES: Final = "the same command resumes the run"


class AbortedError(RunError):
    """A run that was ended on request; it can be resumed."""


class Supervision:
    """Submits a run, watches it, and resubmits it until it has its result or is given up.

    Args:
        services: The coordinator's programs, already answering.
        stopped: Set when this process should stop.
        aborted: Whether this run should end.
    """

    def __init__(
        self,
        kit: Kit,
        request: RunRequest,
        limits: Limits,
        services: Services,
        view: RunView,
        stopped: Stop,
        aborted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._kit = kit
        self._request = request
        self._out = request.out
        self._limits = limits
        self._services = services
        self._view = view
        self._stopped = stopped
        self._aborted = aborted
        self._progress = RunProgress(self._out, time.monotonic)
        self._retries = RetryCounter(limits.tries)
        self._attempt: Attempt | None = None
        self._attempts = 0
        self._due = time.monotonic()
        self._reached = time.monotonic()  # last contact with SuperLink
        self._tidy = False  # whether SuperLink has no unfinished runs that are nobody's

    def run(self) -> None:
        """Return once the run's result exists; raises as `step`."""
        while not self.step():
            self._stopped.wait(POLL_S)
            self._services.poll()

    def step(self) -> bool:
        """Do what is due; returns whether the run's result exists. Several runs are stepped in turn.

        Raises:
            InputError: If the run is invalid.
            RunError: If it is given up, or this process is stopped; its ending is `Ending.QUORUM` if too few
                sites take part.
            AbortedError: If the run should end.
        """
        if self._stopped.is_set():
            self._services.stop_runs()
            self._stop("stopping", "interrupted")
            raise RunError(f"stopped; {RESUMES}")
        if self._aborted():
            self._end_app()
            self._stop("aborting", "aborted")
            raise AbortedError("aborted")
        self._show()
        done = self._advance()
        if done:
            self._show()
            self._let_go()
            forget_run(self._kit, self._out)
        return done

    def _show(self) -> None:
        self._view.take(self._progress.read(), self._progress.state)

    def _advance(self) -> bool:
        if self._attempt is None:
            if time.monotonic() >= self._due:
                self._submit()
            return False
        app = self._services.app(self._attempt.run) is not None
        if app and not self._attempt.app_seen:
            self._attempt = replace(self._attempt, app_seen=True)
        if self._progress.begun:
            self._request = replace(self._request, overwrite=False)  # done; later attempts resume
        restarted_at = self._services.restarted_at
        seen = Observation(
            time.monotonic(),
            app,
            self._progress.finished,
            self._progress.failed,
            self._progress.last_write,
            (self._out / RESULT).exists(),
            restarted_at if restarted_at > self._progress.round_since else 0.0,
            self._progress.round_s,
        )
        decision = decide(self._attempt, seen, self._limits)
        if decision.step is Step.ASK:
            self._attempt = replace(self._attempt, status=self._status(), asked=time.monotonic())
        elif decision.step is Step.END:
            return self._end(decision.reason)
        elif decision.step is Step.DONE:
            self._end_app()
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
                stop_runs(self._kit, keep=self._services.runs)
                self._services.end_strays()
            self._tidy = False
            run = submit_run(self._kit, self._request)
        except RunError as error:
            self._retry(str(error), None, progress=False)
            return
        self._attempt = Attempt(run, time.monotonic())
        self._services.runs.add(run)
        record_run(self._kit, self._out, run, self._attempts)
        self._view.say(f"attempt {self._attempts} submitted, Flower's run {run}")

    def _end(self, reason: str) -> bool:
        """End an attempt; returns whether it reached the result after all."""
        attempt = self._attempt
        assert attempt is not None  # noqa: S101 - the caller checked
        self._show()
        self._end_app()
        self._tidy = stop_run(self._kit, attempt.run)
        status = None if self._tidy else self._status()
        self._tidy |= status is not None
        if status is not None and status.status == COMPLETED and (self._out / RESULT).exists():
            return True
        if status is not None:
            self._keep_log(attempt.run)
            reason = self._progress.failed or status.details or reason
        self._let_go()
        if self._progress.lacks_sites:
            reason = self._with_missing(reason)
        self._retry(reason, status, progress=self._progress.new_checkpoint)
        return False

    def _with_missing(self, reason: str) -> str:
        """The reason with who is missing; gives up where another try would find the same, or comes later."""
        admitted = [record.site for record in listed(self._kit) if record.state is SiteState.ADMITTED]
        missing = who_is_missing(admitted, self._progress.calls)
        reason = f"{reason}: {missing}" if missing else reason
        gives_way = self._limits.yields and not self._progress.new_checkpoint
        min_sites = self._request.study.federation.min_sites
        if gives_way or is_hopeless(admitted, self._progress.calls, min_sites):
            self._give_up(f"{reason}; {RESUMES}", ending=Ending.QUORUM)
        return reason

    def _retry(self, reason: str, status: FlowerRun | None, *, progress: bool) -> None:
        """Schedule the next attempt, or give up."""
        decision = self._retries.after(reason, status, progress=progress)
        if decision.step is Step.GIVE_UP:
            lacks_sites = self._progress.lacks_sites
            self._give_up(
                decision.reason,
                permanent=status is not None and is_permanent(status),
                ending=Ending.QUORUM if lacks_sites else Ending.OTHER,
            )
        self._due = time.monotonic() + self._retries.pause_s
        self._view.say(f"attempt {self._attempts} ended: {reason}; retrying")

    def _give_up(self, reason: str, *, permanent: bool = False, ending: Ending = Ending.OTHER) -> None:
        self._end_app()
        self._let_go()
        self._log_end(reason)
        if permanent:
            raise InputError(reason)
        raise RunError(f"{self._out}: {reason}{self._disk_note()}", ending)

    def _stop(self, saying: str, reason: str) -> None:
        """Stop the run at the sites and log it in the journal; its ServerApp has ended."""
        self._view.say(saying)
        if self._attempt is not None:
            stop_run(self._kit, self._attempt.run)
        self._let_go()
        self._progress.read()
        self._log_end(reason, Ending.INTERRUPTED)

    def _end_app(self) -> None:
        if self._attempt is not None:
            self._services.end_app(self._attempt.run)

    def _let_go(self) -> None:
        """Forget the attempt, which has ended."""
        if self._attempt is not None:
            self._services.runs.discard(self._attempt.run)
        self._attempt = None

    def _log_end(self, reason: str, code: Ending = Ending.OTHER) -> None:
        """Log the end of the attempt if it could not do so itself."""
        if self._progress.begun and not self._progress.finished and self._progress.failed is None:
            with suppress(OSError):
                journal = Journal(self._out / JOURNAL, self._progress.state.name)
                journal.write(RunFailed(reason=reason, code=code))

    def _status(self) -> FlowerRun | None:
        assert self._attempt is not None  # noqa: S101 - the caller checked
        try:
            return flower_status(self._kit, self._attempt.run)
        except RunError:
            return None  # SuperLink is restarting

    def _keep_log(self, run: int) -> None:
        """Copy the output of a failed ServerApp, which Flower stores, to the other programs' logs."""
        text = run_log(self._kit, run)
        with suppress(OSError), (self._kit.logs / "serverapp.log").open("a", encoding="utf-8") as file:
            file.write(f"--- Flower's run {run} of {self._out}\n{text}\n")

    def _disk_note(self) -> str:
        for path in (self._out, self._kit.folder):
            with suppress(OSError):
                free = shutil.disk_usage(path).free
                if free < LITTLE_BYTES:
                    return f" (the disk of {path} has {free / 2**20:.0f} MiB left: free some space first)"
        return ""
