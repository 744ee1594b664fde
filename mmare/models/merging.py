"""The pairwise merges of a batch as one operation with its own gradient.

It equals the layers applied one by one, bit for bit (`tests/mmare/models/test_merging.py`): the same products
in the same order. What it saves are some hundred small operations of automatic differentiation, which take
longer than the arithmetic of a narrow model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MergePlan", "merge_all", "merge_plan"]


@dataclass(frozen=True)
class MergePlan:
    """Which embeddings of a batch are merged when."""

    places: Tensor  # (B, M) int64: rows of the (B M, D) embeddings, patients with most modalities first
    back: Tensor  # (B,) int64: from that order of patients to the batch's
    patients: Tensor  # (B,) int64: from the batch's order to that
    merging: tuple[int, ...]  # patients that merge in each step


def merge_plan(present: Tensor, slots: Tensor) -> MergePlan:
    """The plan of presence ``(B, M)`` and slots ``(B, M)`` in the order of merging, absent ones last."""
    patients, modalities = present.shape
    counts = present.sum(dim=1)  # (B,)
    rows = counts.argsort(descending=True, stable=True)
    sizes = counts.tolist()
    left = [sum(size > step for size in sizes) for step in range(1, modalities)]
    places = slots[rows] + modalities * rows.unsqueeze(1)
    back = torch.empty_like(rows)
    back[rows] = torch.arange(patients, device=rows.device)
    return MergePlan(places, back, rows, tuple(count for count in left if count))


def merge_all(
    embedding: Tensor,
    plan: MergePlan,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor, float],
    *,
    symmetric: bool,
) -> Tensor:
    """Fuse ``(B, M, D)`` to ``(B, D)`` as `PairwiseFusion` says.

    Args:
        embedding: Absent rows have no influence.
        plan: Of the batch.
        first: Weight ``(D, 2 D)`` and bias of the first layer.
        second: Those of the second.
        norm: Weight, bias and epsilon of the LayerNorm.
        symmetric: Whether the next embedding is added, too.
    """
    fused: Tensor = _Merges.apply(embedding, plan, *first, *second, *norm, symmetric)
    return fused


class _Merges(torch.autograd.Function):
    """Forward and backward of `merge_all`; shapes as there."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - PyTorch passes no names
        ctx: Any,  # noqa: ANN401 - torch's
        embedding: Tensor,
        plan: MergePlan,
        first: Tensor,
        first_bias: Tensor,
        second: Tensor,
        second_bias: Tensor,
        norm: Tensor,
        norm_bias: Tensor,
        epsilon: float,
        symmetric: bool,
    ) -> Tensor:
        width, merging = embedding.shape[2], plan.merging
        flat = embedding.reshape(-1, width)  # (B M, D)
        following = [plan.places[:count, step] for step, count in enumerate(merging, start=1)]
        nexts = flat.index_select(0, torch.cat([plan.places[:, 0], *following]))
        begun, partners = nexts[: len(embedding)], nexts[len(embedding) :]
        projected = torch.addmm(first_bias, partners, first[:, width:].t())  # of every merge of the batch
        fused, start = begun, 0
        done: list[Tensor] = []
        steps: list[tuple[Tensor, ...]] = []
        for count in merging:
            done.append(fused[count:])
            fused = fused[:count]
            end = start + count
            hidden = torch.add(projected[start:end], torch.mm(fused, first[:, :width].t())).relu_()
            merged = torch.addmm(second_bias, hidden, second.t()).add_(fused)
            if symmetric:
                merged.add_(partners[start:end])
            normed, mean, deviation = torch.native_layer_norm(merged, (width,), norm, norm_bias, epsilon)
            steps.append((fused, hidden, merged, mean, deviation))
            fused, start = normed, end
        ctx.save_for_backward(
            partners, first, second, norm, norm_bias, *(each for step in steps for each in step)
        )
        ctx.plan, ctx.symmetric, ctx.shape = plan, symmetric, embedding.shape
        return torch.cat([fused, *reversed(done)]).index_select(0, plan.back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        partners, first, second, norm, norm_bias, *kept = ctx.saved_tensors
        plan, merging, width = ctx.plan, ctx.plan.merging, ctx.shape[2]
        steps = [kept[start : start + 5] for start in range(0, len(kept), 5)]
        ordered = gradient.index_select(0, plan.patients)  # (B, D)
        to_partners = torch.empty_like(partners)
        to_hidden = torch.empty_like(partners)
        at = ordered[: merging[-1]] if merging else ordered
        sums: list[Tensor] = []
        end = len(partners)
        for number in reversed(range(len(merging))):
            count = merging[number]
            start = end - count
            fused, hidden, merged, mean, deviation = steps[number]
            at, *of_norm = torch.ops.aten.native_layer_norm_backward(
                at, merged, (width,), mean, deviation, norm, norm_bias, (True, True, True)
            )
            if ctx.symmetric:
                to_partners[start:end] = at
            inner = torch.ops.aten.threshold_backward(torch.mm(at, second), hidden, 0)
            to_hidden[start:end] = inner
            found = [
                torch.mm(fused.t(), inner),
                torch.mm(at.t(), hidden),
                at.sum(dim=0),
                *of_norm,
            ]
            sums = [total.add_(each) for total, each in zip(sums, found, strict=True)] if sums else found
            at = at + torch.mm(inner, first[:, :width])
            before = merging[number - 1] if number else len(ordered)
            at = torch.cat([at, ordered[count:before]])
            end = start
        whole = at.new_zeros(ctx.shape).view(-1, width)
        whole[plan.places[:, 0]] = at
        if not merging:
            return whole.view(ctx.shape), None, *[None] * 8
        if ctx.symmetric:
            to_partners.add_(torch.mm(to_hidden, first[:, width:]))
        else:
            torch.mm(to_hidden, first[:, width:], out=to_partners)
        following = [plan.places[:count, step] for step, count in enumerate(merging, start=1)]
        whole[torch.cat(following)] = to_partners
        to_first = torch.cat([sums[0].t(), torch.mm(partners.t(), to_hidden).t()], dim=1)
        return (
            whole.view(ctx.shape),
            None,
            to_first,
            to_hidden.sum(dim=0),
            sums[1],
            sums[2],
            sums[3],
            sums[4],
            None,
            None,
        )
