"""Exact Shapley values of modalities: by how much each one that a patient has moves the prediction.

The players are the patient's modalities, the value of a coalition is what the model says of the patient with
only these visible, and that of nobody is the training prior. All subsets are evaluated in the model's own
absent state, so nothing is imputed or sampled. The values explain the model, not the disease.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from typing import TYPE_CHECKING, Final

import torch

from mmare.models.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MOST_MODALITIES", "explain_modalities", "shapley_values"]

MOST_MODALITIES: Final = 10  # 1,024 subsets of each patient
_CHUNK: Final = 2048  # patients with a subset each, at a time: bounds memory


def explain_modalities(
    model: Callable[[Batch], Tensor],
    batch: Batch,
    whole: Tensor,
    prior: Tensor,
    value: Callable[[Tensor], Tensor],
) -> Tensor:
    """Shapley values of every patient's modalities, on the scale of ``value``.

    Args:
        model: In evaluation mode; logits ``(N, K)`` of a batch.
        batch: B patients, M modalities.
        whole: ``(B, K)``, what was predicted of the patients, on the scale of ``value``.
        prior: ``(K,)``, the prediction for a patient of whom nothing is known, on the same scale.
        value: Logits ``(N, K)`` to values ``(N, K)``, such as calibrated probabilities.

    Returns:
        ``(B, M, K)`` float64; they sum over M to ``whole - prior`` and are 0 for absent modalities.

    Raises:
        ValueError: If there are more than `MOST_MODALITIES`.
    """
    patients, modalities = batch.present.shape
    if modalities > MOST_MODALITIES:
        raise ValueError(f"{modalities} modalities have too many subsets, expected {MOST_MODALITIES} at most")
    bits = 2 ** torch.arange(modalities)  # (M,)
    own = (batch.present * bits).sum(dim=1)  # (B,), the subset that a patient has
    subsets = torch.arange(2**modalities)  # (S,)
    values = whole.new_empty(patients, len(subsets), whole.shape[1], dtype=torch.float64)  # (B, S, K)
    values[:, 0] = prior.to(values)
    values[torch.arange(patients), own] = whole.to(values)
    proper = (subsets & own[:, None] == subsets) & (subsets != own[:, None]) & (subsets > 0)  # (B, S)
    for pairs in torch.split(proper.nonzero(), _CHUNK):
        row, subset = pairs.unbind(dim=1)  # (N,) each
        visible = (subset[:, None] & bits) > 0  # (N, M)
        hidden = Batch(tuple(part[row] for part in batch.embedding), visible)
        with torch.inference_mode():
            values[row, subset] = value(model(hidden)).to(values)
    # A modality that the patient lacks adds nothing to any subset: with it, all patients play one game.
    return shapley_values(values.gather(1, (subsets & own[:, None])[..., None].expand_as(values)))


def shapley_values(values: Tensor) -> Tensor:
    """Shapley values of games of M players.

    Args:
        values: ``(B, 2**M, K)``, the value of each coalition: bit m of its index says whether player m is in.

    Returns:
        ``(B, M, K)``; they sum over M to ``values[:, -1] - values[:, 0]``.

    Example:
        >>> shapley_values(torch.tensor([[[0.0], [1.0], [2.0], [4.0]]])).squeeze()
        tensor([1.5000, 2.5000])
    """
    players = values.shape[1].bit_length() - 1
    coalitions = torch.arange(values.shape[1])
    shares = []
    for player in range(players):
        without = coalitions[coalitions & 2**player == 0]  # (2**(M - 1),)
        sizes = [number.bit_count() for number in without.tolist()]
        weights = [factorial(size) * factorial(players - size - 1) / factorial(players) for size in sizes]
        gains = values[:, without + 2**player] - values[:, without]  # (B, 2**(M - 1), K)
        shares.append(torch.einsum("s,bsk->bk", values.new_tensor(weights), gains))
    return torch.stack(shares, dim=1)
