"""Local training of one round: draws, steps, exposures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmare.adapters import add_noise
from mmare.blocks import exposures
from mmare.errors import SiteCode, SiteError
from mmare.study import OptimizerName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor
    from torch.optim import Optimizer

    from client.dataset import SiteData
    from mmare.model import MultimodalModel
    from mmare.study import Study, TrainingSpec

__all__ = ["Trained", "draw_rows", "make_optimizer", "optimizer_tensors", "restore_optimizer", "train_round"]


@dataclass(frozen=True)
class Trained:
    """What a round of training came to: draws, draws per block, mean loss over the draws."""

    samples: int
    exposures: dict[str, int]
    loss: float


def make_optimizer(model: MultimodalModel, training: TrainingSpec) -> Optimizer:
    """The study's optimiser; weight decay is added to the gradient (L2), as the thesis does."""
    adam = training.optimizer is OptimizerName.ADAM
    kind: Any = torch.optim.Adam if adam else torch.optim.SGD
    optimizer: Optimizer = kind(
        model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    return optimizer


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments as named tensors: parameter number, a dot, the moment's name."""
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value
        for index, moments in state.items()
        for key, value in moments.items()
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        SiteError: If the tensors are not those of this optimiser.
    """
    content = optimizer.state_dict()
    parameters = list(content["param_groups"][0]["params"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if not index.isdecimal() or int(index) not in parameters:
            raise SiteError(SiteCode.STATE)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": content["param_groups"]})


def draw_rows(label: Tensor, study: Study, generator: Generator) -> Tensor:
    """One epoch's rows: a permutation, or draws with replacement where the study weighs classes.

    Args:
        label: ``(N,)`` int64 of the train rows.
        study: Says how classes are weighed; ``balanced`` weighs by the local inverse frequency.
        generator: Source of the draws.

    Returns:
        ``(N,)`` int64 positions in ``label``.
    """
    oversample = study.training.oversample
    if oversample is None:
        return torch.randperm(len(label), generator=generator)
    if isinstance(oversample, str):
        counts = torch.bincount(label, minlength=len(study.classes))
        weights = 1.0 / counts.clamp_min(1).double()
    else:
        weights = torch.tensor([oversample.get(name, 1.0) for name in study.classes], dtype=torch.float64)
    return torch.multinomial(weights[label], len(label), replacement=True, generator=generator)


def train_round(
    model: MultimodalModel,
    optimizer: Optimizer,
    data: SiteData,
    rows: Tensor,
    study: Study,
    generator: Generator,
) -> Trained:
    """Train ``local_epochs`` over the given rows.

    Embeddings are scaled once: scaling is frozen during a run.

    Args:
        model: Changed in place.
        optimizer: Over the model's parameters.
        data: Of the site.
        rows: ``(N,)`` int64 row numbers to train on.
        study: Training settings.
        generator: Source of every draw: rows, noise, order of merging, dropout.

    Raises:
        SiteError: If there are no rows, or the loss is not finite.
    """
    if len(rows) == 0:
        raise SiteError(SiteCode.EMPTY)
    training = study.training
    device = next(model.parameters()).device
    present, label = data.present[rows].to(device), data.label[rows].to(device)
    scaled = model.scaling([part[rows].to(device) for part in data.embedding], present)  # (N, W)
    deviation = model.scaling.noise_deviation()
    model.train()
    drawn: list[Tensor] = []
    losses: list[Tensor] = []
    for _ in range(training.local_epochs):
        for batch in torch.split(draw_rows(data.label[rows], study, generator), training.batch_size):
            inputs = scaled[batch]
            if training.noise_probability > 0:
                inputs = add_noise(inputs, deviation, training.noise_probability, generator)
            optimizer.zero_grad(set_to_none=True)
            loss = model.loss(inputs, present[batch], label[batch], generator)
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
            losses.append(loss.detach() * len(batch))
            drawn.append(batch)
    total = torch.stack(losses).sum().item()
    if not torch.isfinite(torch.tensor(total)):
        raise SiteError(SiteCode.NON_FINITE)
    draws = torch.cat(drawn)
    return Trained(len(draws), exposures(model.blocks(), data.present[rows][draws]), total / len(draws))
