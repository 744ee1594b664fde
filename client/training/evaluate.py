"""Metric states of a model on a site's rows."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from client.privacy.small_groups import ShownGroups, shown_groups
from client.training.scaled_rows import scaled_rows
from client.training.scans import weighed
from mmare.errors import SiteCode, SiteError
from mmare.metrics.attribution import AttributionState
from mmare.metrics.calibration import CalibrationState
from mmare.models.batch import Batch
from mmare.models.hiding.shapley import explain_modalities
from mmare.wire.messages import Comparison, Evaluation, Split

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

    from client.data.dataset import SiteData
    from mmare.models.base import MultimodalModel
    from mmare.tasks.base import State, Task

__all__ = ["compare", "evaluate", "groups_of", "logits_of", "pattern_names"]

CHUNK: Final = 4096  # rows at a time: bounds memory, above any hospital's validation set


def pattern_names(present: Tensor) -> list[str]:
    """Presence ``(N, M)`` of each patient as ones and zeros in slot order.

    Example:
        >>> pattern_names(torch.tensor([[True, False, True]]))
        ['101']
    """
    return ["".join("1" if there else "0" for there in row) for row in present.tolist()]


def evaluate(
    model: MultimodalModel,
    data: SiteData,
    split: Split,
    min_count: int,
    *,
    patterns: bool = False,
    subsets: bool = False,
    calibration: bool = False,
    shapley: bool = False,
) -> Evaluation:
    """Evaluate a model, scaling filled in, on one split; groups below ``min_count`` are withheld.

    Groups are split and stratum (such as a class), or presence pattern and stratum. With ``subsets``, each
    subset of modalities is evaluated on the rows that have all of it, the rest hidden. Rows of withheld
    patterns are left out, so that subset sizes disclose nothing that patterns do not. With
    ``calibration``, the losses on its grid; with ``shapley``, how far modalities move predictions
    of the rows that metrics tell.

    Raises:
        SiteError: If the model's output is not finite.
    """
    if data.bags:  # else the same object, whose scaled rows may be kept
        data = replace(data, embedding=weighed(model, data.embedding, data.bags))
    rows = data.rows[split]
    label = data.label[rows]
    logits = _logits(model, scaled_rows(model.scaling, data, rows), data.present[rows])
    names = pattern_names(data.present[rows])
    task = model.task
    shown = groups_of(data, split, task, min_count)

    def told(state: State) -> dict[str, object]:
        coarse: State = task.coarsened(state, min_count)
        return coarse.to_dict()

    states = _pattern_states(task, logits, label, names) if patterns else {}
    disclosed = torch.tensor([name not in shown.patterns for name in names], dtype=torch.bool)
    subset_states = _subset_states(model, data, rows[disclosed]) if subsets else {}
    attribution = None
    if shapley:
        prior = _train_prior(data, task, min_count)
        own = ~torch.isin(task.stratum(label), torch.tensor([*shown.classes], dtype=torch.int64))
        counted = _counted(data.present[rows[own]], disclosed[own], min_count)
        attribution = _attribution(model, data, rows[own], logits[own].double(), prior, counted)
    grid = CalibrationState.of(logits, label, min_count).without(shown.classes) if calibration else None
    return Evaluation(
        split=split,
        state=told(task.state(logits, label).without(shown.classes)),
        patterns={name: told(states[name]) for name in sorted(states) if name not in shown.patterns},
        subsets={name: told(state) for name, state in subset_states.items()},
        calibration=grid.to_dict() if grid else {},
        attribution=attribution.to_dict() if attribution else {},
    )


def groups_of(data: SiteData, split: Split, task: Task[Any], min_count: int) -> ShownGroups:
    """What may be told of a split's groups, in roll call and metrics alike."""
    rows = data.rows[split]
    strata = task.stratum(data.label[rows]).tolist()
    sizes = {name: [0] * task.n_strata for name in sorted(pattern_names(data.present[rows]))}
    for name, stratum in zip(pattern_names(data.present[rows]), strata, strict=True):
        sizes[name][stratum] += 1
    return shown_groups(sizes, min_count, total_told=split is Split.TRAIN)


def compare(
    site: str,
    first: Tensor,
    second: Tensor,
    label: Tensor,
    classes: Sequence[str],
    hidden: Collection[int] = (),
) -> Comparison:
    """Cross-tabulate which rows two models predict right (``(N,)`` bool each), class by class.

    ``hidden`` classes are withheld. Cells: both right, only the first, only the second, neither.

    Example:
        >>> right, wrong = torch.tensor([True, True]), torch.tensor([True, False])
        >>> compare("ash", right, wrong, torch.tensor([0, 0]), ["ill", "well"]).cells["ill"]
        (1, 1, 0, 0)
    """
    cells = {}
    for index, name in enumerate(classes):
        if index not in hidden:
            one, other = first[label == index], second[label == index]
            parts = (one & other, one & ~other, ~one & other, ~one & ~other)
            cells[name] = tuple(int(part.sum()) for part in parts)
    return Comparison(site, cells)


def logits_of(model: MultimodalModel, embedding: Sequence[Tensor], rows: Tensor, present: Tensor) -> Tensor:
    """Logits ``(N, K)`` of N rows of ``embedding`` with only ``present`` ``(N, M)`` visible.

    Raises:
        SiteError: If one is not finite.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        scaled = [
            model.scaling(tuple(part[chunk].to(device) for part in embedding), there.to(device))
            for chunk, there in zip(torch.split(rows, CHUNK), torch.split(present, CHUNK), strict=True)
        ]
    return _logits(model, torch.cat(scaled), present)


def _logits(model: MultimodalModel, scaled: Tensor, present: Tensor) -> Tensor:
    """Logits ``(N, K)`` of scaled rows ``(N, W)``; raises as `logits_of`."""
    model.eval()
    with torch.inference_mode():
        parts = [
            model.of_scaled(chunk, there.to(chunk.device))
            for chunk, there in zip(torch.split(scaled, CHUNK), torch.split(present, CHUNK), strict=True)
            if len(chunk)
        ]
    logits = torch.cat(parts).cpu() if parts else torch.zeros(0, model.classes)
    if not bool(logits.isfinite().all()):
        raise SiteError(SiteCode.NON_FINITE)
    return logits


def _pattern_states(task: Task[Any], logits: Tensor, label: Tensor, names: list[str]) -> dict[str, State]:
    rows = {name: torch.tensor([other == name for other in names]) for name in set(names)}
    return {name: task.state(logits[chosen], label[chosen]) for name, chosen in rows.items()}


def _subset_states(model: MultimodalModel, data: SiteData, rows: Tensor) -> dict[str, State]:
    """State of each non-empty subset of modalities, on the rows that have all of it."""
    n_modalities = data.present.shape[1]
    found = {}
    for choice in itertools.product((True, False), repeat=n_modalities):
        wanted = torch.tensor(choice)
        chosen = rows[(data.present[rows] | ~wanted).all(dim=1)]
        if any(choice) and len(chosen):
            logits = logits_of(model, data.embedding, chosen, wanted.expand(len(chosen), n_modalities))
            name = pattern_names(wanted.unsqueeze(0))[0]
            found[name] = model.task.state(logits, data.label[chosen])
    return found


def _train_prior(data: SiteData, task: Task[Any], min_count: int) -> Tensor:
    """Class frequencies ``(K,)`` of the site's train rows; all alike where these may not be told."""
    n_classes = task.n_strata
    counts = data.label[data.rows[Split.TRAIN]].bincount(minlength=n_classes).double()
    told = counts.sum() > 0 and not groups_of(data, Split.TRAIN, task, min_count).classes
    return counts / counts.sum() if told else torch.full((n_classes,), 1 / n_classes, dtype=torch.float64)


def _counted(present: Tensor, disclosed: Tensor, min_count: int) -> Tensor:
    """Which modalities ``(B, M)`` of which patients enter the sums.

    Patients of withheld patterns (not ``disclosed`` ``(B,)``) are one group, which enters only if of no
    modality few have it or few lack it: these numbers are told. All modalities are of the same patients.
    """
    group = present[~disclosed]
    having = group.sum(dim=0)  # (M,)
    lacking = len(group) - having
    small = ((having > 0) & (having < min_count)) | ((lacking > 0) & (lacking < min_count))
    return present if not small.any() else present & disclosed[:, None]


def _attribution(
    model: MultimodalModel,
    data: SiteData,
    rows: Tensor,
    logits: Tensor,
    prior: Tensor,
    counted: Tensor,
) -> AttributionState:
    """Sums over ``rows``, of whom ``logits`` ``(B, K)`` were predicted, of ``counted`` ``(B, M)`` alone."""
    device = next(model.parameters()).device
    present = data.present[rows]

    def predict(batch: Batch) -> Tensor:
        there = tuple(part.to(device) for part in batch.embedding)
        logits: Tensor = model(Batch(there, batch.present.to(device)))
        return logits.cpu()

    shares = explain_modalities(
        predict,
        Batch(tuple(part[rows] for part in data.embedding), model.scaling.visible(present, someone=True)),
        logits.softmax(dim=1),
        prior,
        lambda hidden: hidden.double().softmax(dim=1),
    )
    return AttributionState.of(torch.where(counted[..., None], shares, 0), counted)
