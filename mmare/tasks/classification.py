"""Classes: one logit each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mmare.metrics.coarse import coarsened
from mmare.metrics.intervals import bootstrap_intervals
from mmare.metrics.state import BINARY, N_BINS, N_CALIBRATION_BINS, MetricState
from mmare.tasks.base import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["Classification", "agreement"]


class Classification(Task[MetricState]):
    """Labels ``(B,)`` are int64 class indices.

    Args:
        classes: K.
        positive: Class of binary f1, precision and recall.
    """

    PARTS = ("confusion", "histogram", "losses", "calibration")
    COUNTS = ("confusion", "histogram")

    def __init__(self, classes: int, positive: int | None = None) -> None:
        super().__init__(classes, classes)
        self.positive = positive

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross entropy."""
        return functional.cross_entropy(logits, label)

    def agreement(self, whole: Tensor, subset: Tensor, temperature: float) -> Tensor:
        """As `agreement`."""
        return agreement(whole, subset, temperature)

    def prediction(self, logits: Tensor) -> Tensor:
        """Class probabilities ``(B, K)``."""
        return logits.softmax(dim=1)

    def stratum(self, label: Tensor) -> Tensor:
        """The class."""
        return label

    def state(self, logits: Tensor, label: Tensor) -> MetricState:
        """As of `Task`."""
        return MetricState.of(logits, label)

    def empty(self) -> MetricState:
        """As of `Task`."""
        return MetricState.empty(self.outputs)

    def read(self, content: object) -> MetricState:
        """As of `Task`."""
        return MetricState.from_dict(content, self.outputs)

    def restored(self, parts: Mapping[str, Tensor], withheld: tuple[int, ...]) -> MetricState:
        """As of `Task`."""
        confusion, histogram = (parts[name].round().long() for name in self.COUNTS)
        if min(confusion.min().item(), histogram.min().item()) < 0:
            raise ValueError("a sum of counts below zero")
        return MetricState(confusion, histogram, parts["losses"], parts["calibration"], withheld=withheld)

    def coarsened(self, state: MetricState, limit: int) -> MetricState:
        """As of `Task`."""
        return coarsened(state, limit)

    def told(self, state: MetricState) -> Tensor:
        """As of `Task`; of two classes a group may lie on both sides of one half."""
        rows = state.calibration[:, 0]  # (K, C)
        counts = [rows[rows > 0]]
        for bins in state.histogram:  # (K, N) of a true class
            held = [side[side > 0] for side in bins]
            if state.n_classes == BINARY:
                low, high = held
                middle = torch.cat([low[-1:], high[:1]]).sum(dim=0, keepdim=True)
                counts += [low[:-1], middle, high[1:]]
            else:
                counts += held
        return torch.cat(counts)

    def compute(self, state: MetricState, of_all: MetricState | None = None) -> dict[str, Any]:  # noqa: ARG002 - rows stand alone
        """As of `Task`."""
        return state.compute(self.positive)

    def detailed(self, state: MetricState, seed: int, of_all: MetricState | None = None) -> dict[str, Any]:  # noqa: ARG002 - as above
        """As of `Task`."""
        return {
            **state.compute(self.positive),
            "auc_error_bound": state.auc_error_bound(),  # since scores are binned
            "ci95": bootstrap_intervals(state, self.positive, seed),
        }

    def most_characters(self, cell: int, number: int) -> int:
        """As of `Task`."""
        classes = self.outputs
        numbers = classes * (N_CALIBRATION_BINS * 3 + classes + 8)
        return classes * classes * N_BINS * cell + numbers * number


def agreement(whole: Tensor, subset: Tensor, temperature: float) -> Tensor:
    """Self-distillation loss between logits ``(B, K)`` from all modalities and from a subset; 0 if equal.

    The Kullback-Leibler divergence of softened class probabilities, times the squared temperature so that its
    gradient keeps its scale (Hinton et al. 2015, section 2), averaged over patients. ``whole`` is the teacher
    and gets no gradient.

    Example:
        >>> logits = torch.tensor([[1.0, -1.0]])
        >>> agreement(logits, logits, temperature=2.0).item()
        0.0
    """
    teacher = functional.log_softmax(whole.detach() / temperature, dim=1)
    student = functional.log_softmax(subset / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
