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


def start_rules(study: Study) -> list[tuple[bool, str]]:
    """What must hold of the table, each with the sentence for where it does not."""
    start = study.start
    if start is None:
        return []
    return [
        (
            _DIGEST.fullmatch(start.digest) is not None,
            f"[start] digest must be 64 hexadecimal digits, found {start.digest[:70]!r}",
        )
    ]
