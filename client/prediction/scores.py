"""How well saved predictions did, once the outcomes are known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from client.prediction.score_log import calibration_gaps
from client.prediction.written.table_format import Format
from mmare.errors import DataError, InputError, RunError
from mmare.metrics.state import MetricState, class_scores
from mmare.study.choices import TaskName
from sites.manifest import ID
from sites.outcomes import LABEL, parse_labels
from sites.table_file import read_table

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mmare.package.package import Package

__all__ = ["score", "scores_text"]

_SMALLEST = 1e-300  # a probability of 0 has no logarithm


def score(package: Package, saved: Path, form: Format, labels: Path) -> dict[str, Any]:
    """Metrics of the predictions in ``saved`` on the patients of ``labels``.

    ``calibrated`` and ``uncalibrated`` are the metrics of a run (`MetricState.compute`), ``called`` those of
    the calls, ``reliability`` by bin of the confidence: patients, mean confidence, share predicted right;
    ``gaps`` as of `calibration_gaps`, ``fewest`` the patients of the rarest class that has any.

    Raises:
        DataError: If a file cannot be used, or the predictions are of another model.
        RunError: If no patient is in both.
    """
    study = package.study
    if study.task is not TaskName.CLASSIFICATION:
        raise InputError(f"--labels scores classes, found a model of task {study.task}")
    table = read_table(labels)
    known = dict(zip(table.require_unique(ID), parse_labels(table, LABEL, study.classes), strict=True))
    frame = _saved(saved, form)
    lacking = {ID, "call", "model", *(f"probability_{name}" for name in study.classes)} - set(frame.columns)
    if lacking:
        raise DataError(f"{saved}: no predictions of this study, the column {min(lacking)!r} is missing")
    if other := set(frame["model"]) - {package.digest}:
        raise DataError(
            f"{saved}: predictions of the model {min(other)[:12]}, expected {package.digest[:12]}"
        )
    both = frame[frame[ID].isin(known)]
    if both.empty:
        raise RunError(f"{labels}: none of {len(known)} patients is among the {len(frame)} of {saved}")
    index = {name: place for place, name in enumerate(study.classes)}
    label = torch.tensor([index[known[patient]] for patient in both[ID]])
    called = torch.tensor([index[name] for name in both["call"]])
    pairs = torch.bincount(label * len(index) + called, minlength=len(index) ** 2)
    calls = class_scores(pairs.view(1, len(index), -1).double(), study.positive_index)
    states = {
        kind: MetricState.of(_numbers(both, prefix, study.classes).clamp_min(_SMALLEST).log(), label)
        for kind, prefix in (("calibrated", "probability"), ("uncalibrated", "uncalibrated"))
    }
    outcome = both[ID].map(known)
    chances = both[[f"probability_{name}" for name in study.classes]].set_axis(list(study.classes), axis=1)
    return {
        "patients": len(both),
        "fewest": int(outcome.value_counts().min()),
        "gaps": calibration_gaps(chances, outcome),
        "without_label": len(frame) - len(both),
        "without_prediction": len(known) - len(both),
        **{kind: state.compute(study.positive_index) for kind, state in states.items()},
        "called": {name: None if value is None else value.item() for name, value in calls.items()},
        "reliability": _reliability(states["calibrated"]),
    }


def scores_text(found: dict[str, Any]) -> str:
    """The scores for a terminal."""
    rows = [("AUC", "auc"), ("Brier score", "brier"), ("log-loss", "log_loss"), ("calibration error", "ece")]
    lines = [
        f"{found['patients']} patients scored; {found['without_label']} predicted ones have no label, "
        f"{found['without_prediction']} labelled ones no prediction"
    ]
    lines += [f"  {title:<22}{_shown(found['calibrated'][key])}" for title, key in rows]
    lines += [f"  {'balanced accuracy':<22}{_shown(found['called']['balanced_accuracy'])}  of the calls"]
    for name, each in found["gaps"].items():
        lines.append(
            f"  {name}: share less mean probability {each['gap']:+.3f} (standard error {each['error']:.3f})"
        )
    for entry in found["reliability"]:
        lines.append(
            f"  confidence {entry['from']:.2f} to {entry['to']:.2f}: {entry['n']} patients, "
            f"mean {entry['confidence']:.3f}, right {entry['right']:.3f}"
        )
    return "\n".join(lines)


def _saved(path: Path, form: Format) -> pd.DataFrame:
    try:
        if form is Format.PARQUET:
            return pd.read_parquet(path)
        if form is Format.CSV:
            return pd.read_csv(path, dtype={ID: str, "call": str, "model": str}, keep_default_na=False)
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return pd.DataFrame(
            [
                {
                    **{key: entry[key] for key in (ID, "call", "model")},
                    **{
                        f"{kind}_{name}": value
                        for kind in ("probability", "uncalibrated")
                        for name, value in entry[kind].items()
                    },
                }
                for entry in entries
            ]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read as predictions ({type(error).__name__}); predict first"
        ) from None


def _numbers(frame: pd.DataFrame, prefix: str, classes: tuple[str, ...]) -> Tensor:
    columns = frame[[f"{prefix}_{name}" for name in classes]].to_numpy(dtype="float64", copy=True)
    return torch.from_numpy(columns)


def _reliability(state: MetricState) -> list[dict[str, float]]:
    bins = state.calibration.sum(dim=0).T  # (C, 3): rows, predicted right, sum of confidence
    return [
        {
            "from": place / len(bins),
            "to": (place + 1) / len(bins),
            "n": int(rows),
            "confidence": confidence / rows,
            "right": right / rows,
        }
        for place, (rows, right, confidence) in enumerate(bins.tolist())
        if rows
    ]


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
