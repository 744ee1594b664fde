"""Named blocks of parameters and how many samples gave each a gradient.

A block is what one kind of input exercises: in MMARE the columns that modality j's absence multiplies, the
adapter of modality j, the merging layers, and the rest. Exposure counts draws of training samples in a round.
A site returns only the blocks that its samples exercised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from torch import Tensor

__all__ = [
    "Block",
    "all_samples",
    "block_tensors",
    "exposures",
    "merges",
    "samples_with",
    "samples_without",
    "without_parameters",
]


@dataclass(frozen=True)
class Block:
    """Parameters that are exercised together."""

    name: str  # unique in the model; a label in journals and metrics
    parameters: tuple[str, ...]  # names
    exposure: Callable[[Tensor], Tensor]  # from present (B, M) bool to samples (or merges) with a gradient
    column: int | None = None  # only this column of the (D, M) parameters
    most: int = 1  # largest exposure of one sample
    # Step of gradient descent with momentum, by which FedSGD steps it in place of the study's optimiser
    descent: float | None = None
    unit: bool = False  # linear in inputs of mean square length 1, of the samples that exercise it


def all_samples(present: Tensor) -> Tensor:
    """Every sample."""
    return present.any(dim=1).sum()


@cache
def samples_with(slot: int) -> Callable[[Tensor], Tensor]:
    """Samples that have modality ``slot``."""
    return lambda present: present[:, slot].sum()


@cache
def samples_without(slot: int) -> Callable[[Tensor], Tensor]:
    """Samples that miss modality ``slot``."""
    return lambda present: (~present[:, slot]).sum()


def merges(present: Tensor) -> Tensor:
    """Merges: a sample with k modalities makes k - 1."""
    return (present.sum(dim=1) - 1).clamp_min(0).sum()


def exposures(blocks: Iterable[Block], present: Tensor) -> dict[str, int]:
    """Exposure of each block for ``present`` ``(B, M)``.

    Example:
        >>> import torch
        >>> block = Block("adapter.wsi", ("adapters.2.weight",), samples_with(0))
        >>> exposures((block,), torch.tensor([[True, False], [False, True]]))
        {'adapter.wsi': 1}
    """
    return {block.name: int(block.exposure(present)) for block in blocks}


def block_tensors(blocks: Iterable[Block], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of blocks by name, as views of a model's tensors: a parameter, or one column of it.

    Example:
        >>> import torch
        >>> block = Block("conditioning.ct", ("gamma.weight",), samples_without(1), column=1)
        >>> block_tensors((block,), {"gamma.weight": torch.arange(4.0).view(2, 2)})
        {'gamma.weight[:,1]': tensor([1., 3.])}
    """
    found: dict[str, Tensor] = {}
    for block in blocks:
        for name in block.parameters:
            value = tensors[name]
            if block.column is None:
                found[name] = value
            else:
                found[f"{name}[:,{block.column}]"] = value[:, block.column]
    return found


def without_parameters(blocks: Iterable[Block], names: Collection[str]) -> tuple[Block, ...]:
    """The blocks without some parameters, dropping blocks that have no other."""
    kept = (
        replace(block, parameters=tuple(name for name in block.parameters if name not in names))
        for block in blocks
    )
    return tuple(block for block in kept if block.parameters)
