"""Metric states under differential privacy: histograms of scores with noise, and what follows from them.

A patient is in one cell, of true class, predicted class and score; so one who comes or goes changes one count
by one. The noisy counts are made into whole patients with the score in the middle of their bin, of whom a
state is taken as of real ones. Its precision is that of ten bins: an AUC counts pairs within a bin as half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from client.training.evaluate import logits_of
from mmare.metrics.coarse import coarsened
from mmare.metrics.state import BINARY, MetricState
from mmare.wire.messages import Evaluation

if TYPE_CHECKING:
    from torch import Tensor

    from client.data.dataset import SiteData
    from client.privacy.noise import Noise
    from mmare.models.base import MultimodalModel
    from mmare.wire.messages import Split

__all__ = ["evaluate_privately", "noisy_rows"]

BINS: Final = 10  # of a score, even: half of them on each side of one half; more would each be noisier


def evaluate_privately(
    model: MultimodalModel, data: SiteData, split: Split, min_count: int, deviation: float, noise: Noise
) -> Evaluation:
    """Evaluate a model on one split, without patterns; ``deviation`` is that of the noise on each count.

    Raises:
        SiteError: If the model's output is not finite.
    """
    rows = data.rows[split]
    logits = logits_of(model, data.embedding, rows, data.present[rows])
    state = MetricState.of(*noisy_rows(logits, data.label[rows], deviation, noise))
    return Evaluation(split, coarsened(state.withhold(min_count), min_count).to_dict())


def noisy_rows(logits: Tensor, label: Tensor, deviation: float, noise: Noise) -> tuple[Tensor, Tensor]:
    """Logits ``(R, K)`` and labels ``(R,)`` of made-up rows, whose histogram is the real one with noise.

    Args:
        logits: ``(N, K)``.
        label: ``(N,)``.
        deviation: Of the noise on each cell.
        noise: Its source.
    """
    classes = logits.shape[1]
    probability = logits.double().softmax(dim=1)  # (N, K)
    binary = classes == BINARY
    places = 1 if binary else classes  # of a class: which was predicted, beside the score
    least = 0.0 if binary else 1 / classes  # of a score: that of class 1, or of the predicted class
    score, predicted = (probability[:, 1], torch.zeros_like(label)) if binary else probability.max(dim=1)
    place = ((score - least) / (1 - least) * BINS).long().clamp(0, BINS - 1)  # (N,)
    cell = (label * places + predicted) * BINS + place
    counts = torch.bincount(cell, minlength=classes * places * BINS).view(classes, -1).double()
    drawn = noise.normal(counts.numel()).view_as(counts).double() * deviation
    found = torch.stack([_whole(each) for each in counts + drawn]).view(classes, places, BINS)
    true, chosen, bins = found.nonzero(as_tuple=True)
    middle = least + (bins + 0.5) / BINS * (1 - least)  # (C,)
    if binary:
        made = torch.stack([1 - middle, middle], dim=1)
    else:
        made = ((1 - middle) / (classes - 1)).unsqueeze(1).repeat(1, classes)
        made[torch.arange(len(made)), chosen] = middle
    rows = found[true, chosen, bins]
    return made.log().repeat_interleave(rows, dim=0), true.repeat_interleave(rows)


def _whole(noisy: Tensor) -> Tensor:
    """The nearest counts ``(C,)`` that are not negative and have the sum of the noisy ones, rounded.

    Cutting off what is negative would add patients whose scores are noise.
    """
    total = noisy.sum().round().clamp_min(0)
    ordered = noisy.sort(descending=True).values
    excess = (ordered.cumsum(dim=0) - total) / torch.arange(1, len(noisy) + 1)
    kept = int((ordered > excess).sum())
    fitted = (noisy - (excess[kept - 1] if kept else noisy.max())).clamp_min(0)
    return fitted.cumsum(dim=0).round().diff(prepend=torch.zeros(1)).long()
