"""Score bins wide enough that each holds a smallest number of patients."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mmare.metrics.state import BINARY, N_BINS, N_CALIBRATION_BINS

if TYPE_CHECKING:
    from mmare.metrics.state import MetricState

__all__ = ["coarsened"]


def coarsened(state: MetricState, limit: int) -> MetricState:
    """The state with neighbouring bins joined until each holds ``limit`` rows; 0 and 1 change nothing.

    Joined rows of a true class move to the bin of their mean, so that states merge as before. Of two classes
    the rows of either prediction stay on its side of one half: the confusion is exact, and so are losses.

    Example:
        >>> from mmare.metrics.state import MetricState
        >>> logits = torch.tensor([[0.0, 1.0], [0.0, 1.2], [0.0, 3.0], [0.0, 3.1]])
        >>> state = MetricState.of(logits, torch.tensor([1, 1, 1, 1]))
        >>> coarsened(state, 2).histogram[1, 1].nonzero().flatten().tolist()
        [1535, 1954]
    """
    if limit <= 1:
        return state
    joined = _joined_sides if state.n_classes == BINARY else _joined_scores
    histogram = torch.stack([joined(rows, limit) for rows in state.histogram])
    calibration = torch.stack([_joined_calibration(bins, limit) for bins in state.calibration])
    return replace(state, histogram=histogram, calibration=calibration, coarse=max(limit, state.coarse))


def _joined_sides(rows: torch.Tensor, limit: int) -> torch.Tensor:
    """``(2, N)``, by prediction and bin of one score; a group may lie on both sides of one half."""
    found = torch.zeros_like(rows)
    for group in _groups(rows.sum(dim=0), limit):
        low, high = rows[:, group].sum(dim=1).tolist()
        mean = _mean(rows.sum(dim=0), group)
        found[0, min(mean, N_BINS // 2 - 1)] += low
        found[1, max(mean, N_BINS // 2)] += high
    return found


def _joined_scores(rows: torch.Tensor, limit: int) -> torch.Tensor:
    """``(K, N)``, by scored class and bin of its score."""
    found = torch.zeros_like(rows)
    for bins, into in zip(rows, found, strict=True):
        for group in _groups(bins, limit):
            into[_mean(bins, group)] += bins[group].sum()
    return found


def _mean(counts: torch.Tensor, group: torch.Tensor) -> int:
    return round(float((group * counts[group]).sum() / counts[group].sum()))


def _joined_calibration(bins: torch.Tensor, limit: int) -> torch.Tensor:
    """``(3, C)``: rows, hits and confidence, by bin of the joined rows' mean confidence."""
    found = torch.zeros_like(bins)
    for group in _groups(bins[0], limit):
        sums = bins[:, group].sum(dim=1)
        place = min(int(sums[2] / sums[0] * N_CALIBRATION_BINS), N_CALIBRATION_BINS - 1)
        found[:, place] += sums
    return found


def _groups(counts: torch.Tensor, limit: int) -> list[torch.Tensor]:
    """Neighbouring occupied bins that hold ``limit`` together; the last group may hold more, or less."""
    groups: list[list[int]] = [[]]
    held = 0
    for place in counts.nonzero().flatten().tolist():
        if held >= limit:
            groups.append([])
            held = 0
        groups[-1].append(place)
        held += int(counts[place])
    if held < limit and len(groups) > 1:
        rest = groups.pop()
        groups[-1] += rest
    return [torch.tensor(group) for group in groups if group]
