"""The model card as one JSON object: what the run tells, and what its makers state in a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import InputError
from mmare.package.answers import answers_of, tells
from mmare.package.sealed import NOTICE
from mmare.study.outcome import TASKS
from mmare.study.tables import TableError, from_table, read_toml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mmare.package.sealed import Facts
    from mmare.study.study import Study
    from server.release.decide import Decisions
    from server.release.finished_run import FinishedRun

__all__ = ["NOT_STATED", "Statements", "card_of", "read_statements"]

NOT_STATED: Final = "not stated"
_CLASSES: Final = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log-loss",
    "brier": "Brier score",
    "ece": "ECE",
}


def _titles(study: Study) -> dict[str, str]:
    """Metrics that a card tells, by name."""
    if study.survival is not None:
        at = [f"{time:g}" for time in study.survival.horizons]
        unit = study.survival.unit
        return {
            "concordance": "concordance",
            "integrated_brier": "integrated Brier score",
            **{f"auc_{time}": f"AUC at {time} {unit}" for time in at},
            **{f"brier_{time}": f"Brier score at {time} {unit}" for time in at},
            **{f"calibration_{time}": f"observed over expected events at {time} {unit}" for time in at},
        }
    if study.regression is not None:
        return {"r2": "R²", "mae": "MAE", "rmse": "RMSE", "slope": "calibration slope"}
    return _CLASSES


@dataclass(frozen=True)
class Statements:
    """What only people know; each is a text of its own in the file that ``--card`` names."""

    title: str = NOT_STATED
    summary: str = NOT_STATED
    developer: str = NOT_STATED
    contact: str = NOT_STATED
    licence: str = NOT_STATED
    version: str = NOT_STATED
    availability: str = NOT_STATED  # where in the world
    intended_use: str = NOT_STATED  # and in which workflow
    intended_users: str = NOT_STATED
    population: str = NOT_STATED
    out_of_scope: str = NOT_STATED
    risks: str = NOT_STATED  # known risks and limitations
    biases: str = NOT_STATED  # known biases, inequalities, ethical considerations
    risk_level: str = NOT_STATED  # clinical
    outcome: str = NOT_STATED  # what the classes mean, and who found them out how
    eligibility: str = NOT_STATED
    dates: str = NOT_STATED  # of the data
    setting: str = NOT_STATED
    treatments: str = NOT_STATED
    sample_size: str = NOT_STATED  # how it was arrived at
    fairness: str = NOT_STATED  # what was done about it
    maintenance: str = NOT_STATED
    consulted: str = NOT_STATED  # patients, public, stakeholders
    consent: str = NOT_STATED
    ethics: str = NOT_STATED  # approval
    funding: str = NOT_STATED
    conflicts: str = NOT_STATED
    protocol: str = NOT_STATED
    registration: str = NOT_STATED
    data_sharing: str = NOT_STATED
    code: str = NOT_STATED
    publications: str = NOT_STATED


def read_statements(path: Path | None) -> Statements:
    """Read the file; without one nothing is stated.

    Raises:
        InputError: If it cannot be read, or a key is unknown.
    """
    if path is None:
        return Statements()
    try:
        return from_table(Statements, read_toml(path, "card"), str(path))
    except TableError as error:
        raise InputError(str(error)) from None


def card_of(run: FinishedRun, facts: Facts, decisions: Decisions, statements: Statements) -> dict[str, Any]:
    """The card: `Statements` and facts of the run."""
    study, result, patterns = run.study, run.result, run.patterns()
    test, encoders = result["metrics"]["test"], run.encoders()
    worst, titles = test["worst_site"], _titles(study)
    return {
        "notice": NOTICE,
        "study": study.name,
        "statements": asdict(statements),
        "task": study.task.value,
        "tells": tells(study),
        "answers": [*answers_of(study)],
        "metrics": titles,
        "headline": TASKS[study.task].headline,
        "classes": [*study.classes],
        "positive": study.positive,
        "inputs": [
            {
                "modality": each.name,
                "width": each.width,
                "scaling": each.scaling.value,
                **(
                    asdict(encoders[each.name])
                    if each.name in encoders
                    else {
                        "kind": each.kind.value,
                        "encoder": each.encoder,
                        "fingerprint": NOT_STATED,
                        "sites": [],
                    }
                ),
            }
            for each in study.modalities
        ],
        "model": {"name": study.model.name, **result["parameters"]},
        "training": {
            "mode": result["mode"],
            "strategy": result["strategy"],
            "rounds": result["rounds_run"],
            "best_round": result["best_round"],
            "trained": facts.trained,
            "oversample": study.training.oversample or "none",
            "min_count": study.privacy.min_count,
            "rows": {site: call.counts.get("splits", {}) for site, call in run.calls.items()},
            "patterns": None
            if patterns is None
            else {name: asdict(count) for name, count in patterns.items()},
        },
        "test": {
            "pooled": _scores(test["pooled"], titles),
            "sites": {site: _scores(metrics, titles) for site, metrics in test["sites"].items()},
            "patterns": {name: _scores(metrics, titles) for name, metrics in test["patterns"].items()},
            "worst_site": worst["site"] if worst else None,
            "spread": test["spread"],
        },
        "decisions": {**decisions.made, "report": decisions.report},
        "left_out": result["left_out"],
        "notes": result["notes"],
        "not_stated": dict(facts.not_stated),
        "provenance": {
            "run": facts.run,
            "study_hash": facts.study_hash,
            "journal_sha256": facts.journal_sha256,
            "versions": dict(facts.versions),
            "start": result.get("start", {}),
        },
    }


def _scores(metrics: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    """Rows, and per metric its value and, if there is one, its 95 % interval."""
    intervals = metrics.get("ci95") or {}
    return {
        "n": metrics["n"],
        **{
            name: None if metrics.get(name) is None else [metrics[name], *(intervals.get(name) or ())]
            for name in titles
        },
    }
