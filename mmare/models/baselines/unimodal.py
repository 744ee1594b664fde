"""One modality only: a floor that shows what the others add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmare.models.adapters import WidthAdapters
from mmare.models.base import MultimodalModel
from mmare.models.blocks import Block, samples_with, samples_without
from mmare.models.head import TaskHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from mmare.study.specs import ModalitySpec

__all__ = ["Unimodal"]


@dataclass(frozen=True)
class UnimodalOptions:
    """Options: the modality's name (by default the last), width of adapter and head, dropout in the head."""

    modality: str | None = None
    width: int = 512
    dropout: float = 0.3


class Unimodal(MultimodalModel):
    """Adapter and head on one modality; patients without it get learned prior logits."""

    Options = UnimodalOptions
    SEPARATE = True

    def __init__(
        self, modalities: Sequence[ModalitySpec], classes: int, options: UnimodalOptions = UnimodalOptions()
    ) -> None:
        super().__init__(modalities, classes, options)
        modality = options.modality
        names = self.modality_names
        if modality is not None and modality not in names:
            raise ValueError(f"modality {modality!r} is not one of {', '.join(names)}")
        self.slot = len(names) - 1 if modality is None else names.index(modality)
        self.adapters = WidthAdapters([self.scaling.widths[self.slot]], options.width)
        self.head = TaskHead(options.width, classes, options.dropout)
        self.prior = nn.Parameter(torch.zeros(classes))

    def logits(self, scaled: Tensor, present: Tensor, generator: Generator | None = None) -> Tensor:
        """Classify by the modality, or by the prior where it is missing."""
        rows = torch.split(scaled, list(self.scaling.widths), dim=1)[self.slot]
        found: Tensor = self.head(self.adapters(rows)[:, 0], generator)  # (B, K)
        return torch.where(
            present[:, self.slot : self.slot + 1], found, self.prior.expand(found.shape[0], -1)
        )

    def blocks(self) -> tuple[Block, ...]:
        """The prior by absence of the modality, the rest by its presence."""
        own = self.task_blocks()
        taken = {"prior", *(name for block in own for name in block.parameters)}
        rest = tuple(name for name, _ in self.named_parameters() if name not in taken)
        name = self.modality_names[self.slot]
        return (
            Block("prior", ("prior",), samples_without(self.slot)),
            Block(f"modality.{name}", rest, samples_with(self.slot)),
            *own,
        )
