"""Text of ``mmare-site status``: a site's worker and relay."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from client.relay.line import line_status
from client.relay.programs import RelayFolder
from client.relay.status_file import last_contact, read_state
from mmare.host.console import visible
from mmare.wire.joining import SiteKit

if TYPE_CHECKING:
    from client.relay.status_file import ProgramState
    from client.worker_pb.site_worker_pb2 import StatusAnswer, StudyTally
    from sites.config import SiteConfig, WorkerConfig

__all__ = ["RelayText", "relay_text", "status_text", "worker_text"]

RECENT_S: Final = 60.0  # a longer silence suggests that the coordinator is unreachable
QUIET_S: Final = 900.0  # a longer silence between messages suggests that no study is under way


@dataclass(frozen=True)
class RelayText:
    """State of a relay."""

    lines: str = ""  # empty if the site has joined no federation
    runs: bool = True  # whether all of its programs run


def relay_text(site: SiteConfig, now: datetime, worker: StatusAnswer | None = None) -> RelayText:
    """State of SuperNode and SuperExec, and whether a study is under way as far as the worker knows.

    Raises:
        InputError: If the kit's files are unusable.
    """
    try:
        if not SiteKit(site.coordinator.kit).joined.exists():
            return RelayText()
        coordinator = SiteKit(site.coordinator.kit).coordinator()
        folder = RelayFolder.of(site)
        state, contact = read_state(folder), last_contact(folder)
    except PermissionError:
        return RelayText(
            f"relay: {site.coordinator.kit} belongs to another user; run this command as that user"
        )
    where = f"coordinator: {coordinator.address}, federation {coordinator.federation}"
    if state is None:
        return RelayText(f"{where}\nrelay: not running", runs=False)
    lines = [where, f"last contact: {_ago(contact, now)}"]
    if contact is not None and worker is not None and (now - contact).total_seconds() <= RECENT_S:
        lines.append(f"connected, {'a study' if _asked(worker, now) else 'no study'} under way")
    lines += [line] if (line := line_status(folder.folder)) else []
    lines.append("")
    lines += [_program(program, now) for program in state.programs]
    return RelayText("\n".join(lines), all(program.pid is not None for program in state.programs))


def _asked(worker: StatusAnswer, now: datetime) -> bool:
    """Whether the worker is at work for a study or was a moment ago."""
    if worker.HasField("busy_s"):
        return True
    return worker.HasField("last_contact") and now.timestamp() - worker.last_contact < QUIET_S


def _ago(then: datetime | None, now: datetime) -> str:
    if then is None:
        return "none yet"
    seconds = (now - then).total_seconds()
    late = "; the coordinator may be unreachable" if seconds > RECENT_S else ""
    return f"{then:%Y-%m-%d %H:%M:%S} UTC, {_span(seconds)} ago{late}"


def _program(program: ProgramState, now: datetime) -> str:
    again = f", started {program.starts} times" if program.starts > 1 else ""
    last = f"; before that: {program.ended}" if program.ended else ""
    if program.pid is None:
        return f"{program.name}: not running" + (f"; {program.ended}" if program.ended else " yet")
    since = now - datetime.fromtimestamp(program.since, UTC)
    return f"{program.name}: running for {_span(since.total_seconds())} (process {program.pid}){again}{last}"


def worker_text(worker: WorkerConfig, status: StatusAnswer | None, now: datetime) -> str:
    """State of a worker, or that there is none."""
    if status is not None:
        return status_text(status, now)
    if worker.spool is None:
        return "not running"
    from client.relay.spool import AWAY_S, MOST_WAITING, Spool  # noqa: PLC0415 - protocol buffers

    spool = Spool(worker.spool)
    try:
        waiting, silent_s = spool.waiting(), spool.silent_s()
    except FileNotFoundError:
        waiting, silent_s = 0, None
    except OSError as error:
        return f"not running: {worker.spool}: {error.strerror}"
    if silent_s is None:
        return f"no worker has served {worker.spool} yet; is its job in the queue (squeue)?"
    waits = f"{waiting} message{'s' * (waiting != 1)} of at most {MOST_WAITING} wait for it"
    late = f"what comes is refused (S401) after {_span(AWAY_S)} without it"
    return f"no worker for {_span(silent_s)}; is its job in the queue (squeue)? {waits}; {late}"


def status_text(status: StatusAnswer, now: datetime) -> str:
    """State of a worker."""
    lines = [
        f"site {status.site}, running for {_span(status.uptime_s)} (process {status.pid}, {status.software})",
        f"messages since the start: {status.messages}",
        f"last contact: {_contact(status, now)}",
        f"now: {f'at work for {_span(status.busy_s)}' if status.HasField('busy_s') else 'idle'}",
        "",
    ]
    lines += [_study(tally) for tally in status.studies] or ["no study is approved, none has been requested"]
    return "\n".join(lines)


def _contact(status: StatusAnswer, now: datetime) -> str:
    if not status.HasField("last_contact"):
        return "none since the start"
    then = datetime.fromtimestamp(status.last_contact, UTC)
    return f"{then:%Y-%m-%d %H:%M:%S} UTC, {_span((now - then).total_seconds())} ago"


def _study(tally: StudyTally) -> str:
    name = visible(tally.name) or ("a study" if tally.study_hash else "messages that name no study")
    most = f" of {tally.max_releases:,}" if tally.HasField("max_releases") else ""
    kind = "approved" if tally.approved else "not approved"
    released = f"{tally.released:,} answers{most} ({tally.released_bytes / 1e6:.1f} MB)"
    since = " since the approval" if tally.approved else ""
    return f"{kind}: {name} {tally.study_hash[:12]}".rstrip() + (
        f"\n  released{since}: {released}; refused: {tally.refused:,}"
    )


def _span(seconds: float) -> str:
    return str(timedelta(seconds=max(round(seconds), 0)))
