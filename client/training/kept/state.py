"""What a site keeps between rounds, on its own disk: optimiser moments, local parameters, the last model."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from client.training.kept.expiry import FINISHED, KeptRuns, drop_abandoned
from client.training.kept.recent_files import RecentFiles, stamp_of
from mmare.host.files import OWN_MODE, own_folder, replacing
from mmare.wire.sharing import every_round

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from client.training.kept.recent_files import Stamp

__all__ = ["StateStore"]

_WRITER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
_PENDING: Final = BoundedSemaphore(4)  # states and models waiting for the disk, over all sites: bounds memory
MODEL: Final = "model.last"
_RECENT: Final = RecentFiles(96 * 2**20)
FOR_EVER: Final = KeptRuns()
KEPT_BEFORE: Final = 2  # states up to the accepted round, so that a resume can step back one


class StateStore:
    """States per run and round, each file whole or absent, in the site's cache ``folder``.

    Writing is asynchronous: an answer need not wait for the disk. `save` waits for the previous write, so the
    state one round back, as far as a resume goes, is always complete. Abandoned runs expire as ``kept`` says.
    Rounds of a run that ``keeps`` says no to stay in memory, as long as there is room.
    """

    def __init__(
        self,
        folder: Path,
        kept: KeptRuns = FOR_EVER,
        keeps: Callable[[str, int], bool] = every_round,
    ) -> None:
        self._folder = folder / "runs"
        self._keeps = keeps
        self._kept = kept
        self._writing: list[Future[Stamp]] = []

    def held(self, run: str) -> tuple[int, ...]:
        """Rounds of ``run`` whose state is stored, in order; others, which were abandoned, may expire."""
        self._finish()
        drop_abandoned(self._folder, self._kept, run)
        return self._present(run)

    def load(self, run: str, round_number: int) -> dict[str, Tensor] | None:
        """State after a round; None if it is missing or damaged."""
        path = self._path(run, round_number)
        if (held := _RECENT.get(path)) is not None:
            return held
        self._finish()
        try:
            return load_file(path)
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
        """Store the state after a round; keep besides it the last two up to ``accepted``, and ``best``.

        ``state`` must not change any more. ``accepted`` is the round that training started from, to which the
        server may return; ``best`` that of the best model so far, whose state the test needs.
        """
        path = self._path(run, round_number)
        _RECENT.unpin(path.parent, but={path.parent / MODEL, self._path(run, accepted or 0)})
        if not self._keeps(run, round_number) and _RECENT.pin(path, state):
            return
        self._finish()
        _PENDING.acquire()
        writing = _WRITER.submit(self._write, run, round_number, state, accepted, best)
        self._writing.append(writing)
        _RECENT.put(path, state, writing)

    def _write(
        self, run: str, round_number: int, state: dict[str, Tensor], accepted: int | None, best: int | None
    ) -> Stamp:
        stamp = _save(self._path(run, round_number), state)
        present = self._present(run)
        before = [held for held in present if accepted is not None and held <= accepted]
        wanted = {round_number, *before[-KEPT_BEFORE:], best}
        for held in present:
            if held not in wanted:
                self._path(run, held).unlink(missing_ok=True)
                _RECENT.forget(self._path(run, held))
        return stamp

    def keep(self, run: str) -> None:
        """Mark a run as finished: its last state, with the parts that stay here, does not expire."""
        self._finish()
        own_folder(self._folder / run)
        (self._folder / run / FINISHED).touch(mode=OWN_MODE)

    def save_model(self, run: str, number: int, flat: Tensor) -> None:
        """Store the last model that a run sent, ``(bytes,)`` uint8, made by ``number`` rounds."""
        model = {"flat": flat, "number": torch.tensor(number)}
        path = self._folder / run / MODEL
        if not self._keeps(run, number + 1) and _RECENT.pin(path, model):
            return
        _PENDING.acquire()
        writing = _WRITER.submit(_save, path, model)
        self._writing.append(writing)
        _RECENT.put(path, model, writing)

    def last_model(self, run: str) -> tuple[int, Tensor] | None:
        """What `save_model` stored last; None if it is missing or damaged."""
        path = self._folder / run / MODEL
        found = _RECENT.get(path)
        if found is None:
            self._finish()
            try:
                found = load_file(path)
            except (OSError, SafetensorError):
                return None
        return int(found["number"]), found["flat"]

    def save_scaling(self, model: str, moments: dict[str, Tensor]) -> None:
        """Store the site's own scaling of a model, by the SHA-256 of its tensors; it does not expire."""
        _PENDING.acquire()
        _save(self._scaling(model), moments)

    def load_scaling(self, model: str) -> dict[str, Tensor] | None:
        """What `save_scaling` stored; None if it is missing or damaged."""
        try:
            return load_file(self._scaling(model))
        except (OSError, SafetensorError):
            return None

    def drop(self, run: str) -> None:
        """Delete the states of a run."""
        self._finish()
        _RECENT.unpin(self._folder / run)
        rounds = (self._path(run, number) for number in self._present(run))
        _RECENT.forget(self._folder / run / MODEL, *rounds)
        shutil.rmtree(self._folder / run, ignore_errors=True)

    def _finish(self) -> None:
        """Wait for pending writes; their errors, such as a full disk, surface here."""
        writing, self._writing = self._writing, []
        for each in writing:
            each.result()

    def _present(self, run: str) -> tuple[int, ...]:
        return tuple(sorted(int(path.stem) for path in (self._folder / run).glob("[0-9]*.safetensors")))

    def _scaling(self, model: str) -> Path:
        return self._folder.with_name("scaling") / f"{model}.safetensors"

    def _path(self, run: str, round_number: int) -> Path:
        return self._folder / run / f"{round_number:06d}.safetensors"


def _save(path: Path, tensors: dict[str, Tensor]) -> Stamp:
    """Write a file; counts as no longer pending, however it ends."""
    try:
        own_folder(path.parent)
        with replacing(path, private=True) as partial:
            save_file(tensors, partial)
        return stamp_of(path)
    finally:
        _PENDING.release()
