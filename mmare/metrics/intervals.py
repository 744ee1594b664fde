"""Bootstrap intervals of the metrics from a `MetricState`, without the rows.

A row is known by its cell, so drawing rows with replacement is drawing cells in proportion to their counts:
the bootstrap over rows (Efron & Tibshirani 1993, ch. 13: percentile intervals), stratified by true class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmare.metrics.state import BINARY, MetricState, class_scores, ranked_auc

__all__ = ["bootstrap_intervals", "draw_cells"]

_CELLS_AT_ONCE = 2**22  # cells x resamples in memory at a time: a few times 32 MiB of float64


def bootstrap_intervals(
    state: MetricState, positive: int | None, seed: int, resamples: int = 1000, level: float = 0.95
) -> dict[str, list[float] | None]:
    """Percentile intervals ``[low, high]`` of the metrics of predicted classes and of the AUC.

    Rows are resampled within each true class, so a metric is ``None`` exactly where `MetricState.compute`
    gives ``None``. With two classes, predicted class and score of a row are drawn together. With more, the
    confusion matrix and each one-vs-rest histogram are drawn independently, because the state does not say
    which scores belong to one row; where they are correlated, the interval of the mean AUC is too narrow.
    Time grows with the resamples (at least 1) and the occupied cells, not with the rows.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
        >>> state = MetricState.of(logits, torch.tensor([0, 1, 1, 0]))
        >>> bootstrap_intervals(state, positive=1, seed=0)["accuracy"]
        [0.0, 1.0]
    """
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, _CELLS_AT_ONCE // max(1, int(state.histogram.count_nonzero())))
    parts = [
        _scores_of_resamples(state, positive, min(chunk, resamples - done), generator)
        for done in range(0, resamples, chunk)
    ]
    bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    intervals: dict[str, list[float] | None] = {}
    for name in parts[0]:
        values = [value for part in parts if (value := part[name]) is not None]
        intervals[name] = torch.cat(values).quantile(bounds).tolist() if values else None
    return intervals


def _scores_of_resamples(
    state: MetricState, positive: int | None, resamples: int, generator: torch.Generator
) -> dict[str, Tensor | None]:
    """``(R,)`` float64 per metric, ``None`` where undefined."""
    draw = _draw_binary if state.n_classes == BINARY else _draw_one_vs_rest
    confusion, auc = draw(state, resamples, generator)
    return {**class_scores(confusion, positive), "auc": auc if all(state.counts) else None}


def _draw_binary(state: MetricState, resamples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Confusion matrices ``(R, 2, 2)`` and AUCs ``(R,)`` of the same draws."""
    used = state.histogram.sum(dim=(0, 1)).nonzero().squeeze(1)  # (U,)
    cells = state.histogram[:, :, used]  # (2, 2, U)
    drawn = torch.stack(
        [draw_cells(of_class, resamples, generator) for of_class in cells], dim=1
    )  # (R, 2, 2, U)
    negative, positive = drawn.sum(dim=2).unbind(dim=1)  # (R, U) each
    return drawn.sum(dim=3), ranked_auc(positive, negative)


def _draw_one_vs_rest(
    state: MetricState, resamples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Confusion matrices ``(R, K, K)`` and mean one-vs-rest AUCs ``(R,)`` of independent draws."""
    rows = [draw_cells(row, resamples, generator) for row in state.confusion]
    total = torch.zeros(resamples, dtype=torch.float64)
    for score, histogram in enumerate(state.histogram.unbind(dim=1)):  # (K, N)
        used = histogram.sum(dim=0).nonzero().squeeze(1)  # (U,)
        drawn = torch.stack(
            [draw_cells(of_class[used], resamples, generator) for of_class in histogram]
        )  # (K, R, U)
        total += ranked_auc(drawn[score], drawn.sum(dim=0) - drawn[score])
    return torch.stack(rows, dim=1), total / state.n_classes


def draw_cells(cells: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Resample as many rows as ``cells`` (int64 counts) hold; counts ``(R, *cells.shape)`` float64.

    The counts are multinomial, drawn by halving: how many of a group's rows fall into its left half is
    binomial, then each half is a group. So the cost is that of the occupied cells, however many rows a
    received state claims.
    """
    occupied = cells.flatten().nonzero().squeeze(1)  # (U,)
    group = cells.flatten()[occupied].double()  # (U,)
    halves = []  # of the groups, from pairs of cells up to all
    while len(group) > 1:
        halves.append(functional.pad(group, (0, len(group) % 2)).view(-1, 2))
        group = halves[-1].sum(dim=1)
    drawn = group.expand(resamples, -1)  # (R, groups)
    for pair in reversed(halves):
        held = drawn[:, : len(pair)].contiguous()  # (R, groups), without the padding
        share = (pair[:, 0] / pair.sum(dim=1)).expand_as(held)  # (R, groups)
        left = torch.binomial(held, share.contiguous(), generator=generator)
        drawn = torch.stack([left, held - left], dim=2).flatten(1)
    counts = torch.zeros(resamples, cells.numel(), dtype=torch.float64)
    counts[:, occupied] = drawn[:, : len(occupied)]
    return counts.view(resamples, *cells.shape)
