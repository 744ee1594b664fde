"""What a site keeps of a run between rounds: optimiser moments, on its own disk."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmare.host.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["StateStore"]

_WRITER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
_PENDING: Final = BoundedSemaphore(
    2
)  # states that wait for the disk, over all sites of a process: bounds memory
KEPT_BEFORE: Final = 2  # states at and before the accepted one, so that a resume can step back a round


class StateStore:
    """States per run and round, each file whole or absent.

    Writing goes on behind the caller's back: an answer need not wait for the disk. The state of the round
    before is there for certain when the next one is saved, which is as far as a resume steps back.

    Args:
        folder: Of the site's cache.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "runs"
        self._writing: Future[None] | None = None

    def held(self, run: str) -> tuple[int, ...]:
        """Rounds of ``run`` whose state is kept, in order."""
        self._finish()
        return self._present(run)

    def load(self, run: str, round_number: int) -> dict[str, Tensor] | None:
        """State after a round, or nothing where it is missing or damaged."""
        self._finish()
        try:
            return load_file(self._path(run, round_number))
        except (OSError, SafetensorError):
            return None

    def save(
        self,
        run: str,
        round_number: int,
        state: dict[str, Tensor],
        accepted: int | None,
        best: int | None = None,
    ) -> None:
        """Keep the state after a round; of the others the last two up to the accepted one, and the best.

        Args:
            run: Name of the run.
            round_number: That was trained.
            state: Tensors by name; must not change any more.
            accepted: Round that the training started from; the server counts on it until it says otherwise.
            best: Round of the best model so far, whose state the test needs.
        """
        self._finish()
        _PENDING.acquire()
        self._writing = _WRITER.submit(self._write, run, round_number, state, accepted, best)

    def _write(
        self, run: str, round_number: int, state: dict[str, Tensor], accepted: int | None, best: int | None
    ) -> None:
        path = self._path(run, round_number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                save_file(state, partial)
        finally:
            _PENDING.release()
        present = self._present(run)
        before = [held for held in present if accepted is not None and held <= accepted]
        wanted = {round_number, *before[-KEPT_BEFORE:], best}
        for held in present:
            if held not in wanted:
                self._path(run, held).unlink(missing_ok=True)

    def drop(self, run: str) -> None:
        """Forget a run."""
        self._finish()
        shutil.rmtree(self._folder / run, ignore_errors=True)

    def _finish(self) -> None:
        """Wait for the write that is under way; a disk that is full shows here."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _present(self, run: str) -> tuple[int, ...]:
        return tuple(sorted(int(path.stem) for path in (self._folder / run).glob("[0-9]*.safetensors")))

    def _path(self, run: str, round_number: int) -> Path:
        return self._folder / run / f"{round_number:06d}.safetensors"
