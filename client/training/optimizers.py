"""The optimisers of a phase, one per objective; their moments stay at the site, keyed by parameter name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mmare.errors import SiteCode, SiteError
from mmare.study.choices import OptimizerName
from mmare.wire.sharing import GRADIENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from mmare.models.base import MultimodalModel
    from mmare.models.blocks import Block
    from mmare.models.phases import Objective, Phase
    from mmare.study.specs import TrainingSpec

__all__ = ["MeanGradient", "PhaseOptimizers"]


class MeanGradient:
    """Adds up the gradients of a round's batches; parameters move at its end only, by -1024 times the sum.

    Not one of torch's optimisers, the first of which loads the compiler: three seconds in every process.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.share = 1.0  # of the round's draws in the batch
        self.state: dict[Parameter, dict[str, Tensor]] = {}  # no moments
        self._parameters = list(parameters)
        self._sums: dict[Parameter, Tensor] = {}

    def zero_grad(self, *, set_to_none: bool = True) -> None:  # noqa: ARG002 - as torch's
        """Forget the gradients of the batch before."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Add the gradients of a batch."""
        for parameter in self._parameters:
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
        self.steps: list[tuple[Objective, Optimizer | MeanGradient]] = [
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
            if isinstance(value, torch.Tensor)
        }

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned; moments of another phase are ignored.

        Raises:
            SiteError: If moments are not those of the phase's parameters.
        """
        for index, (_, optimizer) in enumerate(self.steps):
            if isinstance(optimizer, MeanGradient):
                continue
            prefix = self._prefix(index)
            order = {name: number for number, name in enumerate(self._named[index])}
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in kept.items():
                if key.startswith(prefix):
                    name, _, moment = key.removeprefix(prefix).rpartition("/")
                    if name not in order:
                        raise SiteError(SiteCode.STATE)
                    state.setdefault(order[name], {})[moment] = value.clone()  # must not change kept
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})

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
) -> Optimizer:
    own = replace(training, **objective.training)
    kinds: dict[str, Any] = {
        OptimizerName.ADAM: torch.optim.Adam,
        OptimizerName.ADAMW: torch.optim.AdamW,
        OptimizerName.SGD: torch.optim.SGD,
    }
    optimizer: Optimizer = kinds[own.optimizer](
        list(parameters),
        lr=own.learning_rate * rate_factor,
        weight_decay=own.weight_decay,
        fused=True,
    )
    return optimizer
