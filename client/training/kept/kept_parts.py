"""What a round leaves at its site: parts of the model that stay there, and what it must not change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmare.errors import SiteCode, SiteError
from mmare.models.blocks import block_tensors
from mmare.study.choices import OptimizerState, Untouched
from mmare.wire.sharing import local_parameters
from mmare.wire.tensors import copy_tensors, trained_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from client.training.model_pool import Origin
    from client.training.optimizers import PhaseOptimizers
    from client.training.trainer import TrainedRound
    from mmare.models.base import MultimodalModel
    from mmare.models.blocks import Block
    from mmare.study.study import Study

__all__ = ["LOCAL", "place_local", "revert_untouched", "state_of"]

LOCAL: Final = "local/"  # prefix, in a stored state, of parameters that stay at the site


def place_local(
    model: MultimodalModel, study: Study, kept: dict[str, Tensor], origin: Callable[[], Origin]
) -> dict[str, Tensor]:
    """Load the parts that stay at this site: as stored, or as runs of the study begin.

    Raises:
        SiteError: If the stored state has other parts.
    """
    local = local_parameters(model, study)
    if not local:
        return {}
    values = {name.removeprefix(LOCAL): kept[name] for name in kept if name.startswith(LOCAL)}
    if not values:
        fresh = origin().tensors
        values = {name: fresh[name] for name in local}
    if set(values) != local:
        raise SiteError(SiteCode.STATE)
    copy_tensors({name: value for name, value in trained_tensors(model).items() if name in local}, values)
    return values


def revert_untouched(
    model: MultimodalModel,
    optimizers: PhaseOptimizers,
    trained: TrainedRound,
    study: Study,
    before: dict[str, Tensor],
    kept: dict[str, Tensor],
) -> tuple[list[Block], dict[str, Tensor]]:
    """Revert what no sample, or too few patients, exercised; returns the changed blocks and moments to store.

    What drifts is sent all the same, but not what too few patients changed.
    """
    blocks = [block for block in model.blocks() if block.name in optimizers.phase.blocks]
    drifts = study.federation.untouched is Untouched.DRIFT
    exercised = [block for block in blocks if trained.exposures[block.name] > 0]
    untouched = [
        block
        for block in blocks
        if (block.name in trained.small if drifts else trained.exposures[block.name] == 0)
    ]
    copy_tensors(block_tensors(untouched, trained_tensors(model)), block_tensors(untouched, before))
    return blocks if drifts else exercised, optimizers.untouched(untouched, kept)


def state_of(model: MultimodalModel, study: Study, moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What to store after a round; training will not change it: moments die with their optimiser."""
    local = local_parameters(model, study)
    kept = {name: value for name, value in trained_tensors(model).items() if name in local}
    state = {f"{LOCAL}{name}": value.to("cpu", copy=True).contiguous() for name, value in kept.items()}
    if study.training.optimizer_state is OptimizerState.KEEP:
        state |= {name: value.to("cpu").contiguous() for name, value in moments.items()}
    return state
