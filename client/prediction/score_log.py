"""What the audit log keeps of predictions whose outcome became known: metrics, no patient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from client.privacy.records.audit_log import Entry, Event, log_of
from mmare.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from mmare.package.package import Package
    from sites.config import SiteConfig

__all__ = ["calibration_gaps", "log_scores"]


def calibration_gaps(probability: pd.DataFrame, label: pd.Series[str]) -> dict[str, dict[str, float]]:
    """Calibration in the large by class: its share of the patients less its mean probability.

    ``error`` is the standard error that the gap would have if the probabilities were true.

    Args:
        probability: ``(N, K)``, a column for each class.
        label: ``(N,)``, names of classes.
    """
    return {
        str(name): {
            "gap": float((label == name).mean() - chance.mean()),
            "error": math.sqrt(float((chance * (1 - chance)).sum())) / len(label),
        }
        for name, chance in probability.items()
    }


def log_scores(package: Package, scores: Mapping[str, Any], site: SiteConfig) -> None:
    """Add a line to the audit log, which the site's metrics and its page on drift read.

    Raises:
        RunError: If it cannot be written.
    """
    kept = ("patients", "fewest", "gaps")
    metrics = {name: scores["calibrated"][name] for name in ("auc", "brier", "log_loss", "ece")}
    tested = package.results["metrics"].get("test", {}).get("pooled", {}).get("auc")
    line = {"model": package.digest, **{key: scores[key] for key in kept}, **metrics, "tested_auc": tested}
    log = log_of(site)
    try:
        log.append(Entry(Event.SCORED, study=package.study.hash, scores=line))
    except OSError as error:
        raise RunError(f"{log.path}: {error.strerror}; the scores were not logged") from None
