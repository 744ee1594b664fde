"""Whether a model that arrives descends from what the site has seen.

Before round 1 it is the seed's own, with what fits of the study's start model in it, bit for bit, and
afterwards each round moves it by a bounded step. The
buffers of the scaling are the coordinator's, pooled from all sites: they cannot be recomputed, but must stay
as they first arrived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mmare.wire.sharing import steps_at_coordinator

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from mmare.study.study import Study
    from mmare.wire.messages import Request

__all__ = ["DescentError", "SeenModel", "check_descent", "check_fixed", "model_number", "reach_of"]

# Adam moves no parameter by much more than the learning rate in a step. On MMIST by hospital the global
# model moves by 0.6 to 1.6 such steps an epoch, with a server's momentum by 3 and more; 6,400 rows take 100.
STEPS: Final = 100
MOMENTUM_STEPS: Final = 10  # one over one less the momentum


class DescentError(ValueError):
    """A model from elsewhere; the message is for the site's own log."""


@dataclass(frozen=True)
class SeenModel:
    """A model that the site was sent in a run, or what the run begins with."""

    number: int  # rounds that made it
    tensors: Mapping[str, Tensor]
    sent: bool = True  # or built here, its scaling not filled in


def model_number(request: Request) -> int:
    """How many rounds made the model of a request: a round starts from that of the round before."""
    return request.round if request.final else request.round - 1


def reach_of(study: Study, parameters: int) -> float:
    """Largest L2 distance by which a round may move a model: the study's own, or 100 full steps an epoch.

    A linear term, too, descends under FedSGD: of M modalities by the step 1 / (M + 1), which momentum makes
    ten times as long, along a gradient no longer than the root of 2 (M + 1).
    """
    training = study.training
    usual = STEPS * training.local_epochs * training.learning_rate * math.sqrt(parameters)
    if steps_at_coordinator(study):
        usual += MOMENTUM_STEPS * math.sqrt(2 / (len(study.modalities) + 1))
    return usual if study.privacy.max_step is None else study.privacy.max_step


def check_descent(
    received: Mapping[str, Tensor], number: int, seen: SeenModel, scaling: Collection[str], study: Study
) -> None:
    """Check a model made by ``number`` rounds.

    Args:
        received: By name.
        number: Of rounds.
        seen: The last model of the same run, or what it begins with.
        scaling: Names of the buffers of the scaling.
        study: Names the largest step of a round.

    Raises:
        DescentError: If the model is not that beginning before the first round, its scaling changed during
            the run, or it lies further from ``seen`` than the rounds between them reach.
    """
    others = [name for name in received if name not in scaling]
    if number == 0 and not all(_same_bits(received[name], seen.tensors[name]) for name in others):
        raise DescentError("the first model is not the one that the study begins with, bit for bit")
    if seen.sent and not all(_same_bits(received[name], seen.tensors[name]) for name in scaling):
        raise DescentError("the scaling changed during the run")
    squares = ((received[name].double() - seen.tensors[name]).square().sum().item() for name in others)
    distance = math.sqrt(sum(squares))
    reach = reach_of(study, sum(received[name].numel() for name in others))
    reach *= max(abs(number - seen.number), 1)
    if not distance <= reach:  # NaN compares as false
        raise DescentError(
            f"a model {distance:.6g} away from that of round {seen.number}, expected at most {reach:g}"
        )


def check_fixed(received: Mapping[str, Tensor], origin: Mapping[str, Tensor], fixed: Collection[str]) -> None:
    """Check that scaling which a run has from its start model is still that; raises `DescentError`."""
    if not all(_same_bits(received[name], origin[name]) for name in fixed):
        raise DescentError("the scaling is not that of the start model")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
