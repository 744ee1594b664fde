"""``mmare-sim grid``: many runs in worker processes; what has ended is kept, and a rerun goes on.

::

    GRID.toml ─► cells ─┬─► a check of each study          ─► failures.jsonl
                        └─► worker processes, one thread each ─► one line each in results.jsonl

Only this process writes the two files, a line at once. A worker that is killed costs its cell, which is tried
again on the next call; a grid that is killed loses at most the rounds since the last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from simulation.grid.worker import Answer, Doing, Task, serve

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from rich.console import Console

    from simulation.grid.cell import Workplace
    from simulation.grid.plan import Cell, Grid

__all__ = ["list_cells", "run_grid"]

COPY: Final = "grid.toml"
LOOK_S: Final = 0.5  # longest that one look at the workers blocks
ONE_THREAD: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def list_cells(grid: Grid, out: Path, only: Sequence[str] = ()) -> None:
    """Print the cells of a grid, whether they are done, and how many there are of what.

    Args:
        grid: Which.
        out: Folder of the grid, which need not be there.
        only: As of `run_grid`.

    Raises:
        InputError: If the folder holds results of something else, or a word selects nothing.
    """
    cells = select(grid.cells, only)
    done = {entry["cell"] for entry in read_lines(out / RESULTS, grid.head.name).entries}
    told = [f"{cell.id}  {'done' if cell.id in done else '    '}  {cell.words}" for cell in cells]
    for key in KEYS:
        counts = Counter("none" if (value := cell.settings[key]) is None else str(value) for cell in cells)
        if len(counts) > 1:
            told.append(f"{key}: " + ", ".join(f"{value} ({number})" for value, number in counts.items()))
    finished = sum(cell.id in done for cell in cells)
    federations = len({cell.federation for cell in cells})
    told.append(f"{len(cells)} cells on {federations} federations, {finished} done")
    sys.stdout.write("\n".join(told) + "\n")


def run_grid(
    grid: Grid, place: Workplace, console: Console, *, jobs: int = 1, only: Sequence[str] = ()
) -> int:
    """Run the cells of a grid that are not done.

    Args:
        grid: What to run.
        place: Folder and sources.
        console: For progress and failures.
        jobs: Worker processes.
        only: ``KEY=VALUE`` words of `simulation.grid.plan.select`.

    Returns:
        How many cells have results now.

    Raises:
        InputError: If the folder is another grid's or cannot be used, or a word selects nothing.
        RunError: If a cell failed, or the grid was interrupted; the same call goes on.
    """
    cells = select(grid.cells, only)
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}, expected at least 1")
    with _alone(place.out, grid):
        results = place.out / RESULTS
        lines = read_lines(results, grid.head.name)
        if lines.torn:
            console.print(f"{results}: the last line was cut short; its cell is run again", soft_wrap=True)
        cut_torn_line(results, lines)
        _tidy(place.out)
        done = {entry["cell"]: entry for entry in lines.entries}
        estimate = Estimate()
        for entry in lines.entries:
            estimate.add(entry["settings"], entry["seconds"])
        todo = [cell for cell in cells if cell.id not in done]
        _forget_failures(place.out / FAILURES, grid, {cell.id for cell in cells} | done.keys())
        progress = GridProgress(len(cells), len(cells) - len(todo), estimate, jobs, console)
        errand = _Errand(grid.head.name, place, progress)
        try:
            with (
                live_grid(progress, console),
                _one_thread(),
                _crew(min(jobs, max(len(todo), 1)), place) as crew,
            ):
                _check(todo, crew, errand)
                left = [cell for cell in todo if cell.id not in errand.failed]
                progress.queue(left)
                for task, answer in crew.work(Task(Doing.RUN, cell) for cell in left):
                    errand.take(task.cell, answer)
        except KeyboardInterrupt:
            raise RunError("interrupted; the same command goes on") from None
    if errand.failed:
        _tell(errand.failed, console)
        raise RunError(
            f"{len(errand.failed)} of {len(cells)} cells failed, see {place.out / FAILURES}; "
            "the same command tries them again"
        )
    return len(cells)


@dataclass
class _Errand:
    """Keeps what workers answer.

    Args:
        grid: Name.
        place: Where.
        progress: Told of it.
        failed: Cell and sentence by id.
    """

    grid: str
    place: Workplace
    progress: GridProgress
    failed: dict[str, tuple[Cell, str]] = field(default_factory=dict)

    def take(self, cell: Cell, answer: Answer | None) -> None:
        """Take what a worker says of a running cell; ``None`` where it has just begun."""
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
        """Note why a cell has no result."""
        self.failed[cell.id] = (cell, answer.text)
        entry: dict[str, Any] = {"cell": cell.id, "settings": cell.settings, "reason": answer.text}
        if answer.trace:
            entry["traceback"] = answer.trace
        append_line(self.place.out / FAILURES, _with_grid(entry, self.grid))
        self.progress.end(cell, None)


def _with_grid(entry: dict[str, Any], grid: str) -> dict[str, Any]:
    return {"cell": entry["cell"], "grid": grid, **entry}


def _check(todo: Sequence[Cell], crew: _Crew, errand: _Errand) -> None:
    """Look at each study once before anything is run: what can never work fails now, with all its cells."""
    alike: dict[Any, list[Cell]] = {}
    for cell in todo:
        alike.setdefault(cell.study_key, []).append(cell)
    for task, answer in crew.work(Task(Doing.CHECK, cells[0]) for cells in alike.values()):
        if answer is None:
            continue
        if not answer.ended:
            errand.progress.say(task.cell, f"check: {answer.text}")
            continue
        errand.progress.pause(task.cell)
        if answer.text:
            for cell in alike[task.cell.study_key]:
                errand.fail(cell, answer)


@dataclass
class _Worker:
    """A process, the way to it, and what it is at."""

    process: BaseProcess
    connection: Connection
    task: Task | None = None

    def stop(self) -> None:
        """End it now; what it has on the disk is whole or resumable."""
        self.connection.close()
        self.process.kill()
        self.process.join()


class _Crew:
    """Worker processes; one that dies or is worn out is replaced.

    Args:
        size: How many.
        place: Where they work.
    """

    def __init__(self, size: int, place: Workplace) -> None:
        self._size = size
        self._place = place
        self._workers: list[_Worker] = []

    def work(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Answer | None]]:
        """Have tasks done in order; yields ``None`` where one begins, then what its worker says of it."""
        waiting = deque(tasks)
        while waiting or any(worker.task for worker in self._workers):
            while waiting and (worker := self._idle()) is not None:
                worker.task = waiting.popleft()
                with suppress(OSError):  # it died while it waited: a look at it will say so
                    worker.connection.send(worker.task)
                yield worker.task, None
            busy = {worker.connection: worker for worker in self._workers if worker.task}
            for connection in wait(list(busy), LOOK_S):
                worker = busy[connection]  # type: ignore[index] # wait gives back what it was given
                task = worker.task
                answer = self._hear(worker)
                if task is not None:
                    yield task, answer

    def stop(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def _hear(self, worker: _Worker) -> Answer:
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
        context = multiprocessing.get_context("spawn")  # a fork would copy threads of torch half
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._place), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]


@contextmanager
def _crew(size: int, place: Workplace) -> Iterator[_Crew]:
    crew = _Crew(size, place)
    try:
        yield crew
    finally:
        crew.stop()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start meanwhile compute in one thread each."""
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
def _alone(out: Path, grid: Grid) -> Iterator[None]:
    """Hold a grid's folder, with a copy of the grid in it.

    Raises:
        InputError: If the folder is something else, another grid's, or another process works on it.
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


def _tidy(out: Path) -> None:
    """Remove federations that a kill has left half prepared."""
    for path in (out / FEDERATIONS).glob(".*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _forget_failures(path: Path, grid: Grid, cells: set[str]) -> None:
    """Drop the failures of cells that are tried again, or done."""
    entries = read_lines(path, grid.head.name, ("settings", "reason")).entries
    keep_lines(path, [entry for entry in entries if entry["cell"] not in cells])


def _tell(failed: dict[str, tuple[Cell, str]], console: Console) -> None:
    """Each sentence once, with the cells that it is about."""
    about: dict[str, list[Cell]] = {}
    for cell, why in failed.values():
        about.setdefault(why, []).append(cell)
    for why, cells in about.items():
        more = f" and {len(cells) - 1} more cells" if len(cells) > 1 else ""
        console.print(f"{cells[0].words}{more}: {why}", style="red", markup=False, soft_wrap=True)
