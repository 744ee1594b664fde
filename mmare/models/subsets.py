"""Training on subsets: hide some of a patient's modalities, so that a model learns to do without any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["agreement", "hide_modalities", "keep_subset"]


def hide_modalities(present: Tensor, probability: Tensor, generator: Generator) -> Tensor:
    """Hide each modality that a patient has on its own; one is always left.

    A patient who would lose all keeps one, each with equal chance.

    Args:
        present: ``(B, M)`` bool, at least one per patient.
        probability: ``(M,)`` that a modality is hidden.
        generator: Source of the draws.

    Returns:
        ``(B, M)`` bool, true only where ``present`` is.

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
    """Keep a subset of a patient's modalities whose size is drawn evenly from one to all.

    No modality is named and no probability is tuned: a patient of n modalities keeps 1, 2, … or n of them,
    each with chance 1/n, and every subset of a size alike.

    Args:
        present: ``(B, M)`` bool, at least one per patient.
        generator: Source of the draws.

    Returns:
        ``(B, M)`` bool, true only where ``present`` is.

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
    """How far predictions from a subset are from those of the whole patient, as in self-distillation.

    The Kullback-Leibler divergence of softened class probabilities, times the squared temperature so that its
    gradient keeps its size (Hinton et al. 2015, section 2). The whole is the teacher: it gets no gradient.

    Args:
        whole: ``(B, K)`` logits from all modalities.
        subset: ``(B, K)`` logits from some.
        temperature: Divides the logits.

    Returns:
        Mean over patients, 0 where both agree.

    Example:
        >>> logits = torch.tensor([[1.0, -1.0]])
        >>> agreement(logits, logits, temperature=2.0).item()
        0.0
    """
    teacher = functional.log_softmax(whole.detach() / temperature, dim=1)
    student = functional.log_softmax(subset / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
