"""What a site adds to a secure sum, as numbers by name, of an answer that passed the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmare.models.blocks import block_tensors, without_parameters
from mmare.wire.messages import Statistics
from mmare.wire.sharing import local_parameters
from mmare.wire.sums import evaluation_values, moments_values, training_values
from mmare.wire.tensors import global_tensors, layout_of, unpack

if TYPE_CHECKING:
    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study
    from mmare.wire.messages import Request, Update

__all__ = ["summands_of"]


def summands_of(
    request: Request,
    received: bytes,
    study: Study,
    answer: Update | Statistics,
    payload: bytes,
    model: MultimodalModel,
) -> dict[str, Tensor]:
    """Moments; or metric states and, after training, changes and their weights."""
    if isinstance(answer, Statistics):
        return moments_values(answer)
    values = evaluation_values(answer.evaluations, study)
    if request.train:
        values |= training_values(model, study, answer, _changes(model, study, answer, received, payload))
    return values


def _changes(
    model: MultimodalModel, study: Study, update: Update, received: bytes, payload: bytes
) -> dict[str, Tensor]:
    """What an update's tensors change, by name."""
    local = local_parameters(model, study)
    sent = [block for block in without_parameters(model.blocks(), local) if block.name in update.blocks]
    flat = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in (received, payload)]
    origin = block_tensors(sent, unpack(flat[0], layout_of(global_tensors(model, without=local))))
    changed = unpack(flat[1], layout_of(origin))
    return {name: changed[name] - value for name, value in origin.items()}
