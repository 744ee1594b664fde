"""Aggregation as pure functions: weighted means per block, in an order that no network decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["BlockWeights", "Contribution", "to_dtype", "weighted_mean"]


@dataclass(frozen=True)
class Contribution:
    """One site's tensors, read when they are needed.

    Args:
        site: Id.
        samples: Draws of training samples.
        exposures: Draws per block.
        blocks: That its tensors are of.
        load: Reads the tensors; called once per aggregation at most. Means let go of one site's before they
            read the next; what compares sites holds all of them.
        gap: How much higher the site's validation loss is with the average than it was with its own model
            that went into it, in nats; nothing where it was not measured.
    """

    site: str
    samples: int
    exposures: Mapping[str, int]
    blocks: tuple[str, ...]
    load: Callable[[], Mapping[str, Tensor]]
    gap: float | None = None


@dataclass(frozen=True)
class BlockWeights:
    """Who has which say in a block.

    Args:
        sites: Per site id, not negative.
        stay: Of the block as it is.
    """

    sites: Mapping[str, float]
    stay: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether any site has a say."""
        return any(weight > 0 for weight in self.sites.values())


def weighted_mean(
    current: Mapping[str, Tensor],
    parts: Mapping[str, Sequence[str]],
    contributions: Sequence[Contribution],
    weights: Mapping[str, BlockWeights],
) -> dict[str, Tensor]:
    """Average the tensors of blocks over the sites that sent them.

    Summed in float64 in the order of site ids, whichever replied first; a site of weight zero is not read.

    Args:
        current: The tensors that the sites started from.
        parts: Names of the tensors of each block.
        contributions: Of different sites.
        weights: Per block, of sites that sent it; only their proportions count.

    Returns:
        As ``current``, in its dtypes, whole numbers rounded; blocks in which no site has a say are as they
        were.

    Example:
        >>> one = Contribution("b", 1, {}, ("all",), lambda: {"w": torch.tensor([1.0])})
        >>> two = Contribution("a", 3, {}, ("all",), lambda: {"w": torch.tensor([5.0])})
        >>> say = {"all": BlockWeights({"a": 3, "b": 1})}
        >>> weighted_mean({"w": torch.zeros(1)}, {"all": ["w"]}, [one, two], say)
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
        del tensors  # before the next site's are read
    for block, total in totals.items():
        for name in parts[block] if weights[block].stay > 0 else ():
            _add(sums, name, current[name], weights[block].stay / total)
    return {
        name: to_dtype(sums.pop(name), value.dtype) if name in sums else value
        for name, value in current.items()
    }


def to_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A result in the dtype of the tensor that it replaces; whole numbers are rounded.

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
