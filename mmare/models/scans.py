"""Several scans of one modality of a patient: their weighted mean, with even, drawn or learned weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Bag", "GatedAttention", "drawn_weights", "group_softmax", "weighted_mean"]

HIDDEN: Final = 4  # of the gated attention, so that an embedding of 512 numbers has 4,100 parameters


@dataclass(frozen=True)
class Bag:
    """The scans of the patients who have several of one modality, each once.

    Args:
        rows: ``(n,)`` int64, whose each is; ascending.
        vectors: ``(n, W)`` float32, of a patient in an order that their values fix; NaN is a blank cell.
    """

    rows: Tensor
    vectors: Tensor

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the patients in ``rows`` ``(B,)``, unique: vectors, the place in ``rows`` of each, who has some.

        Example:
            >>> bag = Bag(torch.tensor([2, 2, 5, 5]), torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
            >>> [part.tolist() for part in bag.of(torch.tensor([5, 1]))]
            [[[3.0], [4.0]], [0, 0], [True, False]]
        """
        size = int(max(self.rows.max().item() if len(self.rows) else 0, rows.max().item())) + 1
        place = torch.full((size,), -1, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        group = place[self.rows]
        held = group >= 0
        has = torch.zeros(len(rows), dtype=torch.bool)
        has[group[held]] = True
        return self.vectors[held], group[held], has


class GatedAttention(nn.Module):
    r"""Scores of scans by gated attention (Ilse, Tomczak and Welling 2018, equation 9).

    .. math:: s_k = w^T (\tanh(V h_k) \odot \sigma(U h_k))

    Here :math:`w` starts at zero, so that training starts from the mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.content = nn.Linear(width, HIDDEN)
        self.gate = nn.Linear(width, HIDDEN)
        self.score = nn.Linear(HIDDEN, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, scaled: Tensor) -> Tensor:
        """Scores ``(n,)`` of scaled embeddings ``(n, W)``."""
        hidden = torch.tanh(self.content(scaled)) * torch.sigmoid(self.gate(scaled))
        scores: Tensor = self.score(hidden)[:, 0]
        return scores


def group_softmax(scores: Tensor, group: Tensor, groups: int) -> Tensor:
    """Softmax of scores ``(n,)`` within each group.

    Example:
        >>> group_softmax(torch.tensor([0.0, 0.0, 7.0]), torch.tensor([0, 0, 1]), 2)
        tensor([0.5000, 0.5000, 1.0000])
    """
    most = scores.detach().new_full((groups,), -torch.inf).scatter_reduce(0, group, scores.detach(), "amax")
    raised = (scores - most[group]).exp()
    return raised / raised.new_zeros(groups).index_add(0, group, raised)[group]


def drawn_weights(group: Tensor, groups: int, generator: Generator) -> Tensor:
    """One of each group, drawn: 1 for it and 0 for the others, ``(n,)``."""
    chance = torch.rand(len(group), generator=generator)
    most = torch.zeros(groups).scatter_reduce(0, group, chance, "amax")
    return (chance == most[group]).float()


def weighted_mean(vectors: Tensor, weights: Tensor, group: Tensor, groups: int) -> Tensor:
    """``(groups, W)`` from vectors ``(n, W)``; blank cells (NaN) are left out, and blank where all are.

    Example:
        >>> vectors, group = torch.tensor([[1.0], [3.0], [torch.nan]]), torch.tensor([0, 0, 0])
        >>> weighted_mean(vectors, torch.tensor([1.0, 1.0, 1.0]), group, 1)
        tensor([[2.]])
    """
    known = ~vectors.isnan()
    over = torch.where(known, weights[:, None], 0.0)
    shape = (groups, vectors.shape[1])
    total = vectors.new_zeros(shape).index_add(0, group, over * torch.where(known, vectors, 0.0))
    whole = vectors.new_zeros(shape).index_add(0, group, over)
    return torch.where(whole > 0, total / torch.where(whole > 0, whole, 1.0), torch.nan)
