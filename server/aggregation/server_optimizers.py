"""Server optimisers that use the sites' mean change as a gradient: FedAvgM, FedAdam, FedYogi, FedSGD.

Pure functions of one tensor; `server.aggregation.strategies` keeps the moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from mmare.study.choices import OptimizerName
from mmare.study.strategy_options import FedAvgMOptions

if TYPE_CHECKING:
    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.study.specs import TrainingSpec
    from mmare.study.strategy_options import FedAdamOptions

__all__ = ["ServerOptimizer", "fedadam", "fedavgm", "fedsgd", "fedyogi", "signal_share", "steps_of"]

BETA1: Final = 0.9  # with the next two torch's defaults, as of a site's own optimiser
BETA2: Final = 0.999
EPSILON: Final = 1e-8

Step = Callable[["Tensor", "Tensor", Sequence["Tensor"], int], "tuple[Tensor, tuple[Tensor, ...]]"]


@dataclass(frozen=True)
class ServerOptimizer:
    """A server's step.

    Args:
        moments: Names of the tensors kept per parameter, initially zero.
        step: Maps a parameter, its mean change, its moments and the number of steps including this one to the
            new parameter and moments.
        damped: Whether FedSGD shortens its steps where few rows exercise a block; others follow the length of
            the gradient.
        unit: As of `mmare.models.blocks.Block`.
    """

    moments: tuple[str, ...]
    step: Step
    damped: bool = False
    unit: bool = False


def fedavgm(options: FedAvgMOptions) -> ServerOptimizer:
    """Momentum (Hsu et al. 2019, "Measuring the effects of non-identical data distribution", section 4.2).

    v ← βv + Δ, θ ← θ + ηv. With β = 0 and η = 1 it is the mean.

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

    m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², θ ← θ + η_t m / (√v + τ). Unlike the paper, but as in Flower
    1.41 for comparable runs, v starts at 0, not τ², and η_t = η √(1 - β₂^(t + 1)) / (1 - β₁^(t + 1)) in step
    t = 1, 2, …. Steps are counted per block: a block that no site sent makes none.
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

    As `fedadam`, with v ← v - (1 - β₂)Δ² sign(v - Δ²) and a constant η. As in Flower 1.41, v starts at 0.
    """

    def step(
        value: Tensor, change: Tensor, moments: Sequence[Tensor], _: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first = options.beta1 * moments[0] + (1 - options.beta1) * change
        square = change.square()
        second = moments[1] - (1 - options.beta2) * square * (moments[1] - square).sign()
        return value + options.server_learning_rate * first / (second.sqrt() + options.tau), (first, second)

    return ServerOptimizer(("first", "second"), step)


def fedsgd(training: TrainingSpec) -> ServerOptimizer:
    """The study's own optimiser, at the coordinator: the mean change is the negative pooled gradient.

    Adam (Kingma and Ba 2015), AdamW or plain gradient descent, as of torch.

    Example:
        >>> import torch
        >>> from mmare.study.specs import TrainingSpec
        >>> training = TrainingSpec(optimizer=OptimizerName.ADAMW, learning_rate=0.1, weight_decay=0.0)
        >>> step, zero = fedsgd(training).step, torch.zeros(1)
        >>> value, _ = step(torch.tensor([1.0]), torch.tensor([-5.0]), [zero, zero], 1)
        >>> value
        tensor([0.9000])
    """
    rate, decay = training.learning_rate, training.weight_decay

    def step(
        value: Tensor, change: Tensor, moments: Sequence[Tensor], count: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if training.optimizer is OptimizerName.ADAMW:
            value = value * (1 - rate * decay)
        else:
            change = change - decay * value
        if training.optimizer is OptimizerName.SGD:
            return value + rate * change, ()
        first = BETA1 * moments[0] + (1 - BETA1) * change
        second = BETA2 * moments[1] + (1 - BETA2) * change.square()
        root = (second / (1 - BETA2**count)).sqrt() + EPSILON
        return value + rate / (1 - BETA1**count) * first / root, (first, second)

    names = () if training.optimizer is OptimizerName.SGD else ("first", "second")
    return ServerOptimizer(names, step, damped=True)


def signal_share(gradient: Tensor, rows: float, samples: float, residual: float) -> float:
    """Share of a first gradient that is no noise, by which its block's steps are shortened; 0 to 1.

    Of Q, the squared length over that expected where the inputs tell nothing (the statistic of the global
    test, Goeman et al. 2004), 1 - 1/Q: the positive part of James and Stein's factor.

    Args:
        gradient: Mean over all samples, in weights of inputs of mean square length 1.
        rows: Samples that have the inputs.
        samples: All of them.
        residual: `mmare.tasks.base.Task.residual`.

    Example:
        >>> import torch
        >>> round(signal_share(torch.tensor([0.3, 0.1]), 50, 100, 0.5), 6)
        0.975
    """
    expected = residual * rows / samples**2
    found = gradient.double().square().sum().item()
    return max(1 - expected / found, 0.0) if found > 0 else 0.0


def steps_of(model: MultimodalModel, training: TrainingSpec) -> dict[str, ServerOptimizer]:
    """By which FedSGD steps each block: as its objective trains it, or by gradient descent with momentum."""
    found = {
        block: fedsgd(replace(training, **objective.training))
        for phase in model.phases()
        for objective in phase.objectives
        for block in objective.blocks
    }
    return found | {
        block.name: replace(fedavgm(FedAvgMOptions(server_learning_rate=block.descent)), unit=block.unit)
        for block in model.blocks()
        if block.descent is not None
    }
