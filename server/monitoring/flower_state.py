"""State of SuperLink's last run and nodes, read from its database.

Flower's command line reports the same, but takes seconds of CPU time. The tables are internal to Flower (as
in 1.41); if they differ, nothing is reported. The database is opened read-only and has a write-ahead log, so
readers never block SuperLink. Without that log nobody is writing, and the file is opened as immutable, which
also works in a read-only folder.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FlowerState", "read_flower_state"]

WAIT_S: Final = 1.0
MOST_NODES: Final = 10_000
_UNSIGNED: Final = 2**64 - 1  # node ids are stored as signed 64-bit integers
_RUN: Final = """
    SELECT task.pending_at, task.starting_at, task.running_at, task.finished_at, task.sub_status
    FROM run JOIN task ON task.task_id = run.primary_task_id ORDER BY task.pending_at DESC LIMIT 1
"""
_NODES: Final = "SELECT node_id, status, online_until FROM node WHERE node_id IS NOT NULL LIMIT ?"


@dataclass(frozen=True)
class FlowerState:
    """State of the run submitted last and of all nodes.

    Args:
        run: ``pending``, ``starting``, ``running``, ``completed``, ``failed`` or ``stopped``; ``None`` if
            there is no run.
        nodes: By node id, ``registered`` (never connected), ``online``, ``offline`` or ``unregistered``.
    """

    run: str | None
    nodes: Mapping[int, str]


def read_flower_state(database: Path, now: float) -> FlowerState | None:
    """Read SuperLink's database, if possible.

    Args:
        now: Seconds since the epoch, since SuperLink marks nodes as offline only when asked.
    """
    if not database.is_file():
        return None
    has_log = database.with_name(f"{database.name}-wal").exists()
    address = f"{database.absolute().as_uri()}?mode=ro{'' if has_log else '&immutable=1'}"
    try:
        with closing(sqlite3.connect(address, WAIT_S, uri=True)) as opened:
            found = opened.execute(_RUN).fetchone()
            nodes = opened.execute(_NODES, (MOST_NODES,)).fetchall()
    except sqlite3.Error:
        return None
    return FlowerState(
        None if found is None else _run_status(*found),
        {int(node) & _UNSIGNED: _node_status(status, until, now) for node, status, until in nodes},
    )


def _run_status(
    pending: object, starting: object, running: object, finished: object, sub_status: object
) -> str:
    """The last step with a time, as Flower derives it."""
    if finished:
        return str(sub_status)
    steps = {"running": running, "starting": starting, "pending": pending}
    return next((name for name, time in steps.items() if time), "")


def _node_status(status: object, online_until: object, now: float) -> str:
    gone = isinstance(online_until, int | float) and online_until <= now
    return "offline" if status == "online" and gone else str(status)
