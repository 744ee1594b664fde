"""``mmare-sim grid``: many runs in worker processes; a rerun keeps finished cells and resumes the rest.

::

    GRID.toml ─► cells ─┬─► a check of each study          ─► failures.jsonl
                        └─► worker processes, one thread each ─► one line each in results.jsonl

Only this process writes the two files, line by line. A killed worker costs its cell, which the next call
retries; a killed grid loses at most the rounds since the last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import InputError, RunError
from mmare.host.files import replacing
from mmare.host.locks import locked
from mmare.study.tables import TableError, read_toml
from simulation.grid.cell import FEDERATIONS
from simulation.grid.plan import KEYS, select
from simulation.grid.progress import Estimate, GridProgress, live_grid
from simulation.grid.result_log import FAILURES, RESULTS, append_line, cut_torn_line, keep_lines, read_lines
from simulation.grid.worker import Answer, Task, TaskKind, serve

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from rich.console import Console

    from simulation.grid.cell import Workplace
    from simulation.grid.plan import Cell, Grid

__all__ = ["list_cells", "run_grid"]

COPY: Final = "grid.toml"
POLL_S: Final = 0.5  # longest wait for an answer of a worker
ONE_THREAD: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def list_cells(grid: Grid, out: Path, only: Sequence[str] = ()) -> None:
    """Print the cells of a grid, whether each is done, and counts by setting.

    Raises:
        InputError: If the folder holds results of something else, or ``only`` selects nothing.
    """
    cells = select(grid.cells, only)
    done = {entry["cell"] for entry in read_lines(out / RESULTS, grid.head.name).entries}
    lines = [f"{cell.id}  {'done' if cell.id in done else '    '}  {cell.words}" for cell in cells]
    for key in KEYS:
        counts = Counter("none" if (value := cell.settings[key]) is None else str(value) for cell in cells)
        if len(counts) > 1:
            lines.append(f"{key}: " + ", ".join(f"{value} ({number})" for value, number in counts.items()))
    finished = sum(cell.id in done for cell in cells)
    federations = len({cell.federation for cell in cells})
    lines.append(f"{len(cells)} cells on {federations} federations, {finished} done")
    sys.stdout.write("\n".join(lines) + "\n")


def run_grid(
    grid: Grid, place: Workplace, console: Console, *, jobs: int = 1, only: Sequence[str] = ()
) -> int:
    """Run the cells of a grid that are not done.

    Args:
        grid: What to run.
        place: Folder and sources.
        console: For progress and failures.
        jobs: Number of worker processes.
        only: ``KEY=VALUE`` as of `simulation.grid.plan.select`.

    Returns:
        The number of cells with results.

    Raises:
        InputError: If the folder is another grid's or cannot be used, or ``only`` selects nothing.
        RunError: If a cell failed, or the grid was interrupted; the same call resumes it.
    """
    cells = select(grid.cells, only)
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}, expected at least 1")
    with _locked_folder(place.out, grid):
        results = place.out / RESULTS
        lines = read_lines(results, grid.head.name)
        if lines.torn:
            console.print(f"{results}: the last line was cut short; its cell is run again", soft_wrap=True)
        cut_torn_line(results, lines)
        _remove_partial_federations(place.out)
        done = {entry["cell"]: entry for entry in lines.entries}
        estimate = Estimate()
        for entry in lines.entries:
            estimate.add(entry["settings"], entry["seconds"])
        todo = [cell for cell in cells if cell.id not in done]
        _drop_failures(place.out / FAILURES, grid, {cell.id for cell in cells} | done.keys())
        progress = GridProgress(len(cells), len(cells) - len(todo), estimate, jobs, console)
        recorder = _Recorder(grid.head.name, place, progress)
        try:
            with (
                live_grid(progress, console),
                _one_thread(),
                closing(_WorkerPool(min(jobs, max(len(todo), 1)), place)) as pool,
            ):
                _check(todo, pool, recorder)
                left = [cell for cell in todo if cell.id not in recorder.failed]
                progress.queue(left)
                for task, answer in pool.work(Task(TaskKind.RUN, cell) for cell in left):
                    recorder.take(task.cell, answer)
        except KeyboardInterrupt:
            raise RunError("interrupted; the same command goes on") from None
    if recorder.failed:
        _print_failures(recorder.failed, console)
        raise RunError(
            f"{len(recorder.failed)} of {len(cells)} cells failed, see {place.out / FAILURES}; "
            "the same command tries them again"
        )
    return len(cells)


@dataclass
class _Recorder:
    """Writes what workers answer to the files of the grid, and updates the progress."""

    grid: str
    place: Workplace
    progress: GridProgress
    failed: dict[str, tuple[Cell, str]] = field(default_factory=dict)  # cell and reason, by id

    def take(self, cell: Cell, answer: Answer | None) -> None:
        """Record an answer about a running cell; ``None`` means that it has just begun."""
        if answer is None:
            self.progress.begin(cell)
        elif not answer.ended:
            self.progress.say(cell, answer.text)
        elif answer.entry is None:
            self.fail(cell, answer)
        else:
            append_line(self.place.out / RESULTS, _with_grid(answer.entry, self.grid))
            self.progress.end(cell, answer.entry)

    def fail(self, cell: Cell, answer: Answer) -> None:
        """Record why a cell has no result."""
        self.failed[cell.id] = (cell, answer.text)
        entry: dict[str, Any] = {"cell": cell.id, "settings": cell.settings, "reason": answer.text}
        if answer.trace:
            entry["traceback"] = answer.trace
        append_line(self.place.out / FAILURES, _with_grid(entry, self.grid))
        self.progress.end(cell, None)


def _with_grid(entry: dict[str, Any], grid: str) -> dict[str, Any]:
    return {"cell": entry["cell"], "grid": grid, **entry}


def _check(todo: Sequence[Cell], pool: _WorkerPool, recorder: _Recorder) -> None:
    """Check each study once before anything is run: one that can never work fails now, with all its cells."""
    alike: dict[Any, list[Cell]] = {}
    for cell in todo:
        alike.setdefault(cell.study_key, []).append(cell)
    for task, answer in pool.work(Task(TaskKind.CHECK, cells[0]) for cells in alike.values()):
        if answer is None:
            continue
        if not answer.ended:
            recorder.progress.say(task.cell, f"check: {answer.text}")
            continue
        recorder.progress.pause(task.cell)
        if answer.text:
            for cell in alike[task.cell.study_key]:
                recorder.fail(cell, answer)


@dataclass
class _Worker:
    """A process, the connection to it, and its current task."""

    process: BaseProcess
    connection: Connection
    task: Task | None = None

    def stop(self) -> None:
        """Kill it; what it has on disk is complete or resumable."""
        self.connection.close()
        self.process.kill()
        self.process.join()


class _WorkerPool:
    """Worker processes; one that dies or is worn out is replaced."""

    def __init__(self, size: int, place: Workplace) -> None:
        self._size = size
        self._place = place
        self._workers: list[_Worker] = []

    def work(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Answer | None]]:
        """Do tasks in order; yields ``None`` when one begins, then the answers of its worker."""
        waiting = deque(tasks)
        while waiting or any(worker.task for worker in self._workers):
            while waiting and (worker := self._idle()) is not None:
                worker.task = waiting.popleft()
                with suppress(OSError):  # it died while idle; `_receive` notices
                    worker.connection.send(worker.task)
                yield worker.task, None
            busy = {worker.connection: worker for worker in self._workers if worker.task}
            for connection in wait(list(busy), POLL_S):
                worker = busy[connection]  # type: ignore[index] # wait returns what it was given
                task = worker.task
                answer = self._receive(worker)
                if task is not None:
                    yield task, answer

    def close(self) -> None:
        """Stop all workers."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def _receive(self, worker: _Worker) -> Answer:
        try:
            answer: Answer = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode or 0
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            answer = Answer(f"the worker process ended {how}", ended=True, worn_out=True)
        if answer.ended:
            worker.task = None
        if answer.worn_out:
            self._workers.remove(worker)
            worker.stop()
        return answer

    def _idle(self) -> _Worker | None:
        for worker in self._workers:
            if worker.task is None:
                return worker
        if len(self._workers) == self._size:
            return None
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of torch only in part
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._place), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit processes started meanwhile to one thread each."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _locked_folder(out: Path, grid: Grid) -> Iterator[None]:
    """Lock a grid's folder and copy the grid into it.

    Raises:
        InputError: If the folder is something else, another grid's, or in use by another process.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder")
    copy = out / COPY
    if copy.exists():
        try:
            name = read_toml(copy, "grid").get("grid", {}).get("name")
        except TableError as error:
            raise InputError(str(error)) from None
        if name != grid.head.name:
            raise InputError(
                f"{out}: holds the grid {name!r}, expected {grid.head.name!r}; choose another --out"
            )
    elif out.exists() and (foreign := sorted(path.name for path in out.iterdir() if path.name != ".lock")):
        raise InputError(f"{out}: holds {foreign[0]!r} and no grid; choose an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", InputError(f"{out}: another process is running this grid")):
        with replacing(copy) as partial:
            partial.write_text(grid.text, encoding="utf-8")
        yield


def _remove_partial_federations(out: Path) -> None:
    """Remove federations that a killed grid was preparing."""
    for path in (out / FEDERATIONS).glob(".*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _drop_failures(path: Path, grid: Grid, cells: set[str]) -> None:
    """Drop the failures of these cells, which are retried or done."""
    entries = read_lines(path, grid.head.name, ("settings", "reason")).entries
    keep_lines(path, [entry for entry in entries if entry["cell"] not in cells])


def _print_failures(failed: dict[str, tuple[Cell, str]], console: Console) -> None:
    """Print each reason once, with the number of cells."""
    by_reason: dict[str, list[Cell]] = {}
    for cell, reason in failed.values():
        by_reason.setdefault(reason, []).append(cell)
    for reason, cells in by_reason.items():
        more = f" and {len(cells) - 1} more cells" if len(cells) > 1 else ""
        console.print(f"{cells[0].words}{more}: {reason}", style="red", markup=False, soft_wrap=True)
