"""Two models on the same rows, as sums: a difference of concordances or of errors, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

__all__ = ["N_SUMS", "difference_of", "error_sums", "pair_sums"]

N_SUMS: Final = 7  # rows; weights, both models' scores; squares of differences, products, squares of weights
_NORMAL: Final = 1.959963984540054  # 97.5 % of the normal distribution lie below


def pair_sums(risks: tuple[Tensor, Tensor], time: Tensor, event: Tensor) -> tuple[float, ...]:
    """Of two models' risks ``(N,)``: a row's weight is its ordered pairs, its score the right ones of them.

    A pair counts at either of its rows, with a half where risks are equal.
    """
    pairs = ((event[:, None] == 1) & (time[:, None] < time[None])).double()  # (N, N)
    right = [
        pairs * ((risk[:, None] > risk[None]).double() + (risk[:, None] == risk[None]).double() / 2)
        for risk in risks
    ]
    weight, first, second = (each.sum(dim=0) + each.sum(dim=1) for each in (pairs, *right))  # (N,)
    return _sums(weight, first, second)


def error_sums(predicted: tuple[Tensor, Tensor], target: Tensor) -> tuple[float, ...]:
    """Of two models' predictions ``(N,)``: a row's weight is 1, its score the negative absolute error."""
    first, second = (-(each - target).abs().double() for each in predicted)
    return _sums(torch.ones_like(first), first, second)


def _sums(weight: Tensor, first: Tensor, second: Tensor) -> tuple[float, ...]:
    gap = first - second
    parts = (torch.ones_like(weight), weight, first, second, gap.square(), gap * weight, weight.square())
    return tuple(part.sum().item() for part in parts)


def difference_of(sums: Sequence[float], of_pairs: bool) -> dict[str, float | int | list[float] | None]:
    """Mean scores of both models and their difference, with the 95 % interval of its normal limit.

    The difference is a ratio of sums, of degree two where scores are of pairs: its variance is that of the
    rows' influences (Hoeffding 1948; of concordances Kang et al. 2015).

    Args:
        sums: Of disjoint sets of rows, added.
        of_pairs: Whether rows' scores are of pairs.

    Example:
        >>> target = torch.tensor([1.0, 2.0, 3.0])
        >>> difference_of(error_sums((target, target + 1), target), of_pairs=False)["difference"]
        1.0
    """
    rows, weight, first, second, squares, products, weights = sums or (0.0,) * N_SUMS
    if weight == 0:
        return {"n": int(rows), **dict.fromkeys(("first", "second", "difference", "ci95"))}
    gap = (first - second) / weight
    spread = max(squares - 2 * gap * products + gap**2 * weights, 0.0)
    reach = _NORMAL * (2 if of_pairs else 1) * math.sqrt(spread) / weight
    return {
        "n": int(rows),
        "first": first / weight,
        "second": second / weight,
        "difference": gap,
        "ci95": [gap - reach, gap + reach],
    }
