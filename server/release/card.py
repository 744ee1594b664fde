"""The model card as one JSON object: what the run tells, and what its makers state in a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import InputError
from mmare.package.sealed import NOTICE
from mmare.study.tables import TableError, from_table, read_toml

if TYPE_CHECKING:
    from pathlib import Path

    from server.release.finished_run import FinishedRun

__all__ = ["NOT_STATED", "Statements", "card_of", "read_statements"]

NOT_STATED: Final = "not stated"


@dataclass(frozen=True)
class Statements:
    """What only people know; each is a text of its own in the file that ``--card`` names."""

    title: str = NOT_STATED
    developer: str = NOT_STATED
    contact: str = NOT_STATED
    licence: str = NOT_STATED
    version: str = NOT_STATED
    intended_use: str = NOT_STATED
    intended_users: str = NOT_STATED
    out_of_scope: str = NOT_STATED
    population: str = NOT_STATED
    setting: str = NOT_STATED
    outcome: str = NOT_STATED  # what the classes mean and how they were found out
    known_risks: str = NOT_STATED
    ethics: str = NOT_STATED
    funding: str = NOT_STATED
    registration: str = NOT_STATED


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


def card_of(run: FinishedRun, statements: Statements, not_stated: dict[str, str]) -> dict[str, Any]:
    """The card: `Statements` and facts of the run."""
    study, result = run.study, run.result
    test = result["metrics"]["test"]
    encoders = run.encoders()
    return {
        "notice": NOTICE,
        "study": study.name,
        "statements": {each.name: getattr(statements, each.name) for each in fields(statements)},
        "classes": [*study.classes],
        "positive": study.positive,
        "inputs": [
            {
                "modality": each.name,
                "kind": each.kind.value,
                "width": each.width,
                "scaling": each.scaling.value,
                **(asdict(encoders[each.name]) if each.name in encoders else {"sites": []}),
            }
            for each in study.modalities
        ],
        "model": {"name": study.model.name, **result["parameters"]},
        "training": {
            "mode": result["mode"],
            "strategy": result["strategy"],
            "rounds": result["rounds_run"],
            "best_round": result["best_round"],
            "trained": run.state.end.time if run.state.end else NOT_STATED,
            "rows": {site: call.counts.get("splits", {}) for site, call in run.calls.items()},
        },
        "test": {key: test[key] for key in ("pooled", "worst_site", "spread")},
        "left_out": result["left_out"],
        "notes": result["notes"],
        "not_stated": not_stated,
        "versions": result["versions"],
    }
