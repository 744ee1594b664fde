"""Which parameters of a model are federated, and how they travel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmare.errors import StudyError
from mmare.models.blocks import without_parameters
from mmare.study.choices import OptimizerState, Wire
from mmare.study.strategy_options import FedSGDOptions, strategy_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.models.blocks import Block
    from mmare.study.study import Study

__all__ = [
    "GRADIENTS",
    "every_round",
    "federated_blocks",
    "from_wire",
    "keeps_state",
    "local_parameters",
    "on_wire",
    "steps_at_coordinator",
]

# By how many times its gradient a site of FedSGD moves a parameter: what then differs has the digits of the
# gradient, not those of a parameter that is a million times as large. A power of two, so nothing is rounded.
GRADIENTS: Final = 1024.0


def local_parameters(model: MultimodalModel, study: Study) -> frozenset[str]:
    """Names of the parameters that stay at each site."""
    return frozenset(name for part in study.federation.local for name in model.part(part))


def federated_blocks(model: MultimodalModel, study: Study) -> tuple[Block, ...]:
    """The model's blocks without the parameters that stay at the sites.

    Raises:
        StudyError: If the model has no such part, or nothing is left to federate.
    """
    for part in study.federation.local:
        if not model.part(part):
            raise StudyError(f"[federation] local names {part!r}, of which {study.model.name} has none")
    blocks = without_parameters(model.blocks(), local_parameters(model, study))
    if not blocks:
        raise StudyError(
            f"[federation] local keeps all of {study.model.name} at the sites; expected a part to federate"
        )
    return blocks


def every_round(_run: str, _number: int) -> bool:
    """Whether both ends write a round of a run to the disk: a site's work is not to be lost."""
    return True


def keeps_state(study: Study) -> bool:
    """Whether sites keep optimiser moments or local parts between rounds."""
    moments = study.training.optimizer_state is OptimizerState.KEEP and not steps_at_coordinator(study)
    return moments or bool(study.federation.local)


def steps_at_coordinator(study: Study) -> bool:
    """Whether sites send gradients, along which the coordinator makes the optimiser's step."""
    options = strategy_options(study.federation.strategy, study.federation.options)
    return isinstance(options, FedSGDOptions)


def on_wire(changed: Mapping[str, Tensor], origin: Mapping[str, Tensor], wire: Wire) -> dict[str, Tensor]:
    """Trained tensors for sending: unchanged, or their change in half precision.

    Half precision keeps three digits; a round's change is hundreds of times smaller than its parameter.

    Example:
        >>> import torch
        >>> on_wire({"w": torch.tensor([1.5])}, {"w": torch.tensor([1.0])}, Wire.FLOAT16)
        {'w': tensor([0.5000], dtype=torch.float16)}
    """
    if wire is Wire.FLOAT32:
        return {name: value.cpu() for name, value in changed.items()}
    return {name: (value.cpu() - origin[name]).half() for name, value in changed.items()}


def from_wire(received: Mapping[str, Tensor], origin: Mapping[str, Tensor], wire: Wire) -> dict[str, Tensor]:
    """Restore the model tensors that `on_wire` sent.

    Example:
        >>> import torch
        >>> from_wire({"w": torch.tensor([0.5]).half()}, {"w": torch.tensor([1.0])}, Wire.FLOAT16)
        {'w': tensor([1.5000])}
    """
    if wire is Wire.FLOAT32:
        return dict(received)
    return {name: origin[name] + value.float() for name, value in received.items()}
