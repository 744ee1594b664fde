"""A coordinator that stays: takes submitted runs to their end, a few side by side, the others after them.

A site answers one message at a time, whichever run it is of, so runs at the same sites take turns there.
A run for which too few sites take part goes back into the queue until its time is over, and lets others pass.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from mmare.errors import Ending, InputError, RunError
from server.deployment.queue import QueuedRun, QueueState, aborting, queued, save
from server.deployment.retry_policy import Limits
from server.deployment.run_records import forget_run, record_run
from server.deployment.run_supervisor import AbortedError, Supervision
from server.membership.records import SiteState, listed
from server.store.journal import make_run_folder

if TYPE_CHECKING:
    from collections.abc import Collection

    from mmare.host.signals import Stop
    from server.deployment.services import Services
    from server.deployment.start_view import StartView
    from server.membership.kit import Kit

__all__ = ["MARGIN_S", "SIDE_BY_SIDE", "Standing"]

MARGIN_S: Final = 120.0  # beyond the two deadlines that a roll call may be silent
LOOK_S: Final = 1.0  # between looks at the queue
STEP_S: Final = 0.25  # between looks at the runs under way
AGAIN_S: Final = 20.0  # until a run that lacks sites is tried again; doubles up to:
LONGEST_S: Final = 600.0
SIDE_BY_SIDE: Final = 2  # runs at a time: each has a ServerApp of half a gigabyte, and sites take turns
IDLE: Final = "no run is due: sites stay connected; mmare-server submit STUDY queues one"


@dataclass(frozen=True)
class Standing:
    """Takes queued runs to their end until told to stop; runs under way then stay queued and resume later.

    Args:
        services: The coordinator's programs, already answering.
        tries: Attempts at a run in a row without a new checkpoint.
        most: Runs under way at a time.
    """

    kit: Kit
    services: Services
    view: StartView
    stopped: Stop
    tries: int
    most: int = SIDE_BY_SIDE

    def keep_running(self) -> None:
        """Return once told to stop, with every run let go in order."""
        said, looked = "", float("-inf")
        runs: dict[str, _Turn] = {}
        while not self.stopped.is_set():
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                said = self._begin_more(runs, said)
            self._step(runs)
            self.services.poll()
            self.stopped.wait(STEP_S if runs else LOOK_S)
        self._step(runs)

    def _begin_more(self, runs: dict[str, _Turn], said: str) -> str:
        """Begin what is due while there is room; returns what was last said of there being nothing to do."""
        why = "" if runs else IDLE
        try:
            for entry in _due(self.kit, runs)[: max(self.most - len(runs), 0)]:
                runs[entry.name] = _Turn(self, entry)
                why = ""
        except InputError as error:  # a damaged record, which a person has to look at
            why = str(error)
        if why not in ("", said):
            self.view.say(why)
        return why

    @staticmethod
    def _step(runs: dict[str, _Turn]) -> None:
        for name in [name for name, run in runs.items() if run.step()]:
            del runs[name]


def _due(kit: Kit, running: Collection[str]) -> list[QueuedRun]:
    """Runs to begin: those under way when this process ended, then by how often they were tried, and age."""
    now = datetime.now(UTC).isoformat()
    entries = [entry for entry in queued(kit) if entry.name not in running]
    resumed = [entry for entry in entries if entry.state is QueueState.RUNNING]
    waits = [entry for entry in entries if entry.state is QueueState.QUEUED and entry.due <= now]
    return resumed + sorted(waits, key=lambda entry: entry.tried)


class _Turn:
    """A run under way: to its end, or until too few sites take part; writes down what became of it."""

    def __init__(self, standing: Standing, entry: QueuedRun) -> None:
        self._standing = standing
        self._view = standing.view.run(entry.name)
        self._view.say("begins")
        self._entry = replace(entry, state=QueueState.RUNNING, said="under way", due="")
        self._run: Supervision | None = None
        _write_down(standing.kit, self._entry, standing.stopped)

    def step(self) -> bool:
        """Do what is due; returns whether the run is over, for now or for good."""
        entry, stopped, tried = self._entry, self._standing.stopped, 0
        try:
            self._run = self._run or self._begin()
            if not self._run.step():
                return False
            state, said = QueueState.FINISHED, f"the result is in {self._standing.kit.runs / entry.name}"
        except AbortedError:
            state, said = QueueState.ABORTED, "on request; submitted again, it resumes"
        except (RunError, InputError) as error:
            state, said = QueueState.FAILED, str(error)
            if stopped.is_set():
                state = QueueState.QUEUED
            elif _lacks_sites(error) and datetime.now(UTC).isoformat() < entry.until:
                state, tried = QueueState.QUEUED, entry.tried + 1
        pause_s = min(AGAIN_S * 2.0 ** min(tried - 1, 9), LONGEST_S)
        due = (datetime.now(UTC) + timedelta(seconds=pause_s)).isoformat() if tried else ""
        kit = self._standing.kit
        if not stopped.is_set():
            forget_run(kit, kit.runs / entry.name)
        _write_down(kit, replace(entry, state=state, said=said, due=due, tried=tried), stopped)
        self._view.say(f"{state}, {said}")
        self._standing.view.forget(entry.name)
        return True

    def _begin(self) -> Supervision:
        """Raises `InputError` if the run cannot be read."""
        kit, entry, standing = self._standing.kit, self._entry, self._standing
        request = entry.request(kit)
        admitted = sum(record.state is SiteState.ADMITTED for record in listed(kit))
        request = replace(request, nodes=entry.min_nodes or max(admitted, 1))
        make_run_folder(request.out)
        record_run(kit, request.out)
        silent_s = 2 * request.study.federation.deadline_s + MARGIN_S
        limits = Limits(silent_s, tries=standing.tries, yields=bool(entry.until))
        return Supervision(
            *(kit, request, limits, standing.services, self._view, standing.stopped),
            aborted=lambda: aborting(kit, entry.name),
        )


def _lacks_sites(error: InputError | RunError) -> bool:
    return isinstance(error, RunError) and error.ending is Ending.QUORUM


def _write_down(kit: Kit, entry: QueuedRun, stopped: Stop) -> None:
    """Save a record, waiting for room where the disk is full: without it the run would begin anew."""
    while True:
        try:
            save(kit, entry)
        except InputError:
            if stopped.wait(LOOK_S):
                return
        else:
            return
