"""The optimisers of a phase, one per objective; their moments stay at the site, keyed by parameter name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mmare.errors import SiteCode, SiteError
from mmare.study.choices import OptimizerName
from mmare.wire.sharing import GRADIENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from mmare.models.base import MultimodalModel
    from mmare.models.blocks import Block
    from mmare.models.phases import Objective, Phase
    from mmare.study.specs import TrainingSpec

__all__ = ["Adam", "GradientDescent", "MeanGradient", "PhaseOptimizers", "Stepper"]


class Stepper(ABC):
    """Steps parameters by their gradients; those without one stay.

    PyTorch's own optimisers do the same, but the first to be made imports its compiler, which takes seconds,
    and each step gathers anew what stays the same: of a small model, most of the step.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = list(parameters)
        self.state: dict[Parameter, dict[str, Tensor]] = {}

    def zero_grad(self, *, set_to_none: bool = True) -> None:  # noqa: ARG002 - as PyTorch's
        """Forget the gradients."""
        for value in self.parameters:
            value.grad = None

    def restore(self, state: Mapping[Parameter, dict[str, Tensor]]) -> None:
        """Take the moments by parameter; they will be changed."""
        self.state = {
            parameter: {name: moment.to(parameter.device) for name, moment in moments.items()}
            for parameter, moments in state.items()
        }

    @abstractmethod
    def step(self) -> None:
        """Step all parameters that have a gradient."""


class Adam(Stepper):
    """PyTorch's fused Adam or, with decoupled weight decay, AdamW, bit for bit."""

    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(
        self, parameters: Iterable[Parameter], rate: float, weight_decay: float, *, decoupled: bool
    ) -> None:
        super().__init__(parameters)
        self.rate, self.weight_decay = rate, weight_decay
        self.decoupled = decoupled
        self._fused = torch._fused_adamw_ if decoupled else torch._fused_adam_
        self._gathered: tuple[list[Tensor], ...] = ()  # first and second moments, steps; if all have them

    def restore(self, state: Mapping[Parameter, dict[str, Tensor]]) -> None:
        """As of `Stepper`."""
        super().restore(state)
        self._gathered = ()

    @torch.no_grad()
    def step(self) -> None:
        """As of `Stepper`."""
        stepped = [value for value in self.parameters if value.grad is not None]
        moments = self._gathered if self._gathered and len(stepped) == len(self.parameters) else None
        moments = moments or self._gather(stepped)
        averages, squares, steps = moments
        torch._foreach_add_(steps, 1)
        self._fused(
            [*stepped],
            [value.grad for value in stepped if value.grad is not None],
            averages,
            squares,
            [],
            steps,
            lr=self.rate,
            beta1=self.BETAS[0],
            beta2=self.BETAS[1],
            weight_decay=self.weight_decay,
            eps=self.EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def _gather(self, stepped: list[Parameter]) -> tuple[list[Tensor], ...]:
        """Moments of these parameters, zeros at first."""
        for value in stepped:
            if value not in self.state:
                self.state[value] = {
                    "step": torch.zeros((), device=value.device),
                    "exp_avg": torch.zeros_like(value),
                    "exp_avg_sq": torch.zeros_like(value),
                }
        found = [self.state[value] for value in stepped]
        moments = tuple([each[name] for each in found] for name in ("exp_avg", "exp_avg_sq", "step"))
        self._gathered = moments if len(stepped) == len(self.parameters) else ()
        return moments


class GradientDescent(Stepper):
    """PyTorch's fused SGD without momentum, bit for bit."""

    def __init__(self, parameters: Iterable[Parameter], rate: float, weight_decay: float) -> None:
        super().__init__(parameters)
        self.rate, self.weight_decay = rate, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """As of `Stepper`."""
        stepped = [value for value in self.parameters if value.grad is not None]
        torch._fused_sgd_(
            [*stepped],
            [value.grad for value in stepped if value.grad is not None],
            [],
            weight_decay=self.weight_decay,
            momentum=0.0,
            lr=self.rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


class MeanGradient(Stepper):
    """Adds up the gradients of a round's batches; parameters move at its end only, by -1024 times the sum."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        super().__init__(parameters)
        self.share = 1.0  # of the round's draws in the batch
        self._sums: dict[Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Add the gradients of a batch."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                total = self._sums.setdefault(parameter, torch.zeros_like(parameter))
                total.add_(parameter.grad, alpha=self.share)

    @torch.no_grad()
    def finish(self) -> None:
        """Move the parameters."""
        for parameter, total in self._sums.items():
            parameter.sub_(total, alpha=GRADIENTS)


class PhaseOptimizers:
    """Steps the blocks of a phase; all other parameters are frozen.

    Args:
        model: Whose parameters are stepped.
        phase: Of the round.
        training: Of the study; an objective may override it.
        rate_factor: Multiplies every learning rate.
        gradients: Whether the coordinator makes the steps: here parameters tell the mean gradient only.
    """

    def __init__(
        self,
        model: MultimodalModel,
        phase: Phase,
        training: TrainingSpec,
        rate_factor: float = 1.0,
        *,
        gradients: bool = False,
    ) -> None:
        self.phase = phase
        self._clip_norm = training.clip_norm
        blocks = {block.name: block for block in model.blocks()}
        parameters = dict(model.named_parameters())
        self._named = [
            {name: parameters[name] for block in objective.blocks for name in blocks[block].parameters}
            for objective in phase.objectives
        ]
        trained = {name for named in self._named for name in named}
        for name, value in parameters.items():
            value.requires_grad_(name in trained)
            value.grad = None
        self.steps: list[tuple[Objective, Stepper]] = [
            (
                objective,
                MeanGradient(named.values())
                if gradients
                else _optimizer(named.values(), objective, training, rate_factor),
            )
            for objective, named in zip(phase.objectives, self._named, strict=True)
        ]

    def clip(self, objective: Objective) -> None:
        """Clip the gradient norm of an objective's parameters, if the study sets a limit."""
        if self._clip_norm > 0:
            index = [each for each, _ in self.steps].index(objective)
            torch.nn.utils.clip_grad_norm_(self._named[index].values(), self._clip_norm)

    def weigh(self, share: float) -> None:
        """Say which share of the round's draws the next batch is."""
        for _, optimizer in self.steps:
            if isinstance(optimizer, MeanGradient):
                optimizer.share = share

    def finish(self) -> None:
        """End the round: move the parameters, if they have not moved with every batch."""
        for _, optimizer in self.steps:
            if isinstance(optimizer, MeanGradient):
                optimizer.finish()

    def tensors(self) -> dict[str, Tensor]:
        """The moments: ``phase/objective/parameter/moment``."""
        return {
            f"{self._prefix(index)}{name}/{moment}": value
            for index, (_, optimizer) in enumerate(self.steps)
            for name, parameter in self._named[index].items()
            for moment, value in optimizer.state.get(parameter, {}).items()
        }

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned; moments of another phase are ignored.

        Raises:
            SiteError: If moments are not those of the phase's parameters.
        """
        for index, (_, optimizer) in enumerate(self.steps):
            prefix = self._prefix(index)
            state: dict[Parameter, dict[str, Tensor]] = {}
            for key, value in kept.items():
                if key.startswith(prefix):
                    name, _, moment = key.removeprefix(prefix).rpartition("/")
                    if name not in self._named[index]:
                        raise SiteError(SiteCode.STATE)
                    state.setdefault(self._named[index][name], {})[moment] = (
                        value.clone()
                    )  # kept must not change
            optimizer.restore(state)

    def untouched(self, blocks: Iterable[Block], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The moments as in `tensors`, those of ``blocks`` reset to ``kept``, the state before the round.

        Moments that are not in ``kept`` are dropped or, for a single column, zero.
        """
        found = self.tensors()
        columns = {(name, block.column) for block in blocks for name in block.parameters}
        whole = {name for name, column in columns if column is None}
        for key in list(found):
            name = key.split("/")[2]
            if name in whole:
                found.pop(key)
                if key in kept:
                    found[key] = kept[key]
        for key, value in found.items():
            name = key.split("/")[2]
            of_name = [column for other, column in columns if other == name and column is not None]
            if of_name and value.ndim > 1:
                before = kept.get(key, torch.zeros_like(value)).to(value.device)
                value[:, of_name] = before[:, of_name]
                found[key] = value
        return found

    def _prefix(self, index: int) -> str:
        return f"{self.phase.name}/{index}/"


def _optimizer(
    parameters: Iterable[Parameter], objective: Objective, training: TrainingSpec, rate_factor: float
) -> Stepper:
    own = replace(training, **objective.training)
    rate = own.learning_rate * rate_factor
    if own.optimizer == OptimizerName.SGD:
        return GradientDescent(parameters, rate, own.weight_decay)
    return Adam(parameters, rate, own.weight_decay, decoupled=own.optimizer == OptimizerName.ADAMW)
