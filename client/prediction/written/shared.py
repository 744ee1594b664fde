"""What is told of a patient whatever the task, in tables and on pages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from client.prediction.predict import Predictions

__all__ = ["basis_of", "page_of_any", "row_of_any"]

Named = dict[str, float]


def basis_of(found: Predictions, row: int, named: Callable[[Tensor], Named]) -> dict[str, Any]:
    """What the answers for a patient rest on; ``named`` gives the answers' names to values ``(V,)``."""
    names = [modality.name for modality in found.package.study.modalities]
    present = found.inputs.present[row].tolist()
    return {
        "modalities": [name for name, there in zip(names, present, strict=True) if there],
        "pattern": found.patterns[row],
        "seen": found.seen[row],
        "prior": None if found.prior is None else named(found.prior),
        "shapley": None
        if found.shares is None
        else {name: named(share) for name, share in zip(names, found.shares[row], strict=True)},
        "distance": {name: found.distances[row].get(name) for name in names},
        "warnings": list(found.warnings[row]),
        "model": found.package.digest,
        "notice": found.package.facts.notice,
    }


def page_of_any(found: Predictions, made: datetime | None) -> dict[str, Any]:
    """Of a page, all but its rows and what only one task has."""
    return {
        "study": found.package.study,
        "digest": found.package.digest,
        "facts": found.package.facts,
        "made": f"{made or datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "never": sum(seen == 0 for seen in found.seen),
        "warned": sum(bool(sentences) for sentences in found.warnings),
        "notes": found.notes[1:],  # the first is the notice, which has a place of its own
        "explained": found.shares is not None,
        "counted": found.package.patterns is not None,
    }


def row_of_any(found: Predictions, row: int) -> dict[str, Any]:
    """Of a row of a page, who it is of, what was there, and what to mind."""
    present = found.inputs.present[row].tolist()
    return {
        "patient": found.inputs.patients[row],
        "present": [
            (modality.name, there)
            for modality, there in zip(found.package.study.modalities, present, strict=True)
        ],
        "seen": found.seen[row],
        "warnings": found.warnings[row],
    }
