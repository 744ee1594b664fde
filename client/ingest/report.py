"""The outcome for a folder: one entry per series, one per skipped file; and its JSON.

The report stays at the hospital. It holds UIDs, descriptions and file names, but no names or birth dates;
patients are numbered.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from client.ingest.files import IgnoredFile
from client.ingest.reasons import Correction, ScanReason, explain
from client.ingest.volume import Plane
from mmare.host.files import replacing

__all__ = [
    "REPORT_NAME",
    "Outcome",
    "Report",
    "SeriesEntry",
    "chosen_entry",
    "earlier_entries",
    "write_json",
]

REPORT_NAME = "report.json"
REPORT_VERSION = 1

# Files that may have held a scan.
_LOST = frozenset({ScanReason.EMPTY_FILE, ScanReason.UNREADABLE_FILE, ScanReason.PERMISSION_DENIED})


class Outcome(StrEnum):
    """Outcome for a series or file."""

    CONVERTED = "converted"
    REFUSED = "refused"
    IGNORED_FILE = "ignored-file"


@dataclass(frozen=True)
class SeriesEntry:
    """One series, or one part of a series that held different images."""

    patient: int  # number within the folder, from 1
    study_uid: str
    series_uid: str
    part: int  # number within the series, from 1
    series_number: int  # 0 if absent
    description: str  # SeriesDescription or ProtocolName
    modality: str
    n_files: int
    n_frames: int
    outcome: Outcome
    reasons: tuple[ScanReason, ...] = ()  # most important first
    detail: str = ""  # what was found
    corrections: tuple[Correction, ...] = ()  # in order
    n_duplicates: int = 0  # dropped
    output: str | None = None  # file name in the output folder
    size: tuple[int, ...] | None = None  # voxels along x, y, z
    spacing_mm: tuple[float, ...] | None = None  # along x, y, z
    orientation: str | None = None  # such as LPS
    plane: Plane | None = None
    output_bytes: int = 0  # size of the written file; tells whether it is still whole
    inputs: str = ""  # digest of the files that a volume is made of and of how; empty if there is none

    @property
    def identity(self) -> tuple[str, str, int, int]:
        """Identifies the entry from run to run."""
        return self.study_uid, self.series_uid, self.series_number, self.part

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON: every code with its sentence."""
        plain = {name: value for name, value in vars(self).items() if name not in ("reasons", "corrections")}
        return {
            **plain,
            "reasons": [_with_sentence(code) for code in self.reasons],
            "corrections": [_with_sentence(code) for code in self.corrections],
        }


@dataclass(frozen=True)
class Report:
    """The outcome for a folder."""

    source_digest: str  # identifies the folder without naming it
    series: tuple[SeriesEntry, ...]
    ignored: tuple[IgnoredFile, ...]
    n_files: int
    chosen: tuple[dict[str, Any], ...] = ()  # JSON, per modality of the site's rules: which series and why
    left_over: tuple[dict[str, str | int], ...] = ()  # volumes of earlier runs whose series is gone

    @property
    def converted(self) -> tuple[SeriesEntry, ...]:
        """Entries that became a volume."""
        return tuple(entry for entry in self.series if entry.outcome is Outcome.CONVERTED)

    @property
    def refused(self) -> tuple[SeriesEntry, ...]:
        """Entries that did not."""
        return tuple(entry for entry in self.series if entry.outcome is Outcome.REFUSED)

    @property
    def lost(self) -> tuple[IgnoredFile, ...]:
        """Unreadable files that may have held a scan."""
        return tuple(file for file in self.ignored if file.reason in _LOST)

    @property
    def anything_refused(self) -> bool:
        """Whether a series was refused or a file could not be read."""
        return bool(self.refused or self.lost)

    def to_json(self, *, finished: bool = True) -> dict[str, Any]:
        """The report as JSON."""
        reasons = Counter(entry.reasons[0] for entry in self.refused if entry.reasons)
        return {
            "version": REPORT_VERSION,
            "finished": finished,
            "source": self.source_digest,
            "counts": {
                "files": self.n_files,
                "ignored_files": dict(sorted(Counter(file.reason for file in self.ignored).items())),
                "series": len(self.series),
                "converted": len(self.converted),
                "refused": dict(sorted(reasons.items())),
            },
            "series": [entry.to_json() for entry in self.series],
            "ignored_files": [
                {"path": file.path, "outcome": Outcome.IGNORED_FILE, **_with_sentence(file.reason)}
                for file in self.ignored
            ],
            "chosen": list(self.chosen),
            "left_over": list(self.left_over),
        }


def earlier_entries(path: Path) -> dict[tuple[str, str, int, int], SeriesEntry]:
    """The volumes that a report lists, by identity; none of a report that is absent or of older make."""
    try:
        entries = [
            SeriesEntry(
                **{
                    **plain,
                    "outcome": Outcome(plain["outcome"]),
                    "reasons": (),
                    "corrections": tuple(Correction(item["code"]) for item in plain["corrections"]),
                    "size": tuple(plain["size"]),
                    "spacing_mm": tuple(plain["spacing_mm"]),
                    "plane": Plane(plain["plane"]),
                }
            )
            for plain in json.loads(path.read_text(encoding="utf-8"))["series"]
            if plain["outcome"] == Outcome.CONVERTED
        ]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return {entry.identity: entry for entry in entries}


def chosen_entry(folder: Path, modality: str) -> SeriesEntry | None:
    """The series that was chosen for a modality, by the report in ``folder``; None if it does not say."""
    path = folder / REPORT_NAME
    try:
        chosen = json.loads(path.read_text(encoding="utf-8"))["chosen"]
        outputs = {choice["modality"]: choice["output"] for choice in chosen}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    entries = earlier_entries(path).values()
    return next((entry for entry in entries if entry.output == outputs.get(modality)), None)


def _with_sentence(code: ScanReason | Correction) -> dict[str, str]:
    return {"code": code.value, "sentence": explain(code)}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file in one step, so that a reader finds the old one or the new one."""
    with replacing(path) as partial:
        # Odd bytes of a file name, which Python keeps as lone surrogates, are written as JSON escapes.
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
