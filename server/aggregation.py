"""Aggregation as pure functions: weighted means that keep dtypes, in an order that no network decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["Contribution", "weighted_mean"]


@dataclass(frozen=True)
class Contribution:
    """One site's tensors, read when they are needed.

    Args:
        site: Id.
        samples: Draws of training samples.
        exposures: Draws per block.
        load: Reads the tensors; called once per aggregation, so that one site's are in memory at a time.
    """

    site: str
    samples: int
    exposures: Mapping[str, int]
    load: Callable[[], Mapping[str, Tensor]]


def weighted_mean(contributions: Sequence[Contribution], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Average tensors over sites.

    Summed in float64 in the order of site ids, whichever replied first; a site of weight zero is not read.

    Args:
        contributions: Of different sites, with the same names, shapes and dtypes.
        weights: Per site id, not negative.

    Returns:
        The means, each of its tensor's dtype, whole numbers rounded.

    Raises:
        ValueError: If no weight is positive.

    Example:
        >>> one = Contribution("b", 1, {}, lambda: {"w": torch.tensor([1.0])})
        >>> two = Contribution("a", 3, {}, lambda: {"w": torch.tensor([5.0])})
        >>> weighted_mean([one, two], {"a": 3, "b": 1})
        {'w': tensor([4.])}
    """
    taken = sorted((each for each in contributions if weights[each.site] > 0), key=lambda each: each.site)
    total = sum(weights[each.site] for each in taken)
    if total <= 0:
        raise ValueError("no contribution has a positive weight")
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for each in taken:
        share = weights[each.site] / total
        for name, value in each.load().items():
            if name in sums:
                sums[name].add_(value, alpha=share)
            else:
                sums[name], dtypes[name] = value.to(torch.float64, copy=True).mul_(share), value.dtype
    return {name: _cast(value, dtypes[name]) for name, value in sums.items()}


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if dtype.is_floating_point else value.round().to(dtype)
