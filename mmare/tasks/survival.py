"""Time to an event: hazards of intervals, one logit each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from mmare.metrics.paired import pair_sums
from mmare.metrics.survival import N_RISKS, STRATA, SurvivalState
from mmare.metrics.survival_curves import auc_until, brier_scores, integrated, kaplan_meier, risk_groups
from mmare.study.outcome import N_TIMES
from mmare.tasks.base import Task
from mmare.tasks.classification import agreement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["Survival", "equal_cuts", "event_cuts"]

GRID: Final = tuple(range(8, N_TIMES + 1, 8))  # bins before each point of the integrated Brier score
_EVEN: Final = 0.1  # share of the cuts that follows the clock, so that no interval is empty


class Survival(Task[SurvivalState]):
    """Discrete-time hazards. Labels ``(B,)`` int64 are those of `mmare.study.outcome.time_code`.

    Output k is the logit of the hazard of interval k: the chance of the event in it, of those who reach it.
    Within an interval the rate is constant, so of its hazard h the share ``(1 - h)^u`` is left after a part u
    of it. A patient who is censored there contributes that; the likelihood is otherwise that of Gensheimer
    and Narasimhan 2019 (nnet-survival), who count the whole interval from its middle on.

    Args:
        intervals: K.
        edges: Bins of the time before each horizon.
        outputs: Of the model, by default K.

    Attributes:
        cuts: ``(K + 1,)`` buffer, edges of the intervals in bins of the time, from 0 to ``N_TIMES``.
    """

    PARTS = ("histogram", "losses", "curves")
    COUNTS = ("histogram",)

    cuts: Tensor

    def __init__(
        self, intervals: int, edges: Mapping[float, int] | None = None, outputs: int | None = None
    ) -> None:
        super().__init__(outputs or intervals, STRATA)
        self.edges = dict(edges or {})
        self.points = (*GRID, *self.edges.values())
        self.register_buffer("cuts", equal_cuts(intervals))

    def learn_times(self, events: Tensor, rows: int) -> None:  # noqa: ARG002 - of other baselines
        """Set the cuts.

        Args:
            events: ``(T,)`` of all sites, by bin of the time.
            rows: Train rows of all sites.
        """
        self.cuts.copy_(event_cuts(events, len(self.cuts) - 1))

    def hazards(self, outputs: Tensor) -> Tensor:
        """Logits ``(B, K)`` of the hazards."""
        return outputs

    def likelihood(self, outputs: Tensor, label: Tensor) -> Tensor:
        """Negative log-likelihood ``(B,)``."""
        logits = self.hazards(outputs)
        event = self.stratum(label)
        time = (torch.div(label, 2, rounding_mode="floor") + 0.5).to(logits)  # (B,) middle of the bin
        cuts = self.cuts.to(logits)
        lived = ((time[:, None] - cuts[:-1]) / cuts.diff()).clamp(0, 1)  # (B, K) part of each interval
        place = torch.bucketize(time, cuts[1:-1])  # (B,)
        hit = functional.one_hot(place, len(cuts) - 1).to(logits) * event[:, None]  # (B, K)
        survived = functional.logsigmoid(-logits) * lived * (1 - hit)
        return -(survived + functional.logsigmoid(logits) * hit).sum(dim=1)

    def survival(self, outputs: Tensor, times: Tensor) -> Tensor:
        """Probability ``(B, H)`` of no event until times ``(H,)``, in bins."""
        logits = self.hazards(outputs)
        cuts = self.cuts.to(logits)
        lived = ((times.to(logits)[:, None] - cuts[:-1]) / cuts.diff()).clamp(0, 1)  # (H, K)
        return (functional.logsigmoid(-logits) @ lived.T).exp()

    def risk(self, logits: Tensor) -> Tensor:
        """Risk ``(B,)`` in [0, 1]: share of the follow-up that is lost to the event in expectation."""
        survival = self.prediction(logits.double())  # (B, T + 1)
        return 1 - (survival[:, 1:] + survival[:, :-1]).mean(dim=1) / 2

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean negative log-likelihood."""
        return self.likelihood(logits, label).mean()

    def agreement(self, whole: Tensor, subset: Tensor, temperature: float) -> Tensor:
        """That of two classes, event or not, summed over the intervals."""
        hazards = [self.hazards(each) for each in (whole, subset)]
        teacher, student = (
            torch.stack([torch.zeros_like(each), each], dim=2).flatten(0, 1) for each in hazards
        )
        return hazards[0].shape[1] * agreement(teacher, student, temperature)

    def prediction(self, logits: Tensor) -> Tensor:
        """Probability ``(B, T + 1)`` of no event until each edge of the bins of the time."""
        return self.survival(logits, torch.arange(N_TIMES + 1))

    def stratum(self, label: Tensor) -> Tensor:
        """1 where the event was seen."""
        return label % 2

    def state(self, logits: Tensor, label: Tensor) -> SurvivalState:
        """As of `Task`."""
        logits, label = logits.detach().cpu().double(), label.cpu()
        time, loss = torch.div(label, 2, rounding_mode="floor"), self.likelihood(logits, label)
        left = self.survival(logits, torch.tensor(self.points))
        return SurvivalState.of(self.risk(logits), time, self.stratum(label), loss, N_TIMES, left)

    def empty(self) -> SurvivalState:
        """As of `Task`."""
        return SurvivalState.empty(N_TIMES, len(self.points))

    def read(self, content: object) -> SurvivalState:
        """As of `Task`."""
        return SurvivalState.from_dict(content, N_TIMES, len(self.points))

    def restored(self, parts: Mapping[str, Tensor], withheld: tuple[int, ...]) -> SurvivalState:
        """As of `Task`."""
        histogram = parts["histogram"].round().long()
        if histogram.min().item() < 0:
            raise ValueError("a sum of counts below zero")
        curves = parts["curves"].clone()
        curves[:, :, 0].round_()  # counts, too
        return SurvivalState(histogram, parts["losses"], curves, withheld=withheld)

    def coarsened(self, state: SurvivalState, limit: int) -> SurvivalState:
        """As of `Task`."""
        return state.coarsened(limit)

    def told(self, state: SurvivalState) -> Tensor:
        """As of `Task`."""
        rows = state.curves[:, :, 0]
        return torch.cat([state.histogram[state.histogram > 0], rows[rows > 0].long()])

    def compute(self, state: SurvivalState, of_all: SurvivalState | None = None) -> dict[str, Any]:
        """As of `Task`.

        ``integrated_brier`` is the mean of the Brier score over the time. Of the horizon 12, ``auc_12``,
        ``brier_12`` and ``calibration_12``, events observed (Kaplan-Meier) over those expected. Weights come
        from censoring in ``of_all``.
        """
        whole = (of_all or state).histogram
        scores = brier_scores(state.curves, self.points, whole.sum(dim=2))
        censored, events = state.histogram.sum(dim=2).double()
        curve = kaplan_meier(events, censored)
        found: dict[str, Any] = {**state.compute(), "integrated_brier": integrated(scores[: len(GRID)], GRID)}
        for place, (time, edge) in enumerate(self.edges.items(), start=len(GRID)):
            found[f"auc_{time:g}"] = auc_until(state.histogram, edge, whole)
            found[f"brier_{time:g}"] = scores[place]
            expected = state.n - state.curves[:, :, 1 + place].sum().item()
            observed = state.n * (1 - curve[edge].item())
            found[f"calibration_{time:g}"] = observed / expected if expected > 0 and events.sum() else None
        return found

    def detailed(
        self, state: SurvivalState, seed: int, of_all: SurvivalState | None = None
    ) -> dict[str, Any]:
        """As of `Task`."""
        bound = state.concordance_error_bound()
        metrics = self.compute(state, of_all)
        return {**metrics, "concordance_error_bound": bound, "ci95": state.intervals(seed)}

    def described(self, state: SurvivalState) -> dict[str, Any]:
        """Curves of thirds of the patients by risk, with their log-rank test."""
        found = risk_groups(state.histogram)
        return {} if found is None else {"risk_groups": found}

    def paired(self, first: Tensor, second: Tensor, label: Tensor) -> tuple[float, ...]:
        """Of pairs in the right order."""
        time = torch.div(label, 2, rounding_mode="floor")
        return pair_sums((self.risk(first), self.risk(second)), time, self.stratum(label))

    def most_characters(self, cell: int, number: int) -> int:
        """As of `Task`."""
        curves = N_TIMES * (2 + 2 * len(self.points))
        return STRATA * (N_TIMES * N_RISKS * cell + (curves + 1) * number)


def equal_cuts(intervals: int) -> Tensor:
    """Edges ``(K + 1,)`` float32 of intervals of the same length, in bins of the time."""
    return torch.linspace(0, N_TIMES, intervals + 1)


def event_cuts(events: Tensor, intervals: int) -> Tensor:
    """Edges ``(K + 1,)`` float32 of intervals with about equally many events, in bins of the time.

    A tenth of each follows the clock: where there is no event, there is still an interval.

    Args:
        events: ``(T,)``, by bin of the time.
        intervals: K.

    Example:
        >>> events = torch.zeros(N_TIMES)
        >>> events[:32] = 1
        >>> event_cuts(events, 2).tolist()[1] < 32, event_cuts(torch.zeros(N_TIMES), 2).tolist()
        (True, [0.0, 64.0, 128.0])
    """
    total = events.double().sum()
    if total == 0:
        return equal_cuts(intervals)
    share = (1 - _EVEN) * events.double() / total + _EVEN / N_TIMES  # (T,)
    reached = torch.cat([torch.zeros(1, dtype=torch.float64), share.cumsum(dim=0)])  # (T + 1,)
    wanted = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)[1:-1]
    place = torch.bucketize(wanted, reached).clamp(1, N_TIMES) - 1  # (K - 1,) bin of each cut
    inner = place + (wanted - reached[place]) / share[place]
    ends = torch.tensor([0.0, N_TIMES], dtype=torch.float64)
    return torch.cat([ends[:1], inner, ends[1:]]).float()
