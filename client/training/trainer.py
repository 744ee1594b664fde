"""Local training of one round: sampling, steps, exposures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from client.training.scaled_rows import scaled_rows
from client.training.scans import fuse_inputs
from mmare.errors import SiteCode, SiteError
from mmare.models.adapters import add_noise
from mmare.models.blocks import exposures
from mmare.models.hiding.subsets import hide_modalities, keep_subset
from mmare.study.rules import SUBSET

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from client.data.dataset import SiteData
    from client.training.optimizers import PhaseOptimizers
    from mmare.models.base import MultimodalModel
    from mmare.models.blocks import Block
    from mmare.study.study import Study

__all__ = ["ProximalTerm", "TrainedRound", "draw_rows", "hiding_of", "pull_back", "train_round"]

TEMPERATURE: Final = 2.0  # of self-distillation (Hinton et al. 2015)


@dataclass(frozen=True)
class TrainedRound:
    """Result of a round: draws, draws and patients per block of the phase, mean loss over the draws.

    Under differential privacy the draws are those expected, in every block, and the loss is not told.
    """

    samples: int
    exposures: dict[str, int]
    loss: float | None
    patients: dict[str, int]  # distinct
    small: frozenset[str] = frozenset()  # blocks that too few patients exercised

    def of_enough(self, limit: int) -> TrainedRound:
        """The result as if no sample had exercised the blocks of fewer than ``limit`` patients."""
        small = frozenset(name for name, count in self.patients.items() if 0 < count < limit)
        exposures = {name: 0 if name in small else count for name, count in self.exposures.items()}
        return replace(self, exposures=exposures, small=small)


@dataclass(frozen=True)
class ProximalTerm:
    """The proximal term of FedProx: gradient ``strength * (parameter - anchor)``."""

    strength: float
    anchor: Mapping[str, Tensor]


def draw_rows(label: Tensor, study: Study, generator: Generator) -> Tensor:
    """One epoch's rows, as ``(N,)`` int64 positions in the train labels ``(N,)``.

    A permutation, or draws with replacement if the study weighs classes; ``oversample = "balanced"`` weighs
    by the local inverse frequency.
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
    optimizers: PhaseOptimizers,
    data: SiteData,
    rows: Tensor,
    study: Study,
    generator: Generator,
    pull: ProximalTerm | None = None,
) -> TrainedRound:
    """Train ``local_epochs`` over the given rows; ``model`` changes in place.

    Embeddings are scaled once: scaling is frozen during a run. ``generator`` is the source of every draw:
    rows, noise, hidden modalities, order of merging, dropout.

    Raises:
        SiteError: If there are no rows, or the loss is not finite.
    """
    if len(rows) == 0:
        raise SiteError(SiteCode.EMPTY)
    training = study.training
    device = next(model.parameters()).device
    present, label = data.present[rows].to(device), data.label[rows].to(device)
    scaled = scaled_rows(model.scaling, data, rows)  # (N, W)
    present = model.scaling.visible(present, someone=True)  # a group may have too few rows at every site
    deviation = model.scaling.noise_deviation()
    last = optimizers.phase.rounds is None  # parts trained separately see complete patients
    hiding = hiding_of(study) if last else None
    weight = training.distillation if last else 0.0
    whole = hiding is None or weight > 0  # the complete patient gives a gradient, too
    model.train()
    seen: list[Tensor] = []  # presence of every draw
    fewer: list[Tensor] = []  # the same with modalities hidden
    losses: list[Tensor] = []
    drawn_rows: list[Tensor] = []
    for _ in range(training.local_epochs):
        for batch in torch.split(draw_rows(data.label[rows], study, generator), training.batch_size):
            inputs, there = scaled.index_select(0, batch.to(device)), present[batch]
            if data.bags:
                inputs = fuse_inputs(model, inputs, data.bags, rows[batch], generator)
            if training.noise_probability > 0:
                inputs = add_noise(inputs, deviation, training.noise_probability, generator)
            fewer.append(there if hiding is None else hiding(there, generator))
            seen.append(there if whole else fewer[-1])
            drawn_rows.append(batch)
            drawn = _TrainBatch(inputs, seen[-1], fewer[-1], label[batch])
            optimizers.weigh(len(batch) / len(rows))
            losses.append(_step(model, optimizers, drawn, generator, weight, pull) * len(batch))
    optimizers.finish()
    total = torch.stack(losses).sum().item()
    if not torch.isfinite(torch.tensor(total)):
        raise SiteError(SiteCode.NON_FINITE)
    blocks = [block for block in model.blocks() if block.name in optimizers.phase.blocks]
    passes = [torch.cat(part).cpu() for part in ([seen, fewer] if hiding is not None and whole else [seen])]
    counts = [exposures(blocks, part) for part in passes]
    samples = sum(map(len, seen))
    patients = patients_of(blocks, torch.cat(drawn_rows), *passes)
    # A sample counts once, although two passes may give a gradient: the larger count has every sample.
    most = {block.name: max(each[block.name] for each in counts) for block in blocks}
    return TrainedRound(samples, most, total / samples, patients)


def patients_of(blocks: Sequence[Block], rows: Tensor, *present: Tensor) -> dict[str, int]:
    """Distinct patients that exercised each block.

    Args:
        blocks: Of the phase.
        rows: ``(N,)``, whose draw each is.
        present: ``(N, M)`` bool each, what of the patient was seen.
    """
    found: dict[str, list[NDArray[np.int64]]] = {block.name: [] for block in blocks}
    for seen in present:
        patterns, which = np.unique(seen.numpy(), axis=0, return_inverse=True)  # (P, M), (N,)
        for block in blocks:
            exercises = [_exercises(block.exposure, tuple(pattern)) for pattern in patterns.tolist()]
            found[block.name].append(rows.numpy()[np.array(exercises)[which.ravel()]])
    return {name: len(np.unique(np.concatenate(parts))) for name, parts in found.items()}


@lru_cache(maxsize=4096)
def _exercises(exposure: Callable[[Tensor], Tensor], pattern: tuple[bool, ...]) -> bool:
    return int(exposure(torch.tensor([pattern]))) > 0


@dataclass(frozen=True)
class _TrainBatch:
    """A batch in training."""

    inputs: Tensor  # (B, W)
    present: Tensor  # (B, M)
    fewer: Tensor  # (B, M), some hidden
    label: Tensor  # (B,)


def _step(
    model: MultimodalModel,
    optimizers: PhaseOptimizers,
    drawn: _TrainBatch,
    generator: Generator,
    distillation: float,
    pull: ProximalTerm | None,
) -> Tensor:
    """One step of every objective; returns the loss of the first."""
    losses: list[Tensor] = []
    for objective, optimizer in optimizers.steps:
        optimizer.zero_grad(set_to_none=True)
        loss = objective.loss(drawn.inputs, drawn.present, drawn.label, generator)
        if distillation > 0 and not losses:
            loss = loss + _subset_loss(model, drawn, generator, distillation)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        if pull is not None:
            pull_back(model, pull)
        optimizers.clip(objective)
        optimizer.step()
        losses.append(loss.detach())
    return losses[0]


def _subset_loss(model: MultimodalModel, drawn: _TrainBatch, generator: Generator, weight: float) -> Tensor:
    """Loss with hidden modalities: the task on what is left, and agreement with the whole patient."""
    with torch.no_grad():
        whole = model.logits(drawn.inputs, drawn.present, generator)  # (B, K)
    subset = model.logits(drawn.inputs, drawn.fewer, generator)  # (B, K)
    agreement = model.task.agreement(whole, subset, TEMPERATURE)
    return model.task.loss(subset, drawn.label) + weight * agreement


def pull_back(model: MultimodalModel, pull: ProximalTerm) -> None:
    """Add the gradient of the proximal term."""
    for name, value in model.named_parameters():
        if value.grad is not None and name in pull.anchor:
            value.grad.add_(value.detach() - pull.anchor[name].to(value.device), alpha=pull.strength)


def hiding_of(study: Study) -> Callable[[Tensor, Generator], Tensor] | None:
    """The function that hides modalities of a batch; None if the study hides none."""
    wanted = study.training.modality_dropout
    if wanted == SUBSET:
        return keep_subset
    names = [modality.name for modality in study.modalities]
    each = [wanted.get(name, 0.0) if isinstance(wanted, Mapping) else float(wanted) for name in names]
    if not any(each):
        return None
    probability = torch.tensor(each)
    return lambda present, generator: hide_modalities(present, probability, generator)
