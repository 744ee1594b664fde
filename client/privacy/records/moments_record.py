"""Scaling moments that a site released, and over whom: two sums that differ by few patients tell of them.

Once released, moments of almost the same patients are given again as they were, to every study. The record
stays at the site: of each patient a keyed digest of the id and a sketch, three numbers of the vector.
"""

from __future__ import annotations

import hmac
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from mmare.errors import DataError
from mmare.host.files import own_folder, write_whole
from mmare.wire.messages import Moments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = ["FILE", "MomentsRecord", "patient_marks"]

FILE: Final = "moments.json"
_NEAR: Final = 0.01  # of a vector's length: an encoder on another device is nearer, other content further

Sketch = tuple[float, ...]


@dataclass(frozen=True)
class _Released:
    """Moments of one modality, and whose."""

    width: int
    marks: Mapping[str, Sketch]  # by digest of the patient's id
    moments: Moments


class MomentsRecord:
    """What was released, in a file of the site's folder.

    Args:
        path: The file; None keeps the record in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._released = _read(path)

    def settle(self, fresh: Moments, marks: Mapping[str, Sketch], limit: int) -> Moments:
        """The moments to release: earlier ones, if their patients differ by fewer than ``limit``.

        Args:
            fresh: Of the present rows.
            marks: Of the patients in them, as `patient_marks` gives.
            limit: Smallest group that may be told.

        Raises:
            DataError: If new ones cannot be recorded.
        """
        width = len(fresh.total)
        for known in self._released:
            if known.width == width and _differing(known.marks, marks) < max(limit, 1):
                earlier = known.moments
                return replace(earlier, modality=fresh.modality)
        if limit > 1:  # otherwise a group of one may be told
            self._released.append(_Released(width, marks, fresh))
            self._write()
        return fresh

    def _write(self) -> None:
        if self._path is None:
            return
        content = json.dumps([asdict(each) for each in self._released], separators=(",", ":"))
        try:
            own_folder(self._path.parent)
            write_whole(self._path, content.encode(), mode=0o600)
        except OSError as error:
            self._released.pop()
            raise DataError(f"{self._path}: cannot be written ({type(error).__name__})") from None


def patient_marks(patients: Sequence[str], rows: Tensor, secret: bytes) -> dict[str, Sketch]:
    """Per patient a keyed digest of the id, and a sketch of the vector, a row of ``(n, W)`` float64.

    NaN, a blank cell, counts as zero.
    """
    rows = rows.nan_to_num(nan=0.0)
    generator = torch.Generator().manual_seed(0)
    lines = torch.randn(2, rows.shape[1], generator=generator, dtype=torch.float64)
    lines /= math.sqrt(max(rows.shape[1], 1))
    numbers = torch.cat([rows.norm(dim=1, keepdim=True), rows @ lines.T * math.sqrt(2)], dim=1)  # (n, 3)
    return {
        hmac.digest(secret or b"none", patient.encode(), "sha256").hex()[:16]: tuple(sketch)
        for patient, sketch in zip(patients, numbers.tolist(), strict=True)
    }


def _differing(one: Mapping[str, Sketch], other: Mapping[str, Sketch]) -> int:
    """Patients who are in one only, or have another vector."""
    return len(one.keys() ^ other.keys()) + sum(
        max(abs(a - b) for a, b in zip(one[patient], other[patient], strict=True)) > _NEAR * one[patient][0]
        for patient in one.keys() & other.keys()
    )


def _read(path: Path | None) -> list[_Released]:
    """The record; a damaged one raises `DataError`: what it held may not be told a second time."""
    if path is None or not path.exists():
        return []
    try:
        return [_parsed(entry) for entry in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError(
            f"{path}: no record of released moments; expected the file as it was written, from a backup"
        ) from None


def _parsed(entry: dict[str, Any]) -> _Released:
    moments = entry["moments"]
    return _Released(
        int(entry["width"]),
        {str(patient): tuple(map(float, sketch)) for patient, sketch in entry["marks"].items()},
        Moments(
            *(moments["modality"], moments["n"], tuple(moments["total"]), tuple(moments["squares"])),
            counts=tuple(moments.get("counts", ())),
        ),
    )
