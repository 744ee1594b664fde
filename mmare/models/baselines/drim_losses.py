"""Auxiliary losses of DRIM, as functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["independence_discrimination", "independence_fooling", "same_patient_contrastive"]


def same_patient_contrastive(
    embedding: Tensor, present: Tensor, temperature: float, *, over_missing: bool
) -> Tensor:
    r"""DRIM's shared loss: supervised contrastive loss in which each patient is a class.

    For an anchor i, a present modality,

    .. math:: -\frac{1}{|P_i|} \sum_{p \in P_i} \log
              \frac{\exp(z_i z_p / T)}{\sum_{a \ne i} \exp(z_i z_a / T)}

    where P are the other modalities of the same patient and a runs over all other present modalities of the
    batch (Khosla et al., 2020, equation 2). A patient with one modality is a negative but no anchor. A row
    that was drawn twice counts as two patients. Zero if no patient has two modalities.

    The released code adds 1e-6 under the logarithm to a sum that it has divided by its largest possible term,
    which hides distant negatives. Here the logarithm is exact.

    Args:
        embedding: ``(B, M, D)`` of length 1; absent rows may hold anything.
        present: ``(B, M)`` bool.
        temperature: T.
        over_missing: Divide by B·M, as released (missing anchors and those without a positive count as zero),
            or by the number of anchors, as Khosla et al. do.

    Example:
        >>> alike = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> there = torch.ones(2, 2, dtype=torch.bool)
        >>> round(same_patient_contrastive(alike, there, 1.0, over_missing=True).item(), 4)  # log(e + 2) - 1
        0.5514
    """
    patients, modalities, _ = embedding.shape
    known = torch.where(present.unsqueeze(-1), embedding, embedding.new_zeros(()))
    rows = known.flatten(0, 1)  # (B * M, D)
    there = present.flatten()  # (B * M,)
    patient = torch.arange(patients, device=present.device).repeat_interleave(modalities)  # (B * M,)
    itself = torch.eye(len(rows), dtype=torch.bool, device=present.device)
    other = there.unsqueeze(1) & there & ~itself  # (B * M, B * M)
    positive = other & (patient.unsqueeze(1) == patient)  # (B * M, B * M)
    anchors = positive.any(dim=1).nonzero().squeeze(1)  # (A,)
    other, positive = other[anchors], positive[anchors]  # (A, B * M)
    similarity = rows[anchors] @ rows.T / temperature  # (A, B * M)
    total = similarity.masked_fill(~other, -torch.inf).logsumexp(dim=1)  # (A,), over one row at least
    to_positive = torch.where(positive, similarity, similarity.new_zeros(())).sum(dim=1) / positive.sum(dim=1)
    count = len(rows) if over_missing else max(len(anchors), 1)
    return (total - to_positive).sum() / count


def independence_discrimination(shuffled: Tensor, joint: Tensor) -> Tensor:
    """Discriminator loss on logits ``(N,)``: pairs of different patients have target 1, of one patient 0.

    The sum of both mean cross entropies; its minimum is 2 log 2 minus twice the Jensen-Shannon divergence.

    Example:
        >>> round(independence_discrimination(torch.zeros(2), torch.zeros(2)).item(), 4)  # 2 log 2
        1.3863
    """
    return functional.softplus(-shuffled).mean() + functional.softplus(joint).mean()


def independence_fooling(joint: Tensor) -> Tensor:
    """Encoder loss on logits ``(N,)`` of pairs of one patient, which should look independent (target 1).

    Example:
        >>> round(independence_fooling(torch.zeros(2)).item(), 4)  # log 2
        0.6931
    """
    return functional.softplus(-joint).mean()
