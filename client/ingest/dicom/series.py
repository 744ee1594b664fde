"""Group frames into parts that hold every position once: a volume, or the reason why not.

::

    frames ── by series UID and number ──> no slices (report, capture, colour, localizer)   refused
                                      └──> by size, spacing, orientation ── too few          refused
                                                                       └──> no repeats       a volume
                          copies dropped, then split by echo, image type, ...  <─────────┘   or refused

Nothing here depends on file names, instance numbers or the order of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, pairwise

import numpy as np
from numpy.typing import NDArray

from client.ingest.dicom.geometry import is_even, same_orientation, same_place, unit_axes
from client.ingest.dicom.header import Frame, Key
from client.ingest.dicom.kinds import is_localizer_description, kind_reasons
from client.ingest.reasons import Correction, ScanReason

__all__ = ["Part", "find_parts"]

MIN_SLICES = 3  # with fewer, spacing cannot be checked
MOST_PHASES = 4  # repeats by time, b value or acquisition: up to four are volumes, more are a time series
MOST_MR_ACQUISITIONS = 2  # a scan and its repeat; MR dynamics number time points by acquisition
SAME_SPACING_SHARE = 1e-3  # pixel spacings written with three or more digits

_PHASE_KEYS = frozenset({Key.TEMPORAL, Key.B_VALUE, Key.ACQUISITION})
_IN_PLANE_MM = 0.1  # stacks side by side are centimetres apart, positions are written to 1e-3 mm

Fingerprint = Callable[[Sequence[Frame]], Sequence[bytes | None]]


@dataclass(frozen=True)
class Part:
    """Frames that belong together."""

    frames: tuple[Frame, ...]  # at least one, in an order that does not depend on the files
    reasons: tuple[ScanReason, ...] = ()  # why it is no volume, most important first
    corrections: tuple[Correction, ...] = ()
    n_duplicates: int = 0  # dropped


def find_parts(frames: Iterable[Frame], fingerprint: Fingerprint) -> list[Part]:
    """Group the frames of a whole folder.

    ``fingerprint`` hashes the pixels of frames (None if unreadable); it is called only for those that share a
    position.

    Returns:
        Parts by series number, then by UID; those of one series are adjacent.
    """
    series: dict[tuple[int, str, str, str], list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: frame.identity):
        file = frame.file
        key = (file.series_number, file.study_uid, file.series_uid, file.patient)
        series.setdefault(key, []).append(frame)
    return [part for key in sorted(series) for part in _parts_of_series(series[key], fingerprint)]


def _parts_of_series(frames: Sequence[Frame], fingerprint: Fingerprint) -> list[Part]:
    slices: list[Frame] = []
    refused: dict[ScanReason, list[Frame]] = {}  # by the most important reason
    for frame in frames:
        reasons = _exclusion_reasons(frame)
        (refused.setdefault(reasons[0], []) if reasons else slices).append(frame)
    return [
        *_parts_of_slices(slices, fingerprint),
        *(Part(tuple(group), _reasons_in(group)) for group in refused.values()),
    ]


def _parts_of_slices(slices: Sequence[Frame], fingerprint: Fingerprint) -> list[Part]:
    parts: list[Part] = []
    strays: list[Frame] = []  # of groups too small for a volume, in a series that has other groups
    alike = _alike(slices)
    for group in alike:
        if len(group) < MIN_SLICES and len(alike) > 1 and group[0].file.mosaic is None:
            strays.extend(group)
        else:
            parts.extend(_every_position_once(group, fingerprint))
    return [*_note_split(parts), *([_judge_strays(strays)] if strays else [])]


def _reasons_in(group: Sequence[Frame]) -> tuple[ScanReason, ...]:
    return tuple(dict.fromkeys(reason for frame in group for reason in _exclusion_reasons(frame)))


def _exclusion_reasons(frame: Frame) -> tuple[ScanReason, ...]:
    """Why a frame is no slice of a volume, most important reason first."""
    planned = (ScanReason.LOCALIZER,) if is_localizer_description(frame.file.description) else ()
    return kind_reasons(frame) or planned


def _judge_strays(frames: Sequence[Frame]) -> Part:
    one = all(same_orientation(_orientation(frames[0]), _orientation(frame)) for frame in frames)
    return Part(tuple(frames), (ScanReason.TOO_FEW_SLICES if one else ScanReason.MIXED_ORIENTATION,))


def _note_split(parts: list[Part]) -> list[Part]:
    """If a series became several volumes, add the correction to each."""
    volumes = [part for part in parts if not part.reasons]
    if len(volumes) < 2:  # noqa: PLR2004  two volumes are a split
        return parts
    split = Correction.ENHANCED_SPLIT if volumes[0].frames[0].file.enhanced else Correction.SERIES_SPLIT
    return [part if part.reasons else replace(part, corrections=(*part.corrections, split)) for part in parts]


def _orientation(frame: Frame) -> tuple[float, ...]:
    if frame.orientation is None:
        raise ValueError("a slice has an orientation")
    return frame.orientation


def _alike(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Groups of one size, spacing and orientation; frames are compared with the first of a group."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _is_alike(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _is_alike(one: Frame, other: Frame) -> bool:
    if one.file.shape != other.file.shape or (one.file.mosaic is None) != (other.file.mosaic is None):
        return False
    spacings = zip(one.spacing_mm or (), other.spacing_mm or (), strict=True)
    if any(abs(a - b) > SAME_SPACING_SHARE * a for a, b in spacings):
        return False
    return same_orientation(_orientation(one), _orientation(other))


def _places(frames: Sequence[Frame]) -> list[int]:
    if frames[0].file.mosaic is not None:
        return [0] * len(frames)  # each is a whole volume; two are two times, echoes, ...
    positions = np.array([frame.position_mm for frame in frames], np.float64)  # (n, 3)
    return [int(place) for place in same_place(positions, _orientation(frames[0]))]


def _most_repeats(frames: Sequence[Frame]) -> int:
    return max(Counter(_places(frames)).values())


def _every_position_once(frames: list[Frame], fingerprint: Fingerprint) -> list[Part]:
    if _most_repeats(frames) == 1:
        return [_judge_count(part) for part in _unmix(frames)]
    kept = _without_copies(frames, fingerprint)
    n_dropped = len(frames) - len(kept)
    if _most_repeats(kept) == 1:
        part = _judge_count(kept)
        return [replace(part, corrections=(Correction.DUPLICATE_SLICES,), n_duplicates=n_dropped)]
    identities = {frame.identity for frame in kept}
    dropped = [frame for frame in frames if frame.identity not in identities]
    return [_judge_part(part, dropped) for part in _split(kept, list(Key))]


def _unmix(frames: list[Frame]) -> list[list[Frame]]:
    """Separate interleaved even stacks, such as thick and thin slices of one scan.

    Consecutive stacks (a protocol that changes its slice thickness) stay together.
    """
    if frames[0].file.mosaic is not None or _lie_evenly(frames):
        return [frames]
    normal = unit_axes(_orientation(frames[0]))[2]
    for key in Key:
        parts = [] if key is Key.IN_PLANE else _by_key(frames, key)
        if len(parts) > 1 and all(len(part) >= MIN_SLICES and _lie_evenly(part) for part in parts):
            heights = [_heights(part, normal) for part in parts]
            extents = sorted((float(along[0]), float(along[-1])) for along in heights)
            if any(later[0] < earlier[1] for earlier, later in pairwise(extents)):
                return parts
    return [frames]


def _heights(frames: Sequence[Frame], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    positions = np.array([frame.position_mm for frame in frames], np.float64)  # (n, 3)
    return np.sort(positions @ normal)


def _lie_evenly(frames: Sequence[Frame]) -> bool:
    heights = _heights(frames, unit_axes(_orientation(frames[0]))[2])
    return is_even(heights - heights[0])


def _judge_part(frames: list[Frame], dropped: Sequence[Frame]) -> Part:
    """A part of a split series: a volume if it holds every position once, else the reason why not."""
    if _most_repeats(frames) == 1:
        part = _judge_count(frames)
        keys = {frame.keys for frame in frames}
        n_copies = sum(frame.keys in keys for frame in dropped)
        corrections = (Correction.DUPLICATE_SLICES,) if n_copies else ()
        return replace(part, corrections=corrections, n_duplicates=n_copies)
    # Blank images of two time points are equal and were dropped as copies: count them.
    repeats = Counter(_places([*frames, *dropped]))
    if len(repeats) == 1 and frames[0].file.mosaic is None:
        return Part(tuple(frames), (ScanReason.TOO_FEW_SLICES,))
    is_4d = min(repeats.values()) > 1
    return Part(tuple(frames), (ScanReason.FOUR_DIMENSIONAL if is_4d else ScanReason.CONFLICTING_SLICES,))


def _judge_count(frames: Sequence[Frame]) -> Part:
    enough = len(frames) >= MIN_SLICES or frames[0].file.mosaic is not None
    return Part(tuple(frames), () if enough else (ScanReason.TOO_FEW_SLICES,))


def _without_copies(frames: Sequence[Frame], fingerprint: Fingerprint) -> list[Frame]:
    """Drop frames with the position, the keys and the pixels of an earlier one."""
    places = _places(frames)
    candidates = Counter((place, frame.keys) for place, frame in zip(places, frames, strict=True))
    repeated = [candidates[place, frame.keys] > 1 for place, frame in zip(places, frames, strict=True)]
    hashes = iter(fingerprint(list(compress(frames, repeated))))
    marks = [
        (place, frame.keys, next(hashes)) if repeats else None
        for place, frame, repeats in zip(places, frames, repeated, strict=True)
    ]
    readable = {mark[:2] for mark in marks if mark is not None and mark[2] is not None}
    seen: set[tuple[int, tuple[tuple[Key, str], ...], bytes | None]] = set()
    kept = []
    for mark, frame in zip(marks, frames, strict=True):
        if mark is not None:
            if mark in seen or (mark[2] is None and mark[:2] in readable):  # a broken copy of an intact one
                continue
            seen.add(mark)
        kept.append(frame)
    return kept


def _split(frames: list[Frame], keys: Sequence[Key]) -> Iterator[list[Frame]]:
    """Split by the first key that leaves fewer frames per position, then by the next."""
    repeats = _most_repeats(frames)
    for done, key in enumerate(keys):
        if repeats == 1:
            break
        parts = _by_key(frames, key)
        if len(parts) < 2 or not _is_useful(parts, key, repeats):  # noqa: PLR2004  two parts are a split
            continue
        for part in parts:
            yield from _split(part, keys[done + 1 :])
        return
    yield frames


def _is_useful(parts: Sequence[list[Frame]], key: Key, repeats: int) -> bool:
    most = max(_most_repeats(part) for part in parts)
    if key in _PHASE_KEYS:
        return most == 1 and len(parts) <= _most_phases(parts[0][0], key)
    return most < repeats


def _most_phases(frame: Frame, key: Key) -> int:
    if key is not Key.ACQUISITION:
        return MOST_PHASES
    if frame.file.mosaic is not None:
        return 0  # Siemens numbers time points by acquisition
    return MOST_MR_ACQUISITIONS if frame.file.modality == "MR" else MOST_PHASES


def _by_key(frames: Sequence[Frame], key: Key) -> list[list[Frame]]:
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        value = _in_plane(frame, frames[0]) if key is Key.IN_PLANE else frame.key(key)
        groups.setdefault(value, []).append(frame)
    return [groups[value] for value in sorted(groups)]


def _in_plane(frame: Frame, first: Frame) -> str:
    axes = unit_axes(_orientation(first))[:2]
    offset = axes @ (np.array(frame.position_mm) - np.array(first.position_mm))
    across, down = (np.round(offset / _IN_PLANE_MM) + 0.0).astype(int).tolist()  # + 0.0: no negative zero
    return f"{across:+09d} {down:+09d}"
