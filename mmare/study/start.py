"""The table ``[start]`` of a study that goes on from a trained model instead of the seed's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mmare.study.study import Study

__all__ = ["StartSpec", "start_rules"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StartSpec:
    """Which model it is; part of the study's hash, so that a hospital approves it by name."""

    digest: str  # of its study and weights: `mmare.package.start.StartModel`
    first: tuple[str, ...] = ()  # new modalities, whose blocks train alone at first
    rounds: int = 0  # for so many rounds


def start_rules(study: Study) -> list[tuple[bool, str]]:
    """What must hold of the table, each with the sentence for where it does not."""
    start = study.start
    if start is None:
        return []
    unknown = sorted(set(start.first) - {each.name for each in study.modalities})
    return [
        (not unknown, f"[start] first names modalities that the study does not have: {', '.join(unknown)}"),
        (
            start.rounds >= 0 and bool(start.rounds) == bool(start.first),
            f"[start] first and rounds belong together, found {list(start.first)} and {start.rounds}",
        ),
        (
            _DIGEST.fullmatch(start.digest) is not None,
            f"[start] digest must be 64 hexadecimal digits, found {start.digest[:70]!r}",
        ),
    ]
