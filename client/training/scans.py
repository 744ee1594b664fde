"""Several scans of a patient in a round: weighed by the model, or one drawn per step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmare.models.scans import drawn_weights, weighted_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from mmare.models.base import MultimodalModel
    from mmare.models.scans import Bag

__all__ = ["fuse_inputs", "weighed"]


def weighed(
    model: MultimodalModel, embedding: tuple[Tensor, ...], bags: Mapping[int, Bag]
) -> tuple[Tensor, ...]:
    """Embeddings ``(N, W_j)`` at evaluation: where the model weighs scans, theirs in place of the mean."""
    found = list(embedding)
    for slot, bag in bags.items():
        if str(slot) in model.weighing_scans:
            rows = torch.unique(bag.rows)
            with torch.no_grad():
                fused, _ = model.fuse_scans(slot, bag, rows)
            found[slot] = found[slot].clone()
            found[slot][rows] = fused.to(found[slot])
    return tuple(found)


def fuse_inputs(
    model: MultimodalModel, inputs: Tensor, bags: Mapping[int, Bag], drawn: Tensor, generator: Generator
) -> Tensor:
    """Scaled inputs ``(B, W)`` of the patients ``drawn`` ``(B,)`` in a training step.

    Of a patient with several scans of a modality the model weighs them, with a gradient, or one is drawn.
    """
    patients, place = torch.unique(drawn, return_inverse=True)
    parts = list(torch.split(inputs, list(model.scaling.widths), dim=1))
    for slot, bag in bags.items():
        if str(slot) in model.weighing_scans:
            fused, has = model.fuse_scans(slot, bag, patients)
        else:
            vectors, group, has = bag.of(patients)
            fused = weighted_mean(
                vectors, drawn_weights(group, len(patients), generator), group, len(patients)
            )
        fused, has = fused.to(inputs.device), has.to(inputs.device)
        scaled = model.scaling.of_slot(slot, fused, has[:, None])
        where = place.to(inputs.device)
        parts[slot] = torch.where(has[where][:, None], scaled[where], parts[slot])
    return torch.cat(parts, dim=1)
