"""Steps of a server that takes the sites' mean change for a gradient: FedAvgM, FedAdam, FedYogi.

Pure functions of one tensor; who keeps the moments is `server.aggregation.strategies`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mmare.study.strategy_options import FedAdamOptions, FedAvgMOptions

__all__ = ["ServerOptimizer", "fedadam", "fedavgm", "fedyogi"]

Step = Callable[["Tensor", "Tensor", Sequence["Tensor"], int], "tuple[Tensor, tuple[Tensor, ...]]"]


@dataclass(frozen=True)
class ServerOptimizer:
    """How a server steps.

    Args:
        moments: Names of the tensors that it keeps of each parameter, zero at first.
        step: From a parameter, its mean change, its moments and how many steps it has made with this one, to
            the parameter and the moments after it.
    """

    moments: tuple[str, ...]
    step: Step


def fedavgm(options: FedAvgMOptions) -> ServerOptimizer:
    """Momentum (Hsu et al. 2019, "Measuring the effects of non-identical data distribution", section 4.2).

    v ← βv + Δ, θ ← θ + ηv. Without momentum and with step 1 it is the mean.

    Example:
        >>> import torch
        >>> from mmare.study.strategy_options import FedAvgMOptions
        >>> step = fedavgm(FedAvgMOptions(momentum=0.5)).step
        >>> step(torch.tensor([1.0]), torch.tensor([2.0]), [torch.tensor([4.0])], 2)
        (tensor([5.]), (tensor([4.]),))
    """

    def step(
        value: Tensor, change: Tensor, moments: Sequence[Tensor], _: int
    ) -> tuple[Tensor, tuple[Tensor]]:
        momentum = moments[0] * options.momentum + change
        return value + options.server_learning_rate * momentum, (momentum,)

    return ServerOptimizer(("momentum",), step)


def fedadam(options: FedAdamOptions) -> ServerOptimizer:
    """Adam (Reddi et al. 2021, "Adaptive federated optimization", algorithm 2).

    m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², θ ← θ + η_t m / (√v + τ). Different from the paper and as in
    Flower 1.41, so that runs compare: v starts at 0, not τ², and η_t = η √(1 - β₂^(t + 1)) / (1 - β₁^(t + 1))
    in step t = 1, 2, …. Steps are counted block by block: a block that no site sent makes none.
    """

    def step(
        value: Tensor, change: Tensor, moments: Sequence[Tensor], count: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first = options.beta1 * moments[0] + (1 - options.beta1) * change
        second = options.beta2 * moments[1] + (1 - options.beta2) * change.square()
        corrected = math.sqrt(1 - options.beta2 ** (count + 1)) / (1 - options.beta1 ** (count + 1))
        rate = options.server_learning_rate * corrected
        return value + rate * first / (second.sqrt() + options.tau), (first, second)

    return ServerOptimizer(("first", "second"), step)


def fedyogi(options: FedAdamOptions) -> ServerOptimizer:
    """Yogi (Reddi et al. 2021, algorithm 2).

    As `fedadam` with v ← v - (1 - β₂)Δ² sign(v - Δ²) and η as it is. As in Flower 1.41, v starts at 0.
    """

    def step(
        value: Tensor, change: Tensor, moments: Sequence[Tensor], _: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first = options.beta1 * moments[0] + (1 - options.beta1) * change
        square = change.square()
        second = moments[1] - (1 - options.beta2) * square * (moments[1] - square).sign()
        return value + options.server_learning_rate * first / (second.sqrt() + options.tau), (first, second)

    return ServerOptimizer(("first", "second"), step)
