"""Comparing the models of sites with each other in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

__all__ = ["changes_gram", "points_of", "runs"]

VALUES_AT_ONCE: Final = 2**20  # over all sites: 8 MiB in float64


def runs(
    values: Sequence[Tensor], values_at_once: int = VALUES_AT_ONCE
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Iterate over a tensor of several sites, flattened, a run of coordinates at a time.

    Args:
        values: The tensor at each site, all of one shape.
        values_at_once: Limit per run, over all sites; a run has at least one value per site.

    Example:
        >>> [run for run, _ in runs([torch.zeros(5), torch.zeros(5)], values_at_once=4)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    flat = [value.reshape(-1) for value in values]
    length = max(1, values_at_once // len(values))
    for start in range(0, flat[0].numel(), length):
        run = slice(start, start + length)
        yield run, [value[run] for value in flat]


def changes_gram(current: Mapping[str, Tensor], sent: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Inner products of the sites' changes over all tensors.

    Args:
        current: Tensors that the sites started from.
        sent: Tensors per site; a missing one is unchanged.

    Returns:
        ``(sites, sites)`` float64.
    """
    gram = torch.zeros(len(sent), len(sent), dtype=torch.float64)
    for name, value in current.items():
        if any(name in tensors for tensors in sent):
            for _, (origin, *pieces) in runs([value, *(tensors.get(name, value) for tensors in sent)]):
                changes = torch.stack([piece.double() - origin.double() for piece in pieces])
                gram += changes @ changes.T
    return gram


def points_of(gram: Tensor) -> Tensor:
    """Points, as rows ``(N, N)``, that have the inner products ``gram`` and hence the same distances.

    Example:
        >>> points = points_of(torch.tensor([[4.0, 2.0], [2.0, 1.0]]))
        >>> bool(torch.isclose(torch.dist(*points), torch.tensor(1.0)))
        True
    """
    values, vectors = torch.linalg.eigh(gram)
    points: Tensor = vectors * values.clamp_min(0).sqrt()  # negative values are rounding errors
    return points
