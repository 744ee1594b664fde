"""Which runs are under way: a record in the kit's state, for ``status`` and the console."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmare.host.files import write_whole

if TYPE_CHECKING:
    from server.membership.kit import Kit

__all__ = ["forget_run", "forget_runs", "record_run", "runs_under_way"]

RECORD: Final = "runs.json"


@dataclass(frozen=True)
class _Record:
    run: int  # Flower's number of the attempt, 0 before the first
    attempts: int  # since the start of the command
    since: str  # submission, ISO, UTC


def record_run(kit: Kit, out: Path, run: int = 0, attempts: int = 0) -> None:
    """Record a run under way, ``run`` being Flower's number of it once it is submitted."""
    record = _Record(run, attempts, datetime.now(UTC).isoformat())
    _write(kit, {**_read(kit), str(out): asdict(record)})


def forget_run(kit: Kit, out: Path) -> None:
    """Record that a run is no longer under way."""
    _write(kit, {name: record for name, record in _read(kit).items() if name != str(out)})


def forget_runs(kit: Kit) -> None:
    """Record that no run is under way."""
    with suppress(OSError):
        (kit.state / RECORD).unlink(missing_ok=True)


def runs_under_way(kit: Kit) -> dict[Path, int]:
    """Folders of the runs under way, or that were cut short, with Flower's numbers; the oldest first."""
    return {kit.folder / name: record["run"] for name, record in _read(kit).items()}


def _read(kit: Kit) -> dict[str, dict[str, int]]:
    try:
        found = json.loads((kit.state / RECORD).read_text(encoding="utf-8"))
        return {str(name): {**record, "run": int(record["run"])} for name, record in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(kit: Kit, records: dict[str, dict[str, int]]) -> None:
    with suppress(OSError):  # such as a full disk: the record is for people
        write_whole(kit.state / RECORD, json.dumps(records, indent=2).encode())
