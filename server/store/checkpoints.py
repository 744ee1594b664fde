"""A run folder's checkpoints: the last two rounds and the best models that they refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mmare.study.tables import TableError, from_table
from server.store.checkpoint import DamagedCheckpointError, read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["CheckpointStore", "Progress"]

KEPT: Final = 2


@dataclass(frozen=True)
class Progress:
    """What a run needs to continue after a round."""

    round: int = 0  # last one aggregated
    selection: Mapping[str, Any] = field(default_factory=dict)  # over the rounds validated so far
    state_rounds: Mapping[str, int] = field(default_factory=dict)  # last accepted update per site
    seconds: Mapping[str, float] = field(default_factory=dict)  # so far, per phase
    bytes_down: int = 0  # of the last round, over all sites
    bytes_up: int = 0
    trained: bool = False  # all rounds are done; the selection is final
    best_states: Mapping[str, int] = field(default_factory=dict)  # state_rounds after the best round
    own_losses: Mapping[str, float] = field(default_factory=dict)  # per site, of its own last model
    plateau: Mapping[str, Any] = field(default_factory=dict)  # mmare.study.schedule


class CheckpointStore:
    """The ``checkpoints`` folder of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._best_of: dict[str, int] = {}  # best round that each checkpoint file refers to
        self._held: dict[int, Mapping[str, Tensor]] = {}  # the best round's, until a checkpoint refers to it

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> tuple[str, int]:
        """Write a round's checkpoint and delete files that the last two do not need.

        Returns:
            File name and size in bytes.
        """
        for left in self._folder.glob(".*"):  # of an attempt that was killed as it wrote
            left.unlink(missing_ok=True)
        for number, best in self._held.items():
            write_checkpoint(self._best(number), best, {})
        self._held = {}
        path = self._round(progress.round)
        size = write_checkpoint(path, tensors, asdict(progress))
        self._best_of[path.name] = progress.selection.get("round", 0)
        kept = [other for other in sorted(self._folder.glob("round-*.safetensors")) if other <= path][-KEPT:]
        needed = {*kept, *(self._best(self._best_of.get(other.name, 0)) for other in kept)}
        for other in self._folder.glob("*-*.safetensors"):
            if other not in needed:
                other.unlink(missing_ok=True)
        return path.name, size

    def hold_best(self, round_number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the model of the best round so far, which must not change, with the next checkpoint."""
        self._held = {round_number: tensors}

    def load_best(self, round_number: int) -> dict[str, Tensor]:
        """The model of the best round.

        Raises:
            DamagedCheckpointError: If it is missing or damaged.
        """
        return read_checkpoint(self._best(round_number))[0]

    def usable(self) -> list[tuple[dict[str, Tensor], Progress]]:
        """Intact checkpoints whose best model is intact too, newest first."""
        found = []
        for path in sorted(self._folder.glob("round-*.safetensors"), reverse=True):
            try:
                tensors, state = read_checkpoint(path)
                progress = from_table(Progress, state, path.name)
                if progress.selection.get("round"):
                    self.load_best(progress.selection["round"])
            except (DamagedCheckpointError, TableError):
                continue
            self._best_of[path.name] = progress.selection.get("round", 0)
            found.append((tensors, progress))
        return found

    def damaged(self) -> list[str]:
        """Names of round checkpoints that cannot be used."""
        intact = {self._round(progress.round).name for _, progress in self.usable()}
        return sorted({path.name for path in self._folder.glob("round-*.safetensors")} - intact)

    def _round(self, number: int) -> Path:
        return self._folder / f"round-{number:06d}.safetensors"

    def _best(self, number: int) -> Path:
        return self._folder / f"best-{number:06d}.safetensors"
