"""Fusion of a variable number of embeddings: pairwise (equation 4.9) and the mean of the ablation."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from mmare.models.merging import merge_all, merge_plan
from mmare.models.patient_gradients import of_patients, recording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

__all__ = ["Merge", "MergeOrder", "PairwiseFusion", "masked_mean", "merge_order"]


class MergeOrder(StrEnum):
    """Order of merging a patient's modalities in training; evaluation uses slot order."""

    FIXED = "fixed"
    BATCH = "batch"
    SAMPLE = "sample"


class Merge(StrEnum):
    """How `PairwiseFusion` merges the next embedding into the fused one."""

    THESIS = "thesis"
    SYMMETRIC = "symmetric"


def masked_mean(embedding: Tensor, present: Tensor) -> Tensor:
    """Average the modalities a patient has; absent rows have no influence.

    Args:
        embedding: ``(B, M, D)``; absent rows may hold anything, NaN included.
        present: ``(B, M)`` bool, at least one ``True`` per patient.

    Returns:
        ``(B, D)``.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [float("nan")]]]), torch.tensor([[True, False]])).item()
        1.0
    """
    mask = present.unsqueeze(-1)  # (B, M, 1)
    kept = torch.where(mask, embedding, embedding.new_zeros(()))  # (B, M, D)
    return kept.sum(dim=1) / mask.sum(dim=1)  # (B, D)


def merge_order(present: Tensor, order: MergeOrder, generator: Generator | None) -> Tensor:
    """Slots of each patient in the order of merging, the missing ones last.

    Args:
        present: ``(B, M)`` bool.
        order: ``fixed`` is slot order; ``batch`` draws one order for the batch, ``sample`` one per patient.
        generator: Not needed by ``fixed``.

    Returns:
        ``(B, M)`` int64: a permutation of the slots per patient.

    Example:
        >>> merge_order(torch.tensor([[False, True, True]]), MergeOrder.FIXED, None).tolist()
        [[1, 2, 0]]
    """
    patients, modalities = present.shape
    if order is MergeOrder.FIXED:
        rank = torch.arange(modalities).expand(patients, modalities)
    elif generator is None:
        raise ValueError("a drawn order needs a generator: pass one")
    elif order is MergeOrder.BATCH:
        rank = torch.randperm(modalities, generator=generator).expand(patients, modalities)
    else:
        rank = torch.rand(patients, modalities, generator=generator).argsort(dim=1)
    rank = rank.to(present.device)
    return (rank + modalities * (~present)).argsort(dim=1)


class PairwiseFusion(nn.Module):
    r"""Merge a patient's embeddings two at a time with a shared MLP.

    .. math:: h \leftarrow \mathrm{LN}(h + \mathrm{MLP}([h, e_{next}]))

    starting from the first embedding; a single modality stays unchanged.

    Here the next embedding enters through the MLP alone, whose output is the larger of the two terms at the
    start: a strong modality that is merged into weak ones is lost. The ``symmetric`` merge (ours) adds both,
    and its MLP starts at zero, so that fusion begins as a normalised sum:

    .. math:: h \leftarrow \mathrm{LN}(h + e_{next} + \mathrm{MLP}([h, e_{next}]))

    The first layer of the MLP acts on ``h`` and ``e`` separately, so the part for every ``e`` is one product
    over all merges of the batch; patients are sorted by number of modalities, so a step computes only the
    rows that still merge. The result equals a loop over patients (``tests/mmare/models/test_fusion.py``).
    """

    def __init__(self, width: int, merge: Merge = Merge.THESIS) -> None:
        super().__init__()
        self.symmetric = merge is Merge.SYMMETRIC
        self.first = nn.Linear(2 * width, width)
        self.second = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if self.symmetric:
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)
        self.width = width

    def forward(self, embedding: Tensor, present: Tensor, slots: Tensor) -> Tensor:
        """Fuse ``(B, M, D)``, absent rows without influence, to ``(B, D)``; slots from `merge_order`."""
        if not recording():
            norm = self.norm
            return merge_all(
                embedding,
                merge_plan(present, slots),
                (self.first.weight, self.first.bias),
                (self.second.weight, self.second.bias),
                (norm.weight, norm.bias, norm.eps),
                symmetric=self.symmetric,
            )
        return self._one_by_one(embedding, present, slots)

    def _one_by_one(self, embedding: Tensor, present: Tensor, slots: Tensor) -> Tensor:
        """The same by layers, of which every use can be recorded."""
        counts = present.sum(dim=1)  # (B,)
        rows = counts.argsort(descending=True, stable=True)  # patients with most modalities first
        ordered = embedding[rows.unsqueeze(1), slots[rows]]  # (B, M, D)
        left = [int((counts > step).sum()) for step in range(embedding.shape[1])]  # rows that merge at a step
        from_fused, from_next = torch.split(self.first.weight, self.width, dim=1)  # (D, D) each
        merging = [count for count in left[1:] if count]
        following = [ordered[:count, step] for step, count in enumerate(merging, start=1)]
        projected: Sequence[Tensor] = ()
        if merging:
            rows_next = torch.cat(following)  # every second partner of the batch
            with of_patients(torch.cat([rows[:count] for count in merging])):
                projected = torch.split(functional.linear(rows_next, from_next, self.first.bias), merging)
        fused = ordered[:, 0]  # (B, D)
        done: list[Tensor] = []
        for count, pair, partner in zip(merging, projected, following, strict=True):
            done.append(fused[count:])
            fused = fused[:count]
            with of_patients(rows[:count]):
                hidden = functional.relu(pair + functional.linear(fused, from_fused))
                merged = fused + self.second(hidden)
                fused = self.norm(merged + partner if self.symmetric else merged)
        result = torch.cat([fused, *reversed(done)])  # (B, D) in the order of rows
        return result[rows.argsort()]
