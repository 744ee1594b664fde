"""Processes that run cells one after the other, so that torch is imported once, and in one thread.

A worker reports its progress, ignores Ctrl-C (the parent handles it) and ends as soon as its parent is gone.
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
from mmare.host.memory import collect_seldom
from simulation.grid.cell import check_cell, run_cell

if TYPE_CHECKING:
    from simulation.grid.cell import Say, Workplace
    from simulation.grid.plan import Cell

__all__ = ["CELLS_PER_WORKER", "Answer", "Task", "TaskKind", "answer", "serve"]

CELLS_PER_WORKER: Final = 25  # then it is replaced, which frees the memory that runs leave behind
WORN_OUT_KIB: Final = 2 * 1024**2  # peak memory from which it is replaced, too
REPORT_EVERY_S: Final = 0.5


class TaskKind(StrEnum):
    """What a worker does with a cell."""

    CHECK = "check"
    RUN = "run"


@dataclass(frozen=True)
class Task:
    """One job of a worker."""

    kind: TaskKind
    cell: Cell


@dataclass(frozen=True)
class Answer:
    """Progress of a task or, with ``ended``, its outcome."""

    text: str = ""  # progress; at the end the reason of a failure
    ended: bool = False
    entry: dict[str, Any] | None = None  # line of results
    trace: str = ""  # of an unexpected error
    worn_out: bool = False  # whether the worker should be replaced


def serve(connection: Connection, place: Workplace) -> None:
    """Serve tasks until the parent closes the connection; the body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    collect_seldom()
    import torch  # noqa: PLC0415 - takes seconds; reads its number of threads on import

    torch.set_num_threads(1)
    cells = 0
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        cells += task.kind is TaskKind.RUN
        connection.send(answer(task, place, _throttled(connection), cells))


def answer(task: Task, place: Workplace, say: Say, cells: int) -> Answer:
    """Do one task; any error becomes an answer. ``cells`` counts those run by this process so far."""
    entry: dict[str, Any] | None = None
    why = trace = ""
    try:
        if task.kind is TaskKind.CHECK:
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
        os._exit(1)  # at any point: everything on disk is complete or resumable


def _throttled(connection: Connection) -> Say:
    """Report progress no more often than a person can read it."""
    last = -REPORT_EVERY_S

    def say(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_EVERY_S:
            last = now
            connection.send(Answer(text))

    return say
