"""The content of ``result.json``."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from mmare.models.registry import MODELS, build_model
from mmare.wire.tensors import global_tensors
from server.monitoring.followed_run import read_run
from server.rounds.plan import Outcome
from server.rounds.update_checks import Upload
from server.store.events import SiteLeftOut

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mmare.study.study import Study
    from server.run.request import RunRequest

__all__ = [
    "TIMED",
    "common_facts",
    "encoders_of",
    "left_out",
    "local_metrics",
    "notes_of_model",
    "notes_of_selection",
    "notes_of_sites",
    "notes_of_training",
    "outcome_facts",
    "versions",
]


TIMED: Final = ("total", "setup", "rounds", "train")  # phases


def local_metrics(outcome: Outcome, site: str) -> dict[str, Any]:
    """Metrics of a site that trained alone, on its own test rows and on all."""
    test = outcome.metrics["test"]
    return {
        "validation": outcome.metrics["validation"]["pooled"],
        "test": {
            "own": test["sites"].get(site),
            **{name: test[name] for name in ("pooled", "sites", "subsets", "operating_point")},
        },
    }


def common_facts(request: RunRequest) -> dict[str, Any]:
    """The part of ``result.json`` that all modes have."""
    study = request.study
    model = build_model(study)
    trainable = sum(value.numel() for value in model.parameters())
    return {
        "study": study.name,
        "task": study.task.value,
        "model": study.model.name,
        "strategy": study.federation.strategy,
        "mode": request.mode.value,
        "seed": study.seed,
        "backend": request.backend,
        "parameters": {
            "trainable": trainable,
            "federated": sum(value.numel() for value in Upload(model, study).tensors.values()),
            "buffers": sum(value.numel() for value in global_tensors(model).values()) - trainable,
        },
        "versions": versions(),
    }


def outcome_facts(outcome: Outcome) -> dict[str, Any]:
    """Rounds, bytes and seconds of a training run."""
    progress = outcome.progress
    return {
        "rounds_run": progress.round,
        "best_round": outcome.best_round,
        "bytes": {"down_per_round": progress.bytes_down, "up_per_round": progress.bytes_up},
        "seconds": {phase: progress.seconds.get(phase, 0.0) for phase in TIMED},
    }


def encoders_of(out: Path) -> dict[str, str]:
    """Fingerprint by modality that made the vectors of the sites that took part, which are alike."""
    calls = read_run(out).calls
    accepted = (call for _, call in sorted(calls.items()) if call.accepted)
    return {name: str(mark) for call in accepted for name, mark in call.encoders.items()}


def left_out(out: Path) -> list[dict[str, Any]]:
    """Sites left out, with round and reason, from the journals; round 0 is the roll call."""
    found = []
    for folder in [out, *sorted((out / "local").glob("*"))]:
        for event in read_run(folder).absences:
            at_test = " (at the test)" if isinstance(event, SiteLeftOut) and event.phase else ""
            entry = {
                "site": event.site,
                "round": event.round,
                "reason": f"{event.reason}{at_test}",
                "code": event.code,
            }
            if entry not in found:
                found.append(entry)
    return found


def notes_of_sites(out: Path) -> list[str]:
    """Notes of sites on their features at the roll call, each once."""
    calls = read_run(out).calls.values()
    return list(dict.fromkeys(note for call in calls for note in call.notes))


def notes_of_training(study: Study, out: Path) -> list[str]:
    """Modalities that no train row of any site was told to have, of which nothing can be learned."""
    if study.privacy.dp is not None:  # no such numbers are told
        return []
    pooled = read_run(out).scaling
    return [
        f"no site told a train row that has {each.name}: the model has not learned it and does not look at it"
        for each in study.modalities
        if each.name in pooled and pooled[each.name].n == 0
    ]


def notes_of_selection(outcomes: Mapping[str, Outcome]) -> list[str]:
    """What is wrong with selections, by the site that trained alone or an empty name."""
    found: dict[str, list[str]] = {}
    for site, outcome in outcomes.items():
        if outcome.note:
            found.setdefault(outcome.note, []).append(site)
    alone = {note: ", ".join(filter(None, sites)) for note, sites in found.items()}
    return [f"{note} ({sites})" if sites else note for note, sites in alone.items()]


def notes_of_model(study: Study) -> list[str]:
    """Caveats on the model and its metrics: what it stands for, what stayed at the sites."""
    parts = ", ".join(study.federation.local)
    stay = f"{parts} stay at each site: metrics are with the sites' own, the model has their starting values"
    own = ", ".join(each.name for each in study.modalities if each.scaling.is_own)
    scaled = f"{own}: scaled by each site's own moments, which stay there; no other site can use the model"
    notes = (MODELS[study.model.name].NOTE, stay if parts else "", scaled if own else "")
    return [note for note in notes if note]


@cache
def _version(package: str) -> str:
    return version(package)  # reads the whole description of the package


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    packages = {name: _version(name) for name in ("federated-mmare", "flwr", "numpy", "torch")}
    return {**packages, "python": platform.python_version()}
