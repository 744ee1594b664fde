"""What a round loop is asked for, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmare.study.choices import Mode

if TYPE_CHECKING:
    from torch import Tensor

    from server.store.checkpoints import Progress

__all__ = ["Outcome", "Plan"]


@dataclass(frozen=True)
class Outcome:
    """The result of a finished loop."""

    tensors: dict[str, Tensor]  # of the selected model
    progress: Progress
    best_round: int
    metrics: dict[str, Any]  # validation and test, as in result.json
    note: str = ""  # what is wrong with the selection


@dataclass(frozen=True)
class Plan:
    """Which sites train and validate; every site tests.

    Federated: all sites train. Otherwise only ``trainer`` does, and validation runs on the other sites' rows
    (centralised) or on its own (local).
    """

    mode: Mode = Mode.FEDERATED
    trainer: str = ""  # site id; unused by federated
    expected_nodes: int = 0  # to wait for; 0 if unknown
    subsets: bool = False  # also test every subset of modalities
    calibration: bool = False  # also ask for losses on the calibration grid
    shapley: bool = False  # also ask how far each modality moves predictions
