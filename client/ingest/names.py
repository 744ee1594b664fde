"""Names of the volumes that a conversion writes: the same from run to run, and never those of other files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from client.ingest.report import REPORT_NAME
from mmare.errors import InputError
from mmare.host.files import slug

__all__ = ["OwnedNames"]

SUFFIX = ".nii.gz"
LONGEST_SLUG = 60  # leaves room for number and suffix in every file system
NAMELESS = "series"

Identity = tuple[str, str, int, int]
_IDENTITY = ("study_uid", "series_uid", "series_number", "part")  # its keys in a report


class OwnedNames:
    """Give out names in an output folder, remembering from its report which files are ours.

    Args:
        out: The output folder, which exists.
        source_digest: Of the folder that is converted.

    Raises:
        InputError: If the output folder holds the conversion of another folder, or an unreadable report.
    """

    def __init__(self, out: Path, source_digest: str) -> None:
        self._out = out
        self._earlier = _earlier_names(out / REPORT_NAME, source_digest)
        self._given: set[str] = set()

    def reserve(self, identities: Iterable[Identity]) -> None:
        """Keep the earlier names of these series for them, so that a new series does not take one."""
        self._given |= {self._earlier[identity] for identity in identities if identity in self._earlier}

    def left_over(self, identities: Iterable[Identity]) -> tuple[dict[str, str | int], ...]:
        """Our files of series that were not found this time, as a report lists them: they stay ours."""
        found = set(identities)
        return tuple(
            dict(zip((*_IDENTITY, "output"), (*identity, name), strict=True))
            for identity, name in sorted(self._earlier.items())
            if identity not in found and (self._out / name).exists()
        )

    def discard(self, identity: Identity) -> None:
        """Remove the volume that an earlier run made of a series that is refused now."""
        if identity in self._earlier:
            (self._out / self._earlier[identity]).unlink(missing_ok=True)

    def name(self, identity: Identity, description: str) -> str:
        """The name of one series: the one it had before, else the first that is free."""
        if identity in self._earlier:
            return self._earlier[identity]
        stem = f"{identity[2]}_{slug(description)[:LONGEST_SLUG].strip('-') or NAMELESS}"
        number = 1
        while True:
            name = f"{stem}_{number}{SUFFIX}" if number > 1 else f"{stem}{SUFFIX}"
            if name not in self._given and not (self._out / name).exists():
                self._given.add(name)
                return name
            number += 1


def _earlier_names(path: Path, source_digest: str) -> dict[Identity, str]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        names = {
            (entry["study_uid"], entry["series_uid"], entry["series_number"], entry["part"]): entry["output"]
            for entry in (*report["series"], *report["left_over"])
            if entry["output"]
        }
        earlier_source = report["source"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the output folder holds a {REPORT_NAME} that is not one of ours; choose another"
        ) from error
    if earlier_source != source_digest:
        raise InputError(
            "the output folder holds the conversion of another folder; choose one folder for each"
        )
    return names
