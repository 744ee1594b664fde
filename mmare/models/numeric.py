"""Piecewise-linear encoding of scaled numbers (Gorishniy et al. 2022, equation 1), for narrow tables."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import torch

from mmare.study.choices import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from mmare.study.specs import ModalitySpec

__all__ = ["BINS", "Numeric", "is_numeric", "piecewise_linear"]

# The octiles of a standard normal distribution, in deviations; ends beyond which all values are alike.
_EDGES: Final = (-3.0, -1.1503, -0.6745, -0.3186, 0.0, 0.3186, 0.6745, 1.1503, 3.0)
BINS: Final = len(_EDGES) - 1
WIDEST: Final = 128  # features; wider vectors are embeddings, whose features were made to be used linearly


class Numeric(StrEnum):
    """How the numbers of a table enter the model."""

    LINEAR = "linear"
    PIECEWISE = "piecewise"


def is_numeric(modality: ModalitySpec) -> bool:
    """Whether a modality is such a table: at most 128 z-scored features, given and not encoded from scans."""
    return modality.kind is Kind.FEATURES and modality.scaling.standardises and modality.width <= WIDEST


def piecewise_linear(scaled: Tensor) -> Tensor:
    """How far each z-score ``(B, W)`` has come through each of 8 bins, ``(B, 8 W)``.

    A linear layer on top is a function with a bend at every edge. Here the bins are the same for all columns,
    the octiles of normal scores: quantiles of each column would need histograms of every site. And each
    part is measured from the mean, so that a blank cell, which stands there, is zero in all of them. Of a 0/1
    column, which takes two values, every such function is a linear one.

    Example:
        >>> piecewise_linear(torch.tensor([[0.0], [0.6745], [-9.0]])).abs().sum(dim=1).tolist()
        [0.0, 2.0, 4.0]
    """
    edges = scaled.new_tensor(_EDGES)
    low, high = edges[:-1], edges[1:]  # (4,)
    moved = torch.minimum(torch.maximum(scaled.unsqueeze(-1), low), high)  # (B, W, 4)
    start = torch.minimum(torch.maximum(torch.zeros_like(low), low), high)
    return ((moved - start) / (high - low)).flatten(start_dim=1)
