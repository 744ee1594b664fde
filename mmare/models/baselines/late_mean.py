"""Late fusion: one classifier per modality, logits averaged over the modalities a patient has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmare.models.adapters import WidthAdapters
from mmare.models.base import MultimodalModel
from mmare.models.blocks import Block, samples_with
from mmare.models.fusion import masked_mean
from mmare.models.head import TaskHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from mmare.study.specs import ModalitySpec

__all__ = ["LateMean"]


@dataclass(frozen=True)
class LateMeanOptions:
    """Options: width of adapters and heads, dropout in the heads."""

    width: int = 512
    dropout: float = 0.3


class LateMean(MultimodalModel):
    """Mean of per-modality logits: a floor that a fusion model should beat."""

    Options = LateMeanOptions
    SEPARATE = True

    def __init__(
        self, modalities: Sequence[ModalitySpec], classes: int, options: LateMeanOptions = LateMeanOptions()
    ) -> None:
        super().__init__(modalities, classes, options)
        self.adapters = WidthAdapters(self.scaling.widths, options.width)
        self.heads = nn.ModuleList(TaskHead(options.width, classes, options.dropout) for _ in modalities)

    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Average the logits of the present modalities."""
        adapted = self.adapters(scaled)  # (B, M, D)
        each = torch.stack(
            [head(adapted[:, slot], generator) for slot, head in enumerate(self.heads)], dim=1
        )  # (B, M, K)
        return masked_mean(each, present)

    def blocks(self) -> tuple[Block, ...]:
        """One block per modality: its adapter and its head."""
        found = (
            Block(
                f"modality.{name}",
                self.parameters_under(f"adapters.adapters.{slot}", f"heads.{slot}"),
                samples_with(slot),
            )
            for slot, name in enumerate(self.modality_names)
        )
        return (*found, *self.task_blocks())
