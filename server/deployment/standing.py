"""A coordinator that stays: takes submitted runs to their end, one after the other.

A run for which too few sites take part goes back into the queue until its time is over, and lets others pass.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from mmare.errors import Ending, InputError, RunError
from server.deployment.queue import QueuedRun, QueueState, aborting, queued, save
from server.deployment.retry_policy import Limits
from server.deployment.run_supervisor import AbortedError, Supervision, forget_run, record_run
from server.membership.records import SiteState, listed
from server.store.journal import make_run_folder

if TYPE_CHECKING:
    from mmare.host.signals import Stop
    from server.deployment.services import Services
    from server.deployment.start_view import StartView
    from server.membership.kit import Kit

__all__ = ["MARGIN_S", "keep_running"]

MARGIN_S: Final = 120.0  # beyond the two deadlines that a roll call may be silent
LOOK_S: Final = 1.0  # between looks at the queue
AGAIN_S: Final = 20.0  # until a run that lacks sites is tried again; doubles up to:
LONGEST_S: Final = 600.0
IDLE: Final = "no run is due: sites stay connected; mmare-server submit STUDY queues one"


def keep_running(kit: Kit, services: Services, view: StartView, stopped: Stop, tries: int) -> None:
    """Take queued runs to their end until told to stop; a run under way then stays queued and resumes later.

    Args:
        services: The coordinator's programs, already answering.
        tries: Attempts at a run in a row without a new checkpoint.
    """
    said = ""
    while not stopped.is_set():
        try:
            entry, why = _next(kit), IDLE
        except InputError as error:  # a damaged record, which a person has to look at
            entry, why = None, str(error)
        if entry is not None:
            said = ""
            _take(kit, entry, services, view, stopped, tries)
            continue
        if why != said:
            view.say(why)
            said = why
        services.poll()
        stopped.wait(LOOK_S)


def _next(kit: Kit) -> QueuedRun | None:
    """The oldest run that is due; one that was under way when this process ended comes first."""
    now = datetime.now(UTC).isoformat()
    waits = [entry for entry in queued(kit) if entry.state is QueueState.RUNNING]
    waits += [entry for entry in queued(kit) if entry.state is QueueState.QUEUED and entry.due <= now]
    return next(iter(waits), None)


def _take(kit: Kit, entry: QueuedRun, services: Services, view: StartView, stopped: Stop, tries: int) -> None:
    """Run one to its end, or until too few sites take part, and write down what became of it."""
    view.say(f"{entry.name}: begins")
    entry = replace(entry, state=QueueState.RUNNING, said="under way", due="")
    _write_down(kit, entry, stopped)
    tried = 0
    try:
        said = _run(kit, entry, services, view, stopped, tries)
        state = QueueState.FINISHED
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
    if not stopped.is_set():
        forget_run(kit)
    _write_down(kit, replace(entry, state=state, said=said, due=due, tried=tried), stopped)
    view.say(f"{entry.name}: {state}, {said}")


def _run(kit: Kit, entry: QueuedRun, services: Services, view: StartView, stopped: Stop, tries: int) -> str:
    """Run one to its end; returns what to say of it."""
    request = entry.request(kit)
    admitted = sum(record.state is SiteState.ADMITTED for record in listed(kit))
    request = replace(request, nodes=entry.min_nodes or max(admitted, 1))
    make_run_folder(request.out)
    record_run(kit, request.out)
    silent_s = 2 * request.study.federation.deadline_s + MARGIN_S
    limits = Limits(silent_s, tries=tries, yields=bool(entry.until))
    view.forget()
    run = Supervision(
        *(kit, request, limits, services, view, stopped), aborted=lambda: aborting(kit, entry.name)
    )
    run.run()
    return f"the result is in {request.out}"


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
