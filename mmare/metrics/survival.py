"""Survival metrics as sums that sites send and the server adds: rows by time and predicted risk.

Letters: B rows, T bins of the time, R `N_RISKS`, P times at which the predicted curve is known. The first
axis of a state is whether the event was seen: 0 censored, 1 event.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from mmare.metrics.intervals import draw_cells
from mmare.metrics.reading import fields, items, real, require, whole
from mmare.metrics.state import MAX_LOG_LOSS, MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["N_RISKS", "SurvivalState", "concordance"]

N_RISKS: Final = 256  # bins of a risk over [0, 1]
STRATA: Final = 2  # censored, event
_CELLS_AT_ONCE: Final = 2**22  # cells x resamples in memory at a time
_TOLERANCE: Final = 1e-6  # relative, when a received float sum is checked


@dataclass(frozen=True, eq=False, repr=False)
class SurvivalState:
    """Sums over the predictions for a set of rows; states of disjoint sets can be merged.

    Args:
        histogram: ``(2, T, R)`` int64, rows by event, bin of the time and bin of the risk.
        losses: ``(2,)`` float64 sums of the negative log-likelihood in nats.
        curves: ``(2, T, 1 + 2 P)`` float64, by event and bin of the time: rows, sums of the predicted
            probability of no event until each of P times, sums of its square.
        withheld: Sorted strata that a site left out because they have too few rows.
        coarse: Rows that each cell holds, as neighbours were joined; 0: exact.

    Example:
        >>> time, event = torch.tensor([3, 9]), torch.tensor([1, 0])
        >>> state = SurvivalState.of(torch.tensor([0.8, 0.1]), time, event, torch.tensor([0.5, 0.1]), 10)
        >>> state.counts, state.compute()["concordance"]
        ((1, 1), 1.0)
    """

    histogram: Tensor
    losses: Tensor
    curves: Tensor
    withheld: tuple[int, ...] = field(default=(), kw_only=True)
    coarse: int = field(default=0, kw_only=True)

    @classmethod
    def empty(cls, times: int, points: int = 0) -> SurvivalState:
        """The state of no rows, with ``times`` bins of the time and ``points`` of the curve."""
        histogram = torch.zeros(STRATA, times, N_RISKS, dtype=torch.int64)
        curves = torch.zeros(STRATA, times, 1 + 2 * points, dtype=torch.float64)
        return cls(histogram, torch.zeros(STRATA, dtype=torch.float64), curves)

    @classmethod
    def of(
        cls,
        risk: Tensor,
        time: Tensor,
        event: Tensor,
        loss: Tensor,
        times: int,
        survival: Tensor | None = None,
    ) -> SurvivalState:
        """The state of rows.

        Args:
            risk: ``(B,)`` in [0, 1].
            time: ``(B,)`` int64, bin.
            event: ``(B,)`` int64, 1 where it was seen.
            loss: ``(B,)`` negative log-likelihood.
            times: Bins of the time.
            survival: ``(B, P)`` probability of no event until each of P times.

        Raises:
            ValueError: If a risk or loss is not finite.
        """
        risk, loss = risk.detach().cpu().double(), loss.detach().cpu().double()
        if not (risk.isfinite().all() and (loss <= MAX_LOG_LOSS).all()):
            raise ValueError("risks and losses must be finite")
        time, event = time.cpu(), event.cpu()
        cell = (event * times + time) * N_RISKS + (risk * N_RISKS).long().clamp(0, N_RISKS - 1)
        histogram = cell.bincount(minlength=STRATA * times * N_RISKS).view(STRATA, times, N_RISKS)
        left = torch.zeros(len(risk), 0) if survival is None else survival.detach().cpu().double()
        columns = torch.cat([torch.ones(len(risk), 1), left, left.square()], dim=1).double()
        curves = torch.zeros(STRATA * times, columns.shape[1], dtype=torch.float64)
        curves.index_add_(0, event * times + time, columns)
        return cls(histogram, event.bincount(loss.clamp_min(0), STRATA), curves.view(STRATA, times, -1))

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows that are censored, rows with the event."""
        return tuple(self.histogram.sum(dim=(1, 2)).tolist())

    @property
    def n(self) -> int:
        """All rows."""
        return sum(self.counts)

    def merge(self, other: SurvivalState) -> SurvivalState:
        """The state of the rows of both.

        Raises:
            ValueError: If the bins differ.
        """
        if (self.histogram.shape, self.curves.shape) != (other.histogram.shape, other.curves.shape):
            raise ValueError("cannot merge states of other bins of the time")
        withheld = tuple(sorted({*self.withheld, *other.withheld}))
        sums = (mine + theirs for mine, theirs in zip(self._tensors, other._tensors, strict=True))
        return SurvivalState(*sums, withheld=withheld, coarse=max(self.coarse, other.coarse))

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.histogram, self.losses, self.curves

    def withhold(self, min_count: int) -> SurvivalState:
        """The state as it may leave a site: without strata of fewer than ``min_count`` rows."""
        return self.without(index for index, count in enumerate(self.counts) if 0 < count < min_count)

    def without(self, strata: Iterable[int]) -> SurvivalState:
        """The state without some strata, which are named as withheld."""
        hidden = sorted(strata)
        if not hidden:
            return self
        kept = (part.index_fill(0, torch.tensor(hidden), 0) for part in self._tensors)
        withheld = tuple(sorted({*self.withheld, *hidden}))
        return SurvivalState(*kept, withheld=withheld, coarse=self.coarse)

    def coarsened(self, limit: int) -> SurvivalState:
        """The state with neighbouring cells joined until each holds ``limit`` rows; 0 and 1 change nothing.

        Rows of a stratum are halved by time and by risk in turn, and those of a group move to the cell of
        their mean, so that states merge as before; those of curves are joined by time alone. Losses are
        exact.
        """
        if limit <= 1:
            return self
        histogram = torch.zeros_like(self.histogram)
        for rows, into in zip(self.histogram, histogram, strict=True):
            cells = rows.nonzero()  # (U, 2)
            points = cells.repeat_interleave(rows[tuple(cells.T)], dim=0)  # (N, 2)
            for group in _groups(points, limit, axis=0) if len(points) else ():
                time, risk = group.double().mean(dim=0).round().long().tolist()
                into[time, risk] += len(group)
        curves = torch.stack([_joined(rows, limit) for rows in self.curves])
        return replace(self, histogram=histogram, curves=curves, coarse=max(limit, self.coarse))

    def compute(self) -> dict[str, float | int | None]:
        """The metrics of the rows, ``None`` where undefined: concordance needs a pair that can be ordered."""
        pairs = _pairs(self.histogram[None].double())
        comparable = pairs[1].item()
        return {
            "n": self.n,
            "events": self.counts[1],
            "concordance": pairs[0].item() / comparable if comparable else None,
            "log_loss": self.losses.sum().item() / self.n if self.n else None,
        }

    def concordance_error_bound(self) -> float | None:
        """Largest difference between the concordance of `compute` and that of unbinned times and risks.

        Pairs that share a bin of the risk count half and may be right or wrong; those that share a bin of the
        time are left out and may be either. ``None`` if cells were joined: which pairs they reorder is not
        known.
        """
        right, comparable, tied = (float(each.item()) for each in _pairs(self.histogram[None].double()))
        if self.coarse or not comparable:
            return None
        censored, events = self.histogram.sum(dim=2).double()  # (T,) each
        unseen = (events * (events - 1) / 2 + events * censored).sum().item()
        whole_pairs = comparable + unseen
        value = right / comparable
        low, high = (right - tied / 2) / whole_pairs, (right + tied / 2 + unseen) / whole_pairs
        return float(max(value - low, min(high, 1.0) - value))

    def intervals(
        self, seed: int, resamples: int = 1000, level: float = 0.95
    ) -> dict[str, list[float] | None]:
        """Percentile bootstrap interval ``[low, high]`` of the concordance; rows drawn within a stratum."""
        used = self.histogram.sum(dim=0)
        cells = self.histogram[:, used.sum(dim=1) > 0][:, :, used.sum(dim=0) > 0]  # (2, t, r)
        if self.compute()["concordance"] is None:
            return {"concordance": None}
        generator = torch.Generator().manual_seed(seed)
        chunk = max(1, _CELLS_AT_ONCE // cells.numel())
        values = []
        for done in range(0, resamples, chunk):
            size = min(chunk, resamples - done)
            drawn = torch.stack([draw_cells(each, size, generator) for each in cells], dim=1)
            values.append(concordance(drawn))
        bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        found = torch.cat(values)
        return {"concordance": found[~found.isnan()].quantile(bounds).tolist()}

    def to_dict(self) -> dict[str, Any]:
        """The state for JSON; a stratum without rows is ``None``, a cell without rows is absent."""
        return {
            "bins": [*self.histogram.shape[1:], *([self.coarse] if self.coarse else [])],
            "strata": [
                {
                    "cells": [[*cell, int(rows[tuple(cell)])] for cell in rows.nonzero().tolist()],
                    "log_loss": loss,
                    "curves": [[place, *sums] for place, sums in enumerate(curves.tolist()) if sums[0]],
                }
                if count
                else None
                for rows, loss, curves, count in zip(
                    self.histogram, self.losses.tolist(), self.curves, self.counts, strict=True
                )
            ],
            "withheld": list(self.withheld),
        }

    @classmethod
    def from_dict(cls, content: object, times: int, points: int = 0) -> SurvivalState:
        """Validate and read what `to_dict` wrote on another machine.

        Raises:
            ValueError: If anything differs from the format.
        """
        bins, strata, withheld = fields(content, ("bins", "strata", "withheld"), "the state")
        known = isinstance(bins, list) and bins[:2] == [times, N_RISKS] and len(bins) <= STRATA + 1
        require(known, "the state has other bins")
        state = cls.empty(times, points)
        for stratum, entry in enumerate(items(strata, STRATA, "strata")):
            if entry is not None:
                into = state.histogram[stratum], state.curves[stratum]
                state.losses[stratum] = _read_stratum(entry, *into, f"stratum {stratum}")
        left_out = [whole(each, STRATA - 1, "withheld") for each in items(withheld, None, "withheld")]
        require(left_out == sorted(set(left_out)), "withheld is not sorted")
        coarse = [whole(each, MAX_ROWS, "bins") for each in bins[2:]]
        return replace(state, withheld=tuple(left_out), coarse=max(coarse, default=0))


def concordance(histogram: Tensor) -> Tensor:
    """Harrell's concordance ``(S,)`` of states ``(S, 2, T, R)``; NaN without a pair that can be ordered."""
    right, comparable, _ = _pairs(histogram.double())
    return right / comparable


def _pairs(histogram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs ``(S,)`` in the right order, ties of the risk as half; all that can be ordered; ties of the risk.

    An event is ordered before all rows of later bins of the time.
    """
    events = histogram[:, 1]  # (S, T, R)
    rows = histogram.sum(dim=1)  # (S, T, R)
    later = rows.flip(1).cumsum(dim=1).flip(1) - rows  # (S, T, R): of later bins of the time
    tied = (events * later).sum(dim=(1, 2))
    lower = (events * (later.cumsum(dim=2) - later)).sum(dim=(1, 2))
    comparable = (events.sum(dim=2) * later.sum(dim=2)).sum(dim=1)
    return lower + tied / 2, comparable, tied


def _groups(points: Tensor, limit: int, axis: int) -> list[Tensor]:
    """Points ``(N, 2)`` in groups of at least ``limit``, if there are so many."""
    if len(points) < 2 * limit:
        return [points]
    order = points[:, axis].argsort(stable=True)
    halves = points[order].tensor_split([len(points) // 2])
    return [group for half in halves for group in _groups(half, limit, 1 - axis)]


def _joined(rows: Tensor, limit: int) -> Tensor:
    """Sums ``(T, C)``, whose first column counts rows, with neighbouring bins joined at their mean."""
    found = torch.zeros_like(rows)
    held: list[int] = []
    groups: list[list[int]] = []
    for place in rows[:, 0].nonzero().flatten().tolist():
        held.append(place)
        if rows[held, 0].sum() >= limit:
            groups.append(held)
            held = []
    if held and groups:
        groups[-1] += held
    for group in groups or [held] * bool(held):
        mean = (rows[group, 0] * torch.tensor(group)).sum() / rows[group, 0].sum()
        found[round(float(mean))] += rows[group].sum(dim=0)
    return found


def _read_stratum(entry: object, into: Tensor, curves: Tensor, where: str) -> float:
    """Read the cells and curves of one stratum into ``(T, R)`` and ``(T, 1 + 2 P)``; its loss."""
    cells, log_loss, sums = fields(entry, ("cells", "log_loss", "curves"), where)
    before = -1
    for cell in items(cells, None, f"{where} cells"):
        time, risk, rows = items(cell, 3, f"{where} cell")
        row = whole(time, len(into) - 1, f"{where} time")
        place = row * N_RISKS + whole(risk, N_RISKS - 1, f"{where} risk")
        require(place > before, f"{where} cells do not rise")
        before = place
        into.view(-1)[place] = whole(rows, MAX_ROWS, f"{where} rows")
        require(rows > 0, f"{where} has a cell without rows")
    n = int(into.sum())
    require(n > 0, f"{where} has no rows")
    _read_curves(sums, curves, n, f"{where} curves")
    return real(log_loss, 0, MAX_LOG_LOSS * n * (1 + _TOLERANCE), f"{where} log_loss")


def _read_curves(content: object, into: Tensor, n: int, where: str) -> None:
    """Read ``[bin, rows, sums]`` entries of ``n`` rows into ``(T, 1 + 2 P)``."""
    points = (into.shape[1] - 1) // 2
    before = -1
    for entry in items(content, None, where):
        place, rows, *sums = items(entry, 2 + 2 * points, where)
        require(whole(place, len(into) - 1, where) > before, f"{where} do not rise")
        before = place
        held = real(rows, 1, n, where)
        most = held * (1 + _TOLERANCE)
        values = [held, *(real(value, 0, most, where) for value in sums)]
        into[place] = torch.tensor(values, dtype=torch.float64)
    require(int(into[:, 0].sum()) == n and bool((into[:, 0] % 1 == 0).all()), f"{where} are of other rows")
