"""Local training of one round under differential privacy (DP-SGD, Abadi et al. 2016), patient by patient.

Every step draws each patient with one probability, clips the gradient of each over all parameters, adds noise
to the sum of every parameter, exercised or not, and divides by the expected number of patients. What follows,
the optimiser and its state too, is made of that sum alone. Nothing is told of who was drawn: the round counts
as that many draws in every block, and its loss stays here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from client.training.scaled_rows import scaled_rows
from client.training.trainer import TrainedRound, hiding_of, pull_back
from mmare.errors import SiteCode, SiteError
from mmare.models.patient_gradients import clipped_sum

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor

    from client.data.dataset import SiteData
    from client.privacy.accountant import Plan
    from client.privacy.noise import Noise
    from client.training.optimizers import PhaseOptimizers
    from client.training.trainer import ProximalTerm
    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study

__all__ = ["class_weights", "train_privately"]


# The noise of a step takes as long as its forward pass: it is drawn on another core meanwhile.
_BESIDE: Final = ThreadPoolExecutor(1, "noise", initializer=partial(torch.set_num_threads, 1))


def class_weights(study: Study) -> Tensor:
    """Weight of each class in the loss ``(K,)``: those of ``oversample``, the largest of which counts as 1.

    Example:
        >>> from mmare.study.study import parse_study
        >>> tables = {
        ...     "study": {"name": "s", "classes": ["ill", "well"]},
        ...     "modality": [{"name": "ct", "kind": "features", "width": 2}],
        ...     "training": {"oversample": {"ill": 4.0}},
        ... }
        >>> class_weights(parse_study(tables, "example"))
        tensor([1.0000, 0.2500])
    """
    wanted = study.training.oversample
    given = {} if wanted is None or isinstance(wanted, str) else wanted
    weights = torch.tensor([given.get(name, 1.0) for name in study.classes])
    return weights / weights.max()


def train_privately(
    model: MultimodalModel,
    optimizers: PhaseOptimizers,
    data: SiteData,
    rows: Tensor,
    study: Study,
    plan: Plan,
    noise: Noise,
    pull: ProximalTerm | None = None,
) -> TrainedRound:
    """Train ``local_epochs`` over the given rows; ``model`` changes in place.

    Args:
        plan: Of the study at this site.
        noise: The source of every draw.

    Raises:
        SiteError: If there are no rows, or the model is not finite afterwards.
    """
    if len(rows) == 0:
        raise SiteError(SiteCode.EMPTY)
    dp, training = study.privacy.dp, study.training
    assert dp is not None  # noqa: S101 - asked for by the caller
    ((objective, optimizer),) = optimizers.steps  # of a model whose patients are separate
    device = next(model.parameters()).device
    present, label = data.present[rows].to(device), data.label[rows].to(device)
    scaled = scaled_rows(model.scaling, data, rows)  # (N, W)
    weights, hiding, draws = class_weights(study).to(device), hiding_of(study), noise.generator()
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    sizes = [value.numel() for value in named.values()]
    model.train()
    for _ in range(training.local_epochs * plan.steps):
        drawn = (noise.uniform(len(rows)) < plan.rate).nonzero().flatten().to(device)  # (B,)
        there = present[drawn] if hiding is None else hiding(present[drawn], draws)
        coming = _BESIDE.submit(noise.normal, sum(sizes))

        def noisy(coming: Future[Tensor] = coming) -> dict[str, Tensor]:
            pieces = torch.split(coming.result().to(device).mul_(plan.noise * dp.clip), sizes)
            return {
                name: piece.view_as(value) for (name, value), piece in zip(named.items(), pieces, strict=True)
            }

        def losses(drawn: Tensor = drawn, there: Tensor = there) -> Tensor:
            logits = model.logits(scaled[drawn], there, draws)  # (B, K)
            each = functional.cross_entropy(logits, label[drawn], reduction="none")
            return each * weights[label[drawn]]

        found = clipped_sum(model, losses, len(drawn), dp.clip, noisy).gradients if len(drawn) else noisy()
        for name, value in named.items():
            value.grad = found[name].div_(plan.expected)
        if pull is not None:
            pull_back(model, pull)
        optimizers.clip(objective)
        optimizer.step()
    optimizers.finish()
    if not all(bool(value.isfinite().all()) for value in named.values()):
        raise SiteError(SiteCode.NON_FINITE)
    samples = plan.rows * training.local_epochs
    exposures = {block.name: samples for block in model.blocks() if block.name in optimizers.phase.blocks}
    return TrainedRound(samples, exposures, None, {})
