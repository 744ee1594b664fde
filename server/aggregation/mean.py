"""Weighted means per block, independent of the order in which sites reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mmare.study.strategy_options import FedAvgOptions, Weighting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["BlockSum", "BlockWeights", "Contribution", "Sums", "mean_of_sums", "to_dtype", "weighted_mean"]


@dataclass(frozen=True)
class Contribution:
    """One site's update, its tensors loaded on demand.

    ``load`` is called at most once per aggregation. Means hold one site's tensors at a time; strategies that
    compare sites hold all of them.

    Args:
        gap: Validation loss of the average minus that of the site's own model, in nats; ``None`` if not
            measured.
    """

    site: str
    samples: int  # draws of training samples
    exposures: Mapping[str, int]  # draws per block
    blocks: tuple[str, ...]  # whose tensors were sent
    load: Callable[[], Mapping[str, Tensor]]
    gap: float | None = None


@dataclass(frozen=True)
class BlockWeights:
    """Non-negative weights in the mean of a block."""

    sites: Mapping[str, float]
    stay: float = 0.0  # of the block's current value

    @property
    def moves(self) -> bool:
        """Whether any site has a positive weight."""
        return any(weight > 0 for weight in self.sites.values())


@dataclass(frozen=True)
class BlockSum:
    """A block's secure sum over sites."""

    weight: float  # of the sites that exercised it
    exposure: float
    changes: Mapping[str, Tensor]  # weighted, by tensor name, float64


@dataclass(frozen=True)
class Sums:
    """A round's secure sums over sites."""

    samples: float
    blocks: Mapping[str, BlockSum]


def mean_of_sums(
    current: Mapping[str, Tensor], sums: Sums, options: FedAvgOptions
) -> tuple[dict[str, Tensor], dict[str, BlockWeights]]:
    """The mean that `weighted_mean` makes of single updates, and its weights as those of one site."""
    changed = dict(current)
    weights = {}
    for block, part in sums.blocks.items():
        stay = sums.samples - part.weight
        if options.weighting is Weighting.EXPOSURE:
            stay = part.weight * options.damping / part.exposure if part.exposure else 0.0
        weights[block] = BlockWeights({"": part.weight}, stay)
        for name, change in part.changes.items() if part.weight > 0 else ():
            value = current[name]
            moved = value.double() + change / (part.weight + stay)
            changed[name] = to_dtype(moved, value.dtype)
    return changed, weights


def weighted_mean(
    current: Mapping[str, Tensor],
    parts: Mapping[str, Sequence[str]],
    contributions: Sequence[Contribution],
    weights: Mapping[str, BlockWeights],
) -> dict[str, Tensor]:
    """Average the tensors of blocks over the sites that sent them.

    Summed in float64 in the order of site ids; sites of weight zero are not loaded.

    Args:
        current: Tensors that the sites started from.
        parts: Names of the tensors of each block.
        weights: Per block, normalised here.

    Returns:
        As ``current``, in its dtypes, integers rounded; blocks to which no site contributes are unchanged.

    Example:
        >>> one = Contribution("b", 1, {}, ("all",), lambda: {"w": torch.tensor([1.0])})
        >>> two = Contribution("a", 3, {}, ("all",), lambda: {"w": torch.tensor([5.0])})
        >>> weights = {"all": BlockWeights({"a": 3, "b": 1})}
        >>> weighted_mean({"w": torch.zeros(1)}, {"all": ["w"]}, [one, two], weights)
        {'w': tensor([4.])}
    """
    totals = {block: _total(each) for block, each in weights.items() if each.moves}
    sums: dict[str, Tensor] = {}
    for each in sorted(contributions, key=lambda each: each.site):
        shares = {
            block: weights[block].sites.get(each.site, 0.0) / totals[block]
            for block in each.blocks
            if block in totals
        }
        if not any(shares.values()):
            continue
        tensors = each.load()
        for block, share in shares.items():
            for name in parts[block] if share > 0 else ():
                _add(sums, name, tensors[name], share)
        del tensors  # before the next site's are loaded
    for block, total in totals.items():
        for name in parts[block] if weights[block].stay > 0 else ():
            _add(sums, name, current[name], weights[block].stay / total)
    return {
        name: to_dtype(sums.pop(name), value.dtype) if name in sums else value
        for name, value in current.items()
    }


def to_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast, rounding for integer dtypes.

    Example:
        >>> to_dtype(torch.tensor([1.75]), torch.int64)
        tensor([2])
    """
    return value.to(dtype) if dtype.is_floating_point else value.round().to(dtype)


def _total(weights: BlockWeights) -> float:
    return sum(weights.sites[site] for site in sorted(weights.sites)) + weights.stay


def _add(sums: dict[str, Tensor], name: str, value: Tensor, share: float) -> None:
    if name in sums:
        sums[name].add_(value, alpha=share)
    else:
        sums[name] = value.to(torch.float64, copy=True).mul_(share)
