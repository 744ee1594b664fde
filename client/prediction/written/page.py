"""The page of predictions that a clinician or an engineer reads; it names patients and stays at the site."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

from client.prediction.evidence import evidence_of, one_more
from client.prediction.written.measured_page import measured_page
from client.prediction.written.shared import page_of_any, row_of_any
from client.prediction.written.table import told_classes
from mmare.study.choices import TaskName

if TYPE_CHECKING:
    from datetime import datetime

    import jinja2
    from torch import Tensor

    from client.prediction.predict import Predictions

__all__ = ["page_of", "render"]

_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, by modality


def page_of(found: Predictions, made: datetime | None = None) -> str:
    """The page as HTML."""
    study = found.package.study
    if study.task is not TaskName.CLASSIFICATION:
        return measured_page(found, made, render)
    point = found.package.operating_point
    positive = study.positive_index
    return render(
        "predictions.html.j2",
        {
            **page_of_any(found, made),
            "point": point,
            "sets": found.package.prediction_sets,
            "colours": {
                modality.name: _PALETTE[slot % len(_PALETTE)]
                for slot, modality in enumerate(study.modalities)
            },
            "calls": Counter(study.classes[call] for call in found.judgement.call.tolist()),
            "mark": point.calibrated if point is not None and positive is not None else None,
            "rows": [_row(found, row) for row in range(len(found.inputs.patients))],
        },
    )


def _row(found: Predictions, row: int) -> dict[str, Any]:
    """One patient: probability and shares of the positive class, or of the called one of several."""
    study, judged, prior = found.package.study, found.judgement, _prior(found)
    told = told_classes(found)
    label = told[0] if len(told) == 1 else int(judged.call[row])
    in_set = None if judged.in_set is None else judged.in_set[row].tolist()
    return {
        **row_of_any(found, row),
        "call": study.classes[int(judged.call[row])],
        "of": study.classes[label],
        "probability": float(judged.probability[row, label]),
        "set": None
        if in_set is None
        else [name for name, is_in in zip(study.classes, in_set, strict=True) if is_in],
        "tested": evidence_of(found.package, found.patterns[row]),
        "one_more": one_more(found.package, found.patterns[row]),
        "prior": float(prior[label]),
        "steps": _steps(found, row, label),
    }


def _steps(found: Predictions, row: int, label: int) -> list[dict[str, Any]]:
    """From the prior to the probability, a step for each modality that is present."""
    if found.shares is None:
        return []
    at, steps = float(_prior(found)[label]), []
    for slot, modality in enumerate(found.package.study.modalities):
        if bool(found.inputs.present[row, slot]):
            share = float(found.shares[row, slot, label])
            steps.append({"name": modality.name, "share": share, "start": at, "end": at + share})
            at += share
    return steps


def _prior(found: Predictions) -> Tensor:
    assert found.prior is not None  # noqa: S101 - of classes there is one
    return found.prior


def render(template: str, view: dict[str, Any]) -> str:
    """A template of ``templates/``; all values are HTML-escaped."""
    return _environment().get_template(template).render(view)


@cache
def _environment() -> jinja2.Environment:
    import jinja2  # noqa: PLC0415 - loaded only when a page is written

    return jinja2.Environment(
        loader=jinja2.PackageLoader("client.prediction.written"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
