"""What SuperLink's database says of its last run and of its nodes: a look from outside, without asking it.

Flower's command line says the same, but takes seconds of a processor each time. The tables are Flower's own
and may change with a version (seen in 1.41): where they are not as expected, nothing is told. The database is
opened for reading only, and its journal is a write-ahead log, so SuperLink never waits for whoever looks.
Where there is no such log, nobody is writing: the file is then read as it is, which works in a folder that
cannot be written to, too.
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
_UNSIGNED: Final = 2**64 - 1  # node ids are kept as signed numbers of 64 bits
_RUN: Final = """
    SELECT task.pending_at, task.starting_at, task.running_at, task.finished_at, task.sub_status
    FROM run JOIN task ON task.task_id = run.primary_task_id ORDER BY task.pending_at DESC LIMIT 1
"""
_NODES: Final = "SELECT node_id, status, online_until FROM node WHERE node_id IS NOT NULL LIMIT ?"


@dataclass(frozen=True)
class FlowerState:
    """What there is.

    Args:
        run: State of the run that was submitted last: ``pending``, ``starting``, ``running``, or as what it
            finished: ``completed``, ``failed``, ``stopped``; none where there is no run.
        nodes: By node id: ``registered`` (never connected), ``online``, ``offline`` or ``unregistered``.
    """

    run: str | None
    nodes: Mapping[int, str]


def read_flower_state(database: Path, now: float) -> FlowerState | None:
    """Look into a SuperLink's database.

    Args:
        database: Its file.
        now: Seconds since the epoch: SuperLink notes that a node is gone only when it is asked.

    Returns:
        Nothing where there is no database that can be read.
    """
    if not database.is_file():
        return None
    written = database.with_name(f"{database.name}-wal").exists()
    address = f"{database.absolute().as_uri()}?mode=ro{'' if written else '&immutable=1'}"
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
    """As Flower itself reads it: the last step that has a time."""
    if finished:
        return str(sub_status)
    steps = {"running": running, "starting": starting, "pending": pending}
    return next((name for name, time in steps.items() if time), "")


def _node_status(status: object, online_until: object, now: float) -> str:
    gone = isinstance(online_until, int | float) and online_until <= now
    return "offline" if status == "online" and gone else str(status)
