"""What a person should know of a package before it is used, as a few lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mmare.host.console import visible
from mmare.package.answers import tells

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mmare.package.package import Package

__all__ = ["essentials"]

METRICS: Final = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "ece": "ECE",
}


def essentials(package: Package) -> str:
    """Purpose, inputs, test results and what is not stated; nothing that a terminal would obey."""
    return "\n".join(visible(line) for line in _lines(package))


def _lines(package: Package) -> Iterator[str]:
    study, card, facts = package.study, package.card, package.facts
    said, titles = card["statements"], card.get("metrics", METRICS)
    yield f"{study.name}: {facts.notice}"
    yield f"  tells          {tells(study)}"
    yield f"  intended use   {said['intended_use']}"
    yield f"  licence        {said['licence']}"
    for modality in study.modalities:
        fact = package.encoders.get(modality.name)
        made = "no site had it" if fact is None else f"{fact.fingerprint}, trained at {', '.join(fact.sites)}"
        yield f"  input          {modality.name} ({modality.kind}, {modality.width} numbers): {made}"
    test = package.results["metrics"]["test"]
    yield f"  test           {_scores(test['pooled'], titles)}"
    if worst := test["worst_site"]:
        yield f"  worst site     {worst['site']}: {_scores(test['sites'][worst['site']], titles)}"
    if start := package.results.get("start"):
        yield f"  started from   model {start['digest'][:12]} of run {start['run']}, study {start['study']}"
    point = package.operating_point
    if point is not None:
        yield f"  called positive from {point.calibrated:.3f} on ({point.rule})"
    if caution := package.report.get("calibration", {}).get("caution"):
        yield f"  caution        {caution}"
    for note in package.results["notes"]:
        yield f"  note           {note}"
    for part, why in facts.not_stated.items():
        yield f"  not stated     {part.replace('_', ' ')}: {why}"
    yield f"  run {facts.run}, study {facts.study_hash[:12]}, package {package.digest[:12]}"


def _scores(metrics: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    found = [
        f"{title} {metrics[key]:.3f}{_interval(metrics, key)}"
        for key, title in titles.items()
        if metrics.get(key) is not None
    ]
    return f"{metrics['n']} patients; {', '.join(found)}" if found else f"{metrics['n']} patients"


def _interval(metrics: Mapping[str, Any], key: str) -> str:
    ends = (metrics.get("ci95") or {}).get(key)
    return f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
