"""What a site keeps of a run between rounds: optimiser moments, on its own disk."""

from __future__ import annotations

import shutil
import uuid
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["StateStore"]

KEPT_BEFORE: Final = 2  # states at and before the accepted one, so that a resume can step back a round


class StateStore:
    """States per run and round, each file whole or absent.

    Args:
        folder: Of the site's cache.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "runs"

    def held(self, run: str) -> tuple[int, ...]:
        """Rounds of ``run`` whose state is kept, in order."""
        return tuple(sorted(int(path.stem) for path in (self._folder / run).glob("[0-9]*.safetensors")))

    def load(self, run: str, round_number: int) -> dict[str, Tensor] | None:
        """State after a round, or nothing where it is missing or damaged."""
        try:
            return load_file(self._path(run, round_number))
        except (OSError, SafetensorError):
            return None

    def save(self, run: str, round_number: int, state: dict[str, Tensor], accepted: int | None) -> None:
        """Keep the state after a round, and of the others only the last two up to the accepted one.

        Args:
            run: Name of the run.
            round_number: That was trained.
            state: Tensors by name.
            accepted: Round that the training started from; the server counts on it until it says otherwise.
        """
        path = self._path(run, round_number)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        try:
            save_file(state, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        before = [held for held in self.held(run) if accepted is not None and held <= accepted]
        wanted = {round_number, *before[-KEPT_BEFORE:]}
        for held in self.held(run):
            if held not in wanted:
                self._path(run, held).unlink(missing_ok=True)

    def drop(self, run: str) -> None:
        """Forget a run."""
        shutil.rmtree(self._folder / run, ignore_errors=True)

    def _path(self, run: str, round_number: int) -> Path:
        return self._folder / run / f"{round_number:06d}.safetensors"
