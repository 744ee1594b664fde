"""Time to an event: one log risk, by which the hazard of everybody is multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from mmare.tasks.survival import Survival

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["Cox"]

_LOWEST, _HIGHEST = -60.0, 5.0  # log rate of an interval; nobody survives e**5
_SMALLEST: Final = 1e-3  # share of the rows with an event in an interval, where none is known


class Cox(Survival):
    r"""Proportional hazards (Cox 1972) over intervals: the output is a log risk s.

    .. math:: 1 - h_k(s) = \exp(-e^{b_k + s})

    A Cox model whose times are known by interval (Prentice and Gloeckler 1978); its likelihood is a sum over
    patients, so that sites need not share risk sets, and no site needs an event. With short intervals it is
    Breslow's profile of the partial likelihood (Johansen 1983): the gradient of :math:`b_k` is the risk set's
    sum of hazards less the events, so the sum over sites that every round makes moves the baseline to
    Breslow's, over all sites, not one for each.

    Attributes:
        start: ``(K,)`` buffer, log rates of an interval before training, of events alone.
        baseline: ``(K,)`` parameter, b less ``start``.
        events: Buffer, events per train row.
    """

    CENTRES = True  # the baseline takes up what all patients share

    start: Tensor
    events: Tensor

    def __init__(self, intervals: int, edges: Mapping[float, int] | None = None) -> None:
        super().__init__(intervals, edges, outputs=1)
        self.register_buffer("start", torch.zeros(intervals))
        self.register_buffer("events", torch.ones(()))
        self.baseline = nn.Parameter(torch.zeros(intervals))

    @property
    def residual(self) -> float:
        """Events per row: the variance of a martingale residual is its expectation."""
        return self.events.item()

    def learn_times(self, events: Tensor, rows: int) -> None:
        """Set the cuts, and rates as if nobody were censored before the last event."""
        super().learn_times(events, rows)
        reached = torch.cat([torch.zeros(1), events.float().cumsum(dim=0)])  # (T + 1,)
        place = self.cuts.clamp(0, len(events))
        low = place.floor().long()
        high = (low + 1).clamp_max(len(events))
        died = reached[low] + (place - low) * (reached[high] - reached[low])  # (K + 1,) until each cut
        share = (died.diff() / (rows - died[:-1]).clamp_min(1)).clamp(_SMALLEST, 1 - _SMALLEST)
        self.start.copy_(torch.log(-torch.log1p(-share)))
        self.events.fill_(float(events.sum()) / max(rows, 1))

    def hazards(self, outputs: Tensor) -> Tensor:
        """Logits ``(B, K)`` of the hazards."""
        rate = (outputs + (self.start + self.baseline).to(outputs)).clamp(_LOWEST, _HIGHEST).exp()  # (B, K)
        return rate + torch.log(-torch.expm1(-rate))

    @property
    def descent(self) -> float:
        """K: an interval has a K-th of all events, whose share of the rows is its curvature."""
        return float(len(self.cuts) - 1)
