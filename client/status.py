"""A screenful about a running worker: ``mmare-site status``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.worker_pb.site_worker_pb2 import StatusAnswer, StudyTally

__all__ = ["status_text"]


def status_text(status: StatusAnswer, now: datetime) -> str:
    """What a worker says of itself, as lines.

    Args:
        status: Of the worker.
        now: To say how long ago the last contact was.
    """
    lines = [
        f"site {status.site}, running for {_span(status.uptime_s)} (process {status.pid}, {status.software})",
        f"messages since the start: {status.messages}",
        f"last contact: {_contact(status, now)}",
        f"now: {f'at work for {_span(status.busy_s)}' if status.HasField('busy_s') else 'waiting'}",
        "",
    ]
    lines += [_study(tally) for tally in status.studies] or ["no study is approved, none has been asked for"]
    return "\n".join(lines)


def _contact(status: StatusAnswer, now: datetime) -> str:
    if not status.HasField("last_contact"):
        return "none since the start"
    then = datetime.fromtimestamp(status.last_contact, UTC)
    return f"{then:%Y-%m-%d %H:%M:%S} UTC, {_span((now - then).total_seconds())} ago"


def _study(tally: StudyTally) -> str:
    name = tally.name or ("a study" if tally.study_hash else "messages that name no study")
    most = f" of {tally.max_releases:,}" if tally.HasField("max_releases") else ""
    kind = "approved" if tally.approved else "not approved"
    left = f"{tally.released:,} answers{most} ({tally.released_bytes / 1e6:.1f} MB)"
    since = " since the approval" if tally.approved else ""
    return f"{kind}: {name} {tally.study_hash[:12]}".rstrip() + (
        f"\n  left{since}: {left}; refused: {tally.refused:,}"
    )


def _span(seconds: float) -> str:
    return str(timedelta(seconds=max(round(seconds), 0)))
