"""Kaplan-Meier curves, log-rank test and time-dependent AUC, from counts by event, time and risk.

Within a bin of the time, events come before censorings, as in the usual tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "auc_until",
    "brier_scores",
    "censoring_curve",
    "integrated",
    "kaplan_meier",
    "log_rank",
    "risk_groups",
]


def kaplan_meier(events: Tensor, censored: Tensor) -> Tensor:
    """Probability ``(T + 1,)`` of no event until each edge of the bins, from counts ``(T,)`` float64.

    Example:
        >>> kaplan_meier(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 2.0, 0.0])).tolist()
        [1.0, 0.75, 0.75, 0.0]
    """
    at_risk = _at_risk(events + censored)
    left = 1 - events / at_risk.clamp_min(1)
    return torch.cat([torch.ones(1, dtype=torch.float64), left.cumprod(dim=0)])


def censoring_curve(events: Tensor, censored: Tensor) -> Tensor:
    """Probability ``(T + 1,)`` of not being censored before each edge of the bins."""
    at_risk = _at_risk(events + censored) - events
    left = 1 - censored / at_risk.clamp_min(1)
    return torch.cat([torch.ones(1, dtype=torch.float64), left.cumprod(dim=0)])


def auc_until(histogram: Tensor, edge: int, of_all: Tensor | None = None) -> float | None:
    """Chance that a patient with the event before a time has a higher risk than one who lives on (Uno 2007).

    Cases weigh by the inverse probability of not being censored before their event.

    Args:
        histogram: ``(2, T, R)`` rows by event, bin of time and bin of risk.
        edge: Number of bins before the time.
        of_all: ``(2, T, R)`` of all sites, for the weights; by default the histogram itself.

    Returns:
        None without a case, or without anybody who lives on.
    """
    censored, events = (histogram if of_all is None else of_all).sum(dim=2).double()
    weight = 1 / censoring_curve(events, censored)[:edge].clamp_min(1e-12)  # (edge,)
    cases = (histogram[1, :edge].double() * weight[:, None]).sum(dim=0)  # (R,)
    controls = histogram[:, edge:].sum(dim=(0, 1)).double()  # (R,)
    pairs = cases.sum() * controls.sum()
    if pairs == 0:
        return None
    lower = controls.cumsum(dim=0) - controls / 2
    return float((cases * lower).sum() / pairs)


def brier_scores(curves: Tensor, edges: Sequence[int], of_all: Tensor) -> list[float | None]:
    """Mean squared error of the predicted probability of no event until each of P times (Graf 1999).

    Rows weigh by the inverse probability of not being censored until then, or before their event.

    Args:
        curves: ``(2, T, 1 + 2 P)`` as of `mmare.metrics.survival.SurvivalState`.
        edges: P numbers of bins before each time.
        of_all: ``(2, T)`` rows of all sites, for the weights.

    Returns:
        None without rows, and where nobody of all sites is observed that long.
    """
    censored, events = of_all.double()
    known = censoring_curve(events, censored)  # (T + 1,)
    rows = curves[:, :, 0]
    scores: list[float | None] = []
    for place, edge in enumerate(edges):
        left, square = curves[:, :, 1 + place], curves[:, :, 1 + len(edges) + place]  # (2, T) each
        dead = (square[1, :edge] / known[:edge].clamp_min(1e-12)).sum()
        alive = (rows - 2 * left + square)[:, edge:].sum() / known[edge].clamp_min(1e-12)
        observed = bool(of_all[:, edge - 1 :].sum() > 0 and known[edge] > 0)
        scores.append(float((dead + alive) / rows.sum()) if rows.sum() > 0 and observed else None)
    return scores


def integrated(scores: Sequence[float | None], edges: Sequence[int]) -> float | None:
    """Mean over the time of Brier scores at rising times from 0 to the last defined one, by trapezoids."""
    points = [(0, 0.0)]
    points += [(edge, score) for edge, score in zip(edges, scores, strict=True) if score is not None]
    if len(points) == 1:
        return None
    area = sum((end - start) * (a + b) / 2 for (start, a), (end, b) in pairwise(points))
    return area / points[-1][0]


def risk_groups(histogram: Tensor, groups: int = 3) -> dict[str, Any] | None:
    """Kaplan-Meier curves of equally large groups by risk, the lowest first, with their log-rank test.

    Returns:
        ``groups``: ``n``, ``events`` and ``curve`` of each; ``statistic``, ``freedom`` and ``p`` of the test.
        None where the risks do not make two groups.
    """
    rows = histogram.sum(dim=(0, 1)).double()  # (R,)
    middle = (rows.cumsum(dim=0) - rows / 2) / rows.sum().clamp_min(1)
    place = (middle * groups).long().clamp(0, groups - 1)  # (R,) group of each bin
    tables = [histogram[:, :, place == group].sum(dim=2).double() for group in range(groups)]  # (2, T) each
    tables = [table for table in tables if table.sum() > 0]
    if len(tables) < 2:  # noqa: PLR2004 - a comparison
        return None
    return {
        "groups": [
            {
                "n": int(table.sum()),
                "events": int(table[1].sum()),
                "curve": kaplan_meier(table[1], table[0]).tolist(),
            }
            for table in tables
        ],
        **log_rank(torch.stack(tables)),
    }


def log_rank(tables: Tensor) -> dict[str, float | int | None]:
    """The log-rank test of G groups from counts ``(G, 2, T)`` float64 by event and bin of time.

    Returns:
        ``statistic``, chi-squared with ``freedom`` G - 1, and ``p``; None where no event tells them apart.
    """
    events = tables[:, 1]  # (G, T)
    at_risk = torch.stack([_at_risk(table.sum(dim=0)) for table in tables])  # (G, T)
    died, alive = events.sum(dim=0), at_risk.sum(dim=0)  # (T,) each
    share = at_risk / alive.clamp_min(1)  # (G, T)
    gap = (events - share * died).sum(dim=1)[:-1]
    spread = died * (alive - died) / (alive - 1).clamp_min(1)  # (T,)
    covariance = torch.diag((share * spread).sum(dim=1)) - (share * spread) @ share.T
    freedom = len(tables) - 1
    covariance = covariance[:-1, :-1]
    if torch.linalg.matrix_rank(covariance) < freedom:
        return {"statistic": None, "freedom": freedom, "p": None}
    statistic = gap @ torch.linalg.solve(covariance, gap)
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    p = torch.special.gammaincc(half, statistic / 2)
    return {"statistic": float(statistic), "freedom": freedom, "p": float(p)}


def _at_risk(rows: Tensor) -> Tensor:
    """Rows ``(T,)`` of each bin and all later ones."""
    return rows.flip(0).cumsum(dim=0).flip(0)
