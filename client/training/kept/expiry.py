"""Which runs were abandoned: their state at a site is dropped, by age and by number."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FINISHED", "KeptRuns", "drop_abandoned"]

LOG = logging.getLogger(__name__)

FINISHED: Final = "finished"  # a file in the folder of a run whose local parts belong to the site's model
DAY_S: Final = 86_400.0


@dataclass(frozen=True)
class KeptRuns:
    """How long the state of a run that does not end stays; None: for ever."""

    days: int | None = None  # since it was last written
    number: int | None = None  # of runs, the latest


def drop_abandoned(folder: Path, kept: KeptRuns, current: str, now: float | None = None) -> list[str]:
    """Delete the folders of abandoned runs in ``folder``, but never ``current``; returns their names."""
    if kept == KeptRuns():
        return []
    now = time.time() if now is None else now
    found = sorted(_open_runs(folder), reverse=True)
    others = [each for each in found if each[1] != current]
    room = None if kept.number is None else max(kept.number - 1, 0)  # one is the current run's
    dropped = []
    for place, (written, run) in enumerate(others):
        days = (now - written) / DAY_S
        old = kept.days is not None and days > kept.days
        if old or (room is not None and place >= room):
            LOG.warning(
                "the state of run %s, last written %.0f days ago, is deleted: %s",
                run,
                days,
                f"runs are kept {kept.days} days" if old else f"{kept.number} runs are kept",
            )
            shutil.rmtree(folder / run, ignore_errors=True)
            dropped.append(run)
    return dropped


def _open_runs(folder: Path) -> list[tuple[float, str]]:
    """When each run that has not finished was last written, and its name."""
    if not folder.is_dir():
        return []
    return [
        (path.stat().st_mtime, path.name)
        for path in folder.iterdir()
        if path.is_dir() and not (path / FINISHED).exists()
    ]
