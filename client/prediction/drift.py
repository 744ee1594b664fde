"""The page on how a site's patients drift from those of training, month by month, from its audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from client.prediction.written.page import render
from client.privacy.records.audit_log import Event, log_of
from client.telemetry.prediction_tally import (
    FEWEST,
    Drift,
    Prediction,
    Scores,
    drift_of,
    prediction_in,
    scores_in,
)
from mmare.errors import RunError

if TYPE_CHECKING:
    from sites.config import SiteConfig

__all__ = ["drift_page", "months_of", "scorings_of"]


def months_of(site: SiteConfig) -> dict[str, dict[str, Drift]]:
    """Drift by model and month (``2026-11``), in order of time.

    Raises:
        RunError: If the log holds no prediction.
    """
    found: dict[str, dict[str, list[Prediction]]] = {}
    for line in log_of(site).lines():
        prediction = prediction_in(line.get("prediction")) if line["event"] == Event.PREDICTED else None
        if prediction is not None:
            found.setdefault(prediction.model, {}).setdefault(line["time"][:7], []).append(prediction)
    if not found:
        raise RunError(f"{log_of(site).path}: no prediction yet, so nothing can drift")
    return {
        model: {month: drift_of(made) for month, made in sorted(months.items())}
        for model, months in found.items()
    }


def scorings_of(site: SiteConfig) -> dict[str, list[tuple[str, Scores]]]:
    """By model, the day of each scoring and what it found, in order of time."""
    found: dict[str, list[tuple[str, Scores]]] = {}
    for line in log_of(site).lines():
        scores = scores_in(line.get("scores")) if line["event"] == Event.SCORED else None
        if scores is not None:
            found.setdefault(scores.model, []).append((line["time"][:10], scores))
    return found


def drift_page(site: SiteConfig) -> str:
    """The page as HTML; raises as `months_of`."""
    scorings = scorings_of(site)
    models = [
        {**_model(digest, months), "scorings": scorings.get(digest, [])}
        for digest, months in months_of(site).items()
    ]
    return render("drift.html.j2", {"site": site.id, "models": models, "fewest": FEWEST})


def _model(digest: str, months: dict[str, Drift]) -> dict[str, Any]:
    latest = list(months.values())[-1]
    names = sorted({*latest.patterns, *latest.shares})
    return {
        "digest": digest,
        "months": months,
        "classes": sorted({name for month in months.values() for name in month.calls}),
        "modalities": sorted({name for month in months.values() for name in month.distance}),
        "latest": list(months)[-1],
        "patterns": [
            (
                name,
                latest.names.get(name),
                latest.patterns.get(name, 0) / latest.patients,
                latest.shares.get(name),
            )
            for name in names
        ],
    }
