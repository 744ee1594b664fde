"""Hiding modalities while training, so that a model learns to do without any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["agreement", "hide_modalities", "keep_subset"]


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


def agreement(whole: Tensor, subset: Tensor, temperature: float) -> Tensor:
    """Self-distillation loss between logits ``(B, K)`` from all modalities and from a subset; 0 if equal.

    The Kullback-Leibler divergence of softened class probabilities, times the squared temperature so that its
    gradient keeps its scale (Hinton et al. 2015, section 2), averaged over patients. ``whole`` is the teacher
    and gets no gradient.

    Example:
        >>> logits = torch.tensor([[1.0, -1.0]])
        >>> agreement(logits, logits, temperature=2.0).item()
        0.0
    """
    teacher = functional.log_softmax(whole.detach() / temperature, dim=1)
    student = functional.log_softmax(subset / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
