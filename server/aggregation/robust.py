"""What is needed to compare the models of sites with each other in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

__all__ = ["changes_gram", "points_of", "runs"]

VALUES_AT_ONCE: Final = 2**20  # of all sites together: 8 MiB in float64


def runs(
    values: Sequence[Tensor], values_at_once: int = VALUES_AT_ONCE
) -> Iterator[tuple[slice, list[Tensor]]]:
    """The same tensor of several sites, flat, a run of coordinates at a time.

    Args:
        values: Of one shape.
        values_at_once: Most values of a run, over all sites; at least one of each.

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
    """Inner products of the changes that sites made, all tensors together.

    Args:
        current: The tensors that the sites started from.
        sent: Per site; a tensor that it lacks has not changed.

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
    """Points with the inner products ``gram``, and so with the distances: its rows, in as many dimensions.

    Args:
        gram: ``(N, N)`` float64.

    Returns:
        ``(N, N)``.

    Example:
        >>> points = points_of(torch.tensor([[4.0, 2.0], [2.0, 1.0]]))
        >>> bool(torch.isclose(torch.dist(*points), torch.tensor(1.0)))
        True
    """
    values, vectors = torch.linalg.eigh(gram)
    points: Tensor = vectors * values.clamp_min(0).sqrt()  # what is below zero is rounding
    return points
