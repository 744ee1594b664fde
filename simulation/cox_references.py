"""A penalised Cox model on the pooled rows of a simulated run of task survival, beside the run's model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from client.training.evaluate import logits_of
from mmare.tasks.survival import Survival
from mmare.wire.messages import Split
from server.store.model_file import load_model

if TYPE_CHECKING:
    from torch import Tensor

    from client.data.dataset import SiteData
    from server.run.request import RunRequest

__all__ = ["RUN", "fit_cox", "measure_cox", "ordered_pairs", "partial_likelihood"]

RUN: Final = "this run"
_PENALTIES: Final = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # chosen on the validation rows
_COMPONENTS: Final = 20  # of a modality that is wider
_RESAMPLES: Final = 1000
_STEPS: Final = 30
_SHORT: Final = 1e-8  # Newton step after which the fit ends


def measure_cox(request: RunRequest, data: SiteData) -> dict[str, dict[str, Any]]:
    """Fit on the train rows of all sites, choose the penalty on validation, test beside the run's model.

    Inputs are scaled, zero where absent, with indicators of absence; wide modalities enter by their principal
    components. The indicators alone show how much the presence of modalities tells.

    Returns:
        By model the concordance, its difference from the run's and ``ci95`` of that, patients drawn again.
    """
    time, event = torch.div(data.label, 2, rounding_mode="floor"), data.label % 2
    train, val, test = (data.rows[split] for split in (Split.TRAIN, Split.VAL, Split.TEST))
    model = load_model(request.out / "model")
    assert isinstance(model.task, Survival)  # noqa: S101 - of the run's study
    risks = {RUN: model.task.risk(logits_of(model, data.embedding, test, data.present[test]))}
    for name, inputs in _inputs(data, train):
        fits = [
            fit_cox(inputs[train], time[train], event[train], penalty)
            for penalty in (_PENALTIES if event[val].any() else _PENALTIES[2:3])
        ]
        likelihoods = [partial_likelihood(inputs[val] @ beta, time[val], event[val]) for beta in fits]
        risks[name] = inputs[test] @ fits[int(torch.stack(likelihoods).argmax())]
    return _scores(risks, time[test], event[test], request.study.seed)


def fit_cox(inputs: Tensor, time: Tensor, event: Tensor, penalty: float) -> Tensor:
    """Coefficients ``(F,)`` of a Cox model with ridge penalty, by Newton's method; ties as Breslow 1974.

    Maximises the mean partial log-likelihood of an event less half the penalty times the squared length.

    Args:
        inputs: ``(N, F)`` float64.
        time: ``(N,)``.
        event: ``(N,)``, 1 where it was seen.
        penalty: At least 0.
    """
    beta = torch.zeros(inputs.shape[1], dtype=torch.float64)
    ridge = penalty * torch.eye(len(beta), dtype=torch.float64)
    order = time.argsort(descending=True, stable=True)
    rows, times, events = inputs[order], time[order], event[order].bool()
    last = torch.searchsorted(-times, -times, right=True)[events] - 1  # of the rows still at risk, per event
    for _ in range(_STEPS):
        weight = (rows @ beta).clamp(-30, 30).exp()  # (N,)
        total = weight.cumsum(0)[last]  # (E,)
        mean = (weight[:, None] * rows).cumsum(0)[last] / total[:, None]  # (E, F)
        gradient = (rows[events] - mean).mean(0) - penalty * beta
        share = torch.zeros_like(weight).index_add(0, last, 1 / total)  # of the sums that end at a row
        held = weight * share.flip(0).cumsum(0).flip(0)  # (N,) weight of a row over all events
        spread = (rows.T * held) @ rows - mean.T @ mean
        step = torch.linalg.solve(spread / max(len(last), 1) + ridge, gradient)
        beta = beta + step
        if step.abs().max() < _SHORT:
            break
    return beta


def partial_likelihood(score: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Mean partial log-likelihood of an event, by scores ``(N,)``; zero without events."""
    order = time.argsort(descending=True, stable=True)
    scores, times, events = score[order], time[order], event[order].bool()
    last = torch.searchsorted(-times, -times, right=True)[events] - 1
    return (scores[events] - scores.logcumsumexp(0)[last]).sum() / max(len(last), 1)


def ordered_pairs(time: Tensor, event: Tensor) -> Tensor:
    """``(N, N)``: whether the first of two patients is known to have had the event before the second."""
    return (event[:, None] == 1) & (time[:, None] < time[None])


def _inputs(data: SiteData, train: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and inputs ``(N, F)`` of each model."""
    absent = ~data.present  # (N, M)
    held = zip(data.embedding, data.present.T, strict=True)
    parts = [_scaled(part.double(), there, train) for part, there in held]
    yield "penalised Cox model", torch.cat([*parts, absent.double()], dim=1)
    if absent.any() and not absent.all():
        yield "presence of modalities alone", absent.double()


def _scaled(part: Tensor, there: Tensor, train: Tensor) -> Tensor:
    """A modality as at most 20 columns of unit deviation over the train rows; zero where absent."""
    fitted = train[there[train]]
    known = part[fitted]
    blank = known.isnan()
    mean = known.nan_to_num().sum(0) / (~blank).sum(0).clamp_min(1)
    part = torch.where(part.isnan(), mean, part) - mean
    deviation = part[fitted].std(0, correction=0) if len(fitted) else torch.ones(part.shape[1])
    part = part / torch.where(deviation > 0, deviation, 1.0)
    if part.shape[1] > _COMPONENTS and len(fitted) > _COMPONENTS:
        axes = torch.linalg.svd(part[fitted], full_matrices=False).Vh[:_COMPONENTS]
        part = part @ axes.T
        part = part / part[fitted].std(0, correction=0).clamp_min(1e-9)
    return torch.where(there[:, None], part, 0.0)


def _scores(risks: dict[str, Tensor], time: Tensor, event: Tensor, seed: int) -> dict[str, dict[str, Any]]:
    pairs = ordered_pairs(time, event)  # (N, N)
    random = np.random.default_rng(seed)
    draws = random.integers(len(time), size=(_RESAMPLES, len(time)))
    counts = np.stack([np.bincount(draw, minlength=len(time)) for draw in draws])
    weights = torch.from_numpy(np.concatenate([np.ones((1, len(time))), counts]))  # as they are, then drawn
    comparable = _weighed(weights, pairs.double())
    found = {}
    for name, risk in risks.items():
        right = (risk[:, None] > risk[None]).double() + (risk[:, None] == risk[None]).double() / 2
        found[name] = _weighed(weights, right * pairs) / comparable  # (1 + R,)
    gaps = {name: (values - found[RUN]) for name, values in found.items()}
    return {
        name: {
            "concordance": values[0].item(),
            "difference": gaps[name][0].item(),
            "ci95": np.nanpercentile(gaps[name][1:].numpy(), [2.5, 97.5]).tolist(),
        }
        for name, values in found.items()
    }


def _weighed(weights: Tensor, pairs: Tensor) -> Tensor:
    """Sums ``(R,)`` of pairs ``(N, N)`` by weights ``(R, N)`` of patients."""
    return ((weights @ pairs) * weights).sum(dim=1)
