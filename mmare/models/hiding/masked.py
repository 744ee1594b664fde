"""A model in a form that other runtimes take: no step depends on who else is in the batch."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from mmare.models.fusion import PairwiseFusion

if TYPE_CHECKING:
    from torch import Tensor

    from mmare.metrics.decisions import Calibration
    from mmare.models.base import MultimodalModel

__all__ = ["MaskedFusion", "MaskedModel"]


class MaskedFusion(nn.Module):
    """`PairwiseFusion` in slot order as a loop over slots, in which the absent ones change nothing."""

    def __init__(self, fusion: PairwiseFusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, embedding: Tensor, present: Tensor, _slots: Tensor) -> Tensor:
        """Fuse ``(B, M, D)`` to ``(B, D)``."""
        fusion = self.fusion
        fused = torch.zeros_like(embedding[:, 0])  # (B, D)
        begun = torch.zeros_like(present[:, :1])  # (B, 1)
        for slot in range(embedding.shape[1]):
            following, there = embedding[:, slot], present[:, slot : slot + 1]
            both = torch.cat([fused, following], dim=1)  # (B, 2 D)
            merged = fused + fusion.second(functional.relu(fusion.first(both)))
            merged = fusion.norm(merged + following if fusion.symmetric else merged)
            fused = torch.where(there, torch.where(begun, merged, following), fused)
            begun = begun | there
        return fused


class MaskedModel(nn.Module):
    """Probabilities and logits of embeddings and presence, scaling and calibration included.

    The model is copied; parts that have no such form stay as they are.
    """

    def __init__(self, model: MultimodalModel, calibration: Calibration | None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        if isinstance(fusion := getattr(self.model, "fusion", None), PairwiseFusion):
            self.model.fusion = MaskedFusion(fusion)
        bias = calibration.bias if calibration else [0.0] * model.classes
        self.temperature = calibration.temperature if calibration else 1.0
        self.bias: Tensor
        self.register_buffer("bias", torch.tensor(bias))

    def forward(self, present: Tensor, *embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Both ``(B, K)``, of presence ``(B, M)`` and one ``(B, W_j)`` per modality; absent rows are free."""
        # Not by its forward: a `Batch` checks presence, which depends on the data.
        logits = self.model.of_scaled(self.model.scaling(embedding, present), present)
        return (logits / self.temperature + self.bias).softmax(dim=1), logits
