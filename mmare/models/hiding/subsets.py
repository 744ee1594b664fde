"""Hiding modalities while training, so that a model learns to do without any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["hide_modalities", "keep_subset"]


def hide_modalities(present: Tensor, probability: Tensor, generator: Generator) -> Tensor:
    """Hide modalities of ``present`` ``(B, M)`` independently with ``probability`` ``(M,)``.

    A patient who would lose all keeps one at random.

    Example:
        >>> there = torch.tensor([[True, True, False]])
        >>> hide_modalities(there, torch.tensor([1.0, 0.0, 0.0]), torch.Generator().manual_seed(0))
        tensor([[False,  True, False]])
    """
    draws = torch.rand(present.shape, generator=generator).to(present.device)  # (B, M)
    kept = present & (draws >= probability.to(present.device))
    rank = torch.rand(present.shape, generator=generator).to(present.device).masked_fill(~present, -1.0)
    lucky = torch.zeros_like(present).scatter_(1, rank.argmax(dim=1, keepdim=True), value=True)  # (B, M)
    return torch.where(kept.any(dim=1, keepdim=True), kept, lucky)


def keep_subset(present: Tensor, generator: Generator) -> Tensor:
    """Keep a random subset of each patient's modalities; ``present`` ``(B, M)``, at least one per patient.

    A patient of n modalities keeps 1, 2, … or n of them with probability 1/n each, all subsets of a size
    being equally likely.

    Example:
        >>> there = torch.tensor([[True, False, True]])
        >>> kept = keep_subset(there, torch.Generator().manual_seed(0))
        >>> bool((kept & ~there).any()), bool(kept.any())
        (False, True)
    """
    counts = present.sum(dim=1, keepdim=True)  # (B, 1)
    share = torch.rand(len(present), 1, generator=generator).to(present.device)
    size = (share * counts).floor() + 1  # 1 to n
    order = torch.rand(present.shape, generator=generator).to(present.device).masked_fill(~present, 2.0)
    return present & (order.argsort(dim=1).argsort(dim=1) < size)
