"""Named blocks of parameters and how many samples gave each a gradient.

A block is what one kind of input exercises: in MMARE the columns that modality j's absence multiplies, the
adapter of modality j, the merging parts, and the rest. Exposure counts draws of training samples in a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Block", "all_samples", "exposures", "merges", "samples_with", "samples_without"]


@dataclass(frozen=True)
class Block:
    """Parameters that are exercised together.

    Args:
        name: Unique in the model; a label in journals and metrics.
        parameters: Names of the parameters; with ``column`` only that column of each.
        exposure: From ``present`` ``(B, M)`` bool to the number of samples (or merges) that gave a gradient.
        column: Of ``(D, M)`` weights.
    """

    name: str
    parameters: tuple[str, ...]
    exposure: Callable[[Tensor], Tensor]
    column: int | None = None


def all_samples(present: Tensor) -> Tensor:
    """Every sample."""
    return present.any(dim=1).sum()


def samples_with(slot: int) -> Callable[[Tensor], Tensor]:
    """Samples that have modality ``slot``."""
    return lambda present: present[:, slot].sum()


def samples_without(slot: int) -> Callable[[Tensor], Tensor]:
    """Samples that miss modality ``slot``."""
    return lambda present: (~present[:, slot]).sum()


def merges(present: Tensor) -> Tensor:
    """Merges: a sample with k modalities makes k - 1."""
    return (present.sum(dim=1) - 1).clamp_min(0).sum()


def exposures(blocks: tuple[Block, ...], present: Tensor) -> dict[str, int]:
    """Exposure of each block over the samples of ``present`` ``(B, M)``.

    Example:
        >>> import torch
        >>> block = Block("adapter.wsi", ("adapters.2.weight",), samples_with(0))
        >>> exposures((block,), torch.tensor([[True, False], [False, True]]))
        {'adapter.wsi': 1}
    """
    return {block.name: int(block.exposure(present)) for block in blocks}
