"""The processes that run cells: one task after the other, so that torch is imported once, in one thread.

A worker says where it is, ignores Ctrl-C (the parent's business) and ends as soon as its parent is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import MmareError
from simulation.grid.cell import check_cell, run_cell

if TYPE_CHECKING:
    from simulation.grid.cell import Say, Workplace
    from simulation.grid.plan import Cell

__all__ = ["CELLS_PER_WORKER", "Answer", "Doing", "Task", "answer", "serve"]

CELLS_PER_WORKER: Final = 25  # then a fresh one takes over: what runs leave in memory goes with the old one
WORN_OUT_KIB: Final = 2 * 1024**2  # of memory at its peak, from which a worker is replaced, too
SAY_EVERY_S: Final = 0.5


class Doing(StrEnum):
    """What a worker is asked to do with a cell."""

    CHECK = "check"
    RUN = "run"


@dataclass(frozen=True)
class Task:
    """One thing to do."""

    doing: Doing
    cell: Cell


@dataclass(frozen=True)
class Answer:
    """What a worker says: where it is, or, with ``ended``, what came of the task.

    Args:
        text: Where it is; at the end why it failed, or nothing.
        ended: Whether the task is over.
        entry: Line of results.
        trace: Of an error that is none of ours.
        worn_out: Whether another worker should take over.
    """

    text: str = ""
    ended: bool = False
    entry: dict[str, Any] | None = None
    trace: str = ""
    worn_out: bool = False


def serve(connection: Connection, place: Workplace) -> None:
    """Take tasks and answer them; the body of a worker process.

    Args:
        connection: To the parent.
        place: Where cells are run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch  # noqa: PLC0415 - takes seconds, and its threads are counted when it is imported

    torch.set_num_threads(1)
    cells = 0
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        cells += task.doing is Doing.RUN
        connection.send(answer(task, place, _seldom(connection), cells))


def answer(task: Task, place: Workplace, say: Say, cells: int) -> Answer:
    """Do one task; whatever goes wrong with a cell is an answer.

    Args:
        task: What to do.
        place: Where.
        say: Told where it is.
        cells: That this process has run, this one among them.
    """
    entry: dict[str, Any] | None = None
    why = trace = ""
    try:
        if task.doing is Doing.CHECK:
            check_cell(task.cell, place, say)
        else:
            entry = run_cell(task.cell, place, say)
    except MmareError as error:
        why = str(error)
    except Exception as error:  # one cell must not end the others
        why, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Answer(why, True, entry, trace, cells >= CELLS_PER_WORKER or peak_kib >= WORN_OUT_KIB)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # in the middle of whatever it is: everything on the disk is whole or resumable


def _seldom(connection: Connection) -> Say:
    """Says where a task is, not more often than a person can read."""
    last = -SAY_EVERY_S

    def say(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SAY_EVERY_S:
            last = now
            connection.send(Answer(text))

    return say
