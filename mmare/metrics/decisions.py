"""Calibrated probabilities, calls and prediction sets: what a released model adds to its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Calibration", "Judgement", "OperatingPoint", "PredictionSets", "judge"]


@dataclass(frozen=True)
class Calibration:
    """Temperature scaling (Guo et al. 2017) with a shift of each class's logit (of two classes: Platt's)."""

    temperature: float
    bias: tuple[float, ...]  # one per class, added to logits / temperature

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities ``(B, K)`` float64 of logits ``(B, K)``.

        Example:
            >>> logits = torch.tensor([[0.0, 2.0]])
            >>> Calibration(2.0, (0.0, -1.0)).probabilities(logits).tolist()
            [[0.5, 0.5]]
        """
        scaled = logits.double() / self.temperature + torch.tensor(self.bias, dtype=torch.float64)
        return scaled.softmax(dim=1)


@dataclass(frozen=True)
class OperatingPoint:
    """From which probability of the positive class on a patient is called positive."""

    rule: str  # by which it was chosen on the validation rows
    threshold: float  # of the probability before calibration
    calibrated: float  # the same point after calibration


@dataclass(frozen=True)
class PredictionSets:
    """Class-conditional split conformal prediction: a class is in the set if its probability is high enough.

    Args:
        level: Share of the patients of each class whose set is to hold it.
        thresholds: Per class, of the probability before calibration; none where validation has too few
            patients of it, and then it is in every set.
    """

    level: float
    thresholds: tuple[float | None, ...]


@dataclass(frozen=True)
class Judgement:
    """What a released model says of B patients."""

    raw: Tensor  # (B, K) float64, probabilities as the model gives them
    probability: Tensor  # (B, K) float64, calibrated; raw if the model is not
    call: Tensor  # (B,) int64, class at the operating point, or the most probable one without
    in_set: Tensor | None  # (B, K) bool


def judge(
    logits: Tensor,
    positive: int | None = None,
    calibration: Calibration | None = None,
    point: OperatingPoint | None = None,
    sets: PredictionSets | None = None,
) -> Judgement:
    """Judge logits ``(B, K)`` by what a package holds; an operating point needs two classes and a positive.

    Example:
        >>> point = OperatingPoint("sensitivity >= 0.9", threshold=0.2, calibrated=0.2)
        >>> judge(torch.tensor([[1.0, 0.0]]), positive=1, point=point).call.tolist()
        [1]
    """
    raw = logits.double().softmax(dim=1)  # (B, K)
    call = logits.argmax(dim=1)  # (B,)
    if point is not None and positive is not None:
        call = torch.where(raw[:, positive] >= point.threshold, positive, 1 - positive)
    in_set = None
    if sets is not None:
        in_set = raw >= torch.tensor([each or 0.0 for each in sets.thresholds], dtype=torch.float64)
    return Judgement(raw, raw if calibration is None else calibration.probabilities(logits), call, in_set)
