"""Logistic regression, or a Cox model, with indicators of absence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmare.models.base import MultimodalModel
from mmare.models.linear import LinearTerm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from mmare.models.blocks import Block
    from mmare.study.specs import ModalitySpec

__all__ = ["Linear"]


@dataclass(frozen=True)
class LinearOptions:
    """Options: largest size of a z-score, 0: any."""

    clip: float = 5.0


class Linear(MultimodalModel):
    """The linear term of MMARE alone: a floor, and with ``hazard = "cox"`` Cox's model (1972)."""

    Options = LinearOptions
    SEPARATE = True

    def __init__(
        self, modalities: Sequence[ModalitySpec], classes: int, options: LinearOptions = LinearOptions()
    ) -> None:
        super().__init__(modalities, classes, options)
        self.head = LinearTerm(self.scaling.widths, classes)

    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """Of the inputs and the missing vector."""
        logits: Tensor = self.head(*self.linear_inputs(scaled, present))
        return logits

    def of_nothing(self, present: Tensor) -> Tensor:
        """What absence says."""
        return self.head.of_absence(present)

    def blocks(self) -> tuple[Block, ...]:
        """As of `LinearTerm.blocks`."""
        return (*self.head.blocks(self.modality_names, "head"), *self.task_blocks())
