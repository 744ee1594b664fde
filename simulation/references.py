"""Simple models on the rows of a simulated run, which a federation should at least equal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss
from sklearn.preprocessing import StandardScaler

from client.data.dataset import SiteData, load_data
from mmare.errors import InputError
from mmare.host.files import replacing
from mmare.metrics.state import BINARY, ranked_auc
from mmare.models.batch import Batch
from mmare.study.choices import Mode, TaskName
from mmare.wire.messages import Split
from server.store.model_file import load_model
from simulation.cox_references import RUN, measure_cox
from simulation.federated_logistic import FederatedLogisticRegression
from simulation.report.run_report import REFERENCES
from sites.federation import site_folders

if TYPE_CHECKING:
    from torch import Tensor

    from server.run.request import RunRequest

__all__ = ["measure_references"]

_STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the penalty's inverse, chosen on the validation rows
_WIDEST: Final = 128  # columns of a modality that trees take as they are
_COMPONENTS: Final = 32
_RESAMPLES: Final = 1000

Rows = NDArray[np.float64]


def measure_references(request: RunRequest) -> dict[str, Any]:
    """Fit them on the train rows of all sites, choose on validation, test beside the run's model.

    Logistic regression takes scaled inputs, zero where absent, and indicators of absence; on the pooled rows,
    and federated, where sites tell sums alone. Boosting takes absent inputs as missing, wide ones by their
    principal components. The indicators alone show how much the presence of modalities tells.

    Returns:
        What `REFERENCES` holds: by model AUC, balanced accuracy and macro F1 on the test rows of all sites,
        and the AUC's difference from the run's with a 95 % interval, patients drawn again. Of task survival
        what `measure_cox` returns.

    Raises:
        InputError: If the run has no single model, or its study is of numbers.
    """
    study = request.study
    if study.task is TaskName.REGRESSION:
        raise InputError(f"--references has no simple model of task {study.task} yet")
    if request.mode is Mode.LOCAL or study.federation.local:
        raise InputError(
            "--references is for a run with one model; here each site keeps its own, or parts of it"
        )
    sites = [load_data(site, study) for site in site_folders(request.federation)]
    data, homes = (
        SiteData.pooled(sites),
        np.repeat(np.arange(len(sites)), [len(each.label) for each in sites]),
    )
    if study.task is TaskName.SURVIVAL:
        n_test = len(data.rows[Split.TEST])
        models = measure_cox(request, data)
        note = _note(models, "concordance", "concordance")
        return _written(request, {"n": n_test, "metric": "concordance", "models": models, "note": note})
    train, val, test = (data.rows[split].numpy() for split in (Split.TRAIN, Split.VAL, Split.TEST))
    label = data.label.numpy()
    if len(set(label[train])) < len(study.classes) or len(set(label[test])) < len(study.classes):
        raise InputError("--references needs every class among the train rows and among the test rows")
    rows = data.rows[Split.TEST]
    model = load_model(request.out / "model")
    batch = Batch(tuple(part[rows] for part in data.embedding), data.present[rows], data.label[rows])
    found = {RUN: model.predict(batch).double().numpy()}
    for name, inputs, candidates in _models(data, train, homes[train], study.seed):
        fitted = [candidate.fit(inputs[train], label[train]) for candidate in candidates]
        best = min(fitted, key=lambda each: _loss(each, inputs[val], label[val]))
        found[name] = best.predict_proba(inputs[test])
    scores = _scores(found, label[test], study.seed)
    return _written(request, {"n": len(test), "models": scores, "note": _note(scores, "auc", "AUC")})


def _written(request: RunRequest, content: dict[str, Any]) -> dict[str, Any]:
    with replacing(request.out / REFERENCES, private=True) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def _models(
    data: SiteData, train: NDArray[np.int64], homes: NDArray[np.int64], seed: int
) -> Iterator[tuple[str, Rows, list[Any]]]:
    """Name, inputs ``(N, F)`` and the candidates among which validation chooses.

    ``homes`` are the sites of the train rows.
    """
    absent = ~data.present.numpy()  # (N, M)
    parts = [
        np.where(gone[:, None], np.nan, part.numpy().astype(np.float64))
        for gone, part in zip(absent.T, data.embedding, strict=True)
    ]
    raw = np.concatenate(parts, axis=1)
    with np.errstate(invalid="ignore"):  # of a column that no train row has, which then counts as zero
        scaled = np.nan_to_num(StandardScaler().fit(raw[train]).transform(raw))
    linear = [LogisticRegression(C=strength, max_iter=2000) for strength in _STRENGTHS]
    yield "logistic regression", np.concatenate([scaled, absent], axis=1), linear
    federated = [FederatedLogisticRegression(strength, homes, absent.shape[1]) for strength in _STRENGTHS]
    yield "federated logistic regression", np.concatenate([raw, absent], axis=1), federated
    trees = [
        HistGradientBoostingClassifier(
            learning_rate=0.05, max_iter=count, max_leaf_nodes=leaves, early_stopping=False, random_state=seed
        )
        for count in (50, 200)
        for leaves in (4, 16)
    ]
    yield "gradient boosting", np.concatenate([_narrowed(part, train) for part in parts], axis=1), trees
    if absent.any() and not absent.all():
        yield "presence of modalities alone", absent.astype(np.float64), [LogisticRegression(C=1.0)]


def _narrowed(part: Rows, train: NDArray[np.int64]) -> Rows:
    """A wide embedding by its first principal components: trees on thousands of columns take minutes.

    Without columns that no train row has.
    """
    part = part[:, ~np.isnan(part[train]).all(axis=0)]
    there = ~np.isnan(part).all(axis=1)
    fitted = np.intersect1d(train, np.flatnonzero(there))
    if part.shape[1] <= _WIDEST or len(fitted) <= _COMPONENTS:
        return part
    part = np.where(np.isnan(part), np.nanmean(part[train], axis=0), part)
    narrow = np.full((len(part), _COMPONENTS), np.nan)
    narrow[there] = PCA(_COMPONENTS, random_state=0).fit(part[fitted]).transform(part[there])
    return narrow


def _loss(fitted: Any, inputs: Rows, label: NDArray[np.int64]) -> float:  # noqa: ANN401 - of scikit-learn
    if not len(label):  # the first candidate is the most cautious one
        return 0.0
    return float(log_loss(label, fitted.predict_proba(inputs), labels=fitted.classes_))


def _aucs(label: NDArray[np.int64], probability: Rows, weights: Tensor) -> Tensor:
    """``(R,)`` by weights ``(R, N)`` of patients: of the second of two classes, else mean of one-vs-rest."""
    classes = range(probability.shape[1])
    each = []
    for wanted in classes[1:] if len(classes) == BINARY else classes:
        scores, place = np.unique(probability[:, wanted], return_inverse=True)
        positive = weights * torch.from_numpy(label == wanted)
        empty = weights.new_zeros(len(weights), len(scores))
        each.append(
            ranked_auc(
                *(
                    empty.index_add(1, torch.from_numpy(place), side)
                    for side in (positive, weights - positive)
                )
            )
        )
    return torch.stack(each).mean(dim=0)


def _scores(found: dict[str, Rows], label: NDArray[np.int64], seed: int) -> dict[str, dict[str, Any]]:
    random = np.random.default_rng(seed)
    draws = (random.integers(len(label), size=len(label)) for _ in range(_RESAMPLES))
    whole = [draw for draw in draws if len(set(label[draw])) == len(set(label))]
    counts = [np.bincount(draw, minlength=len(label)) for draw in whole]
    weights = torch.tensor(np.stack([np.ones(len(label)), *counts]))  # as they are, then drawn again
    aucs = {name: _aucs(label, probability, weights) for name, probability in found.items()}
    gaps = {name: (values - aucs[RUN]).numpy() for name, values in aucs.items()}
    return {
        name: {
            "auc": float(aucs[name][0]),
            "balanced_accuracy": float(balanced_accuracy_score(label, probability.argmax(axis=1))),
            "macro_f1": float(f1_score(label, probability.argmax(axis=1), average="macro")),
            "difference": float(gaps[name][0]),
            "ci95": np.percentile(gaps[name][1:], [2.5, 97.5]).tolist(),
        }
        for name, probability in found.items()
    }


def _note(models: dict[str, dict[str, Any]], metric: str, title: str) -> str | None:
    """A sentence if the run loses to one of them, beyond chance or not."""
    name, best = max(models.items(), key=lambda each: each[1][metric])
    if name == RUN:
        return None
    low, high = best["ci95"]
    sure = "" if low > 0 else ", which may be chance"
    rows = "" if name.startswith("federated") else " on the pooled rows"
    return (
        f"{name[0].upper()}{name[1:]}{rows} is better than this run: {title} {best[metric]:.3f}, this run "
        f"{models[RUN][metric]:.3f}; difference {best['difference']:+.3f} ({low:+.3f} to {high:+.3f}){sure}."
    )
