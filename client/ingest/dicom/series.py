"""Group frames into parts that hold every position once: a volume, or the reason why not.

::

    frames ── by series UID and number ──> no slices (report, capture, colour, localizer)   refused
                                      └──> by size, spacing, orientation ── too few          refused
                                                                       └──> no repeats       a volume
                          copies dropped, then split by echo, image type, ...  <─────────┘   or refused

Slices of one UID are split first by what a series has one of (`FileHeader.origin`).
Nothing here depends on file names, instance numbers or the order of files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, pairwise

import numpy as np
from numpy.typing import NDArray

from client.ingest.dicom.geometry import is_even, same_orientation, same_place, unit_axes
from client.ingest.dicom.header import FileHeader, Frame, Key, ScalingSource
from client.ingest.dicom.kinds import is_localizer_description, kind_reasons
from client.ingest.reasons import Correction, ScanReason
from client.ingest.volume import MIN_SLICES

__all__ = ["Part", "find_parts"]

FEWEST_UID_PARTS = 4  # of a UID that is an identity: an organisation's root has three or more already
MOST_PLANNED = 15  # slices of a series whose description may tell that it is a localizer
THICKER = 1.2  # times the step: slices of one pass overlap no more
MOST_PHASES = 4  # repeats by time, b value or acquisition: up to four are volumes, more are a time series
MOST_MR_ACQUISITIONS = 2  # a scan and its repeat; MR dynamics number time points by acquisition
LONGEST_PAUSE_S = 43_200.0  # half a day: no scan rests so long, and midnight is no such pause
SAME_SPACING_SHARE = 1e-3  # pixel spacings written with three or more digits

_PHASE_KEYS = frozenset({Key.TEMPORAL, Key.B_VALUE, Key.ACQUISITION})
_DAY_S = 86_400.0
_IN_PLANE_MM = 0.1  # stacks side by side are centimetres apart, positions are written to 1e-3 mm

Fingerprints = Callable[[Sequence[Frame]], Sequence[bytes | None]]


@dataclass(frozen=True)
class Part:
    """Frames that belong together."""

    frames: tuple[Frame, ...]  # at least one, in an order that does not depend on the files
    reasons: tuple[ScanReason, ...] = ()  # why it is no volume, most important first
    corrections: tuple[Correction, ...] = ()
    n_duplicates: int = 0  # dropped


def find_parts(frames: Iterable[Frame], fingerprints: Fingerprints) -> list[Part]:
    """Group the frames of a whole folder.

    ``fingerprints`` hashes the pixels of frames (None if unreadable); it is called only for those that share
    a position.

    Returns:
        Parts by series number, then by UID; those of one series are adjacent.
    """
    series: dict[tuple[int, str, str, str], list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: frame.identity):
        file = frame.file
        key = (file.series_number, file.study_uid, file.series_uid, file.patient)
        series.setdefault(key, []).append(frame)
    parts = [part for key in sorted(series) for part in _parts_of_series(series[key], fingerprints)]
    for identity in (lambda file: file.patient, lambda file: file.series_uid):
        parts = _gather_single_slices(parts, identity)
    return parts


def _by_origin(frames: list[Frame]) -> list[list[Frame]]:
    """Split by what is constant in a series; a value of its own in every slice tells nothing."""
    groups = [frames] if frames else []
    for place in range(len(frames[0].file.origin) if frames else 0):
        split: list[list[Frame]] = []
        for group in groups:
            found = _grouped(group, [frame.file.origin[place] for frame in group])
            own = len(found) == len({frame.file for frame in group}) >= MIN_SLICES
            split += [group] if own else found
        groups = split
    return [part for group in groups for part in _by_day(group)]


def _by_day(frames: list[Frame]) -> list[list[Frame]]:
    """Split where the acquisition pauses for longer than a scan takes; a day per slice tells nothing."""
    days = {(frame.file.times_s[0] or 0.0) // _DAY_S for frame in frames}
    parts = _by_pause(frames, 0, LONGEST_PAUSE_S) if len(days) < len(frames) else [frames]
    return parts if len(parts) == 1 else [part for half in parts for part in _by_day(half)]


def _gather_single_slices(parts: list[Part], identity: Callable[[FileHeader], str]) -> list[Part]:
    """Join lone slices of one identity, number and kind that differ in another, for one reason."""
    lone: dict[tuple[object, ...], list[Frame]] = {}
    kinds = [(identity(part.frames[0].file), *_kind(part.frames[0])) for part in parts]
    for part, kind in zip(parts, kinds, strict=True):
        if part.reasons == (ScanReason.TOO_FEW_SLICES,) and len(part.frames) == 1:
            lone.setdefault(kind, []).append(part.frames[0])
    kept: list[Part] = []
    for part, kind in zip(parts, kinds, strict=True):
        group = lone.get(kind, []) if len(part.frames) == 1 else []
        if part.reasons != (ScanReason.TOO_FEW_SLICES,) or len(group) < MIN_SLICES:
            kept.append(part)
        elif part.frames[0] is group[0]:
            kept.append(Part(tuple(group), (ScanReason.UID_PER_SLICE,)))
    return kept


def _kind(frame: Frame) -> tuple[object, ...]:
    file = frame.file
    return file.series_number, file.description, file.shape, file.modality, frame.orientation


def _parts_of_series(frames: Sequence[Frame], fingerprints: Fingerprints) -> list[Part]:
    slices: list[Frame] = []
    refused: dict[ScanReason, list[Frame]] = {}  # by the most important reason
    for frame in frames:
        reasons = kind_reasons(frame)
        (refused.setdefault(reasons[0], []) if reasons else slices).append(frame)
    parts = [part for group in _by_origin(slices) for part in _parts_of_slices(group, fingerprints)]
    return [
        *_note_split(parts),
        *(Part(tuple(group), _reasons_in(group)) for group in refused.values()),
    ]


def _parts_of_slices(slices: Sequence[Frame], fingerprints: Fingerprints) -> list[Part]:
    if not _is_identity(slices[0].file.series_uid):
        return [Part(tuple(slices), (ScanReason.NO_IDENTITY,))]
    parts: list[Part] = []
    strays: list[Frame] = []  # of groups too small for a volume, in a series that has other groups
    alike = _alike(slices)
    for group in alike:
        if len(group) < MIN_SLICES and len(alike) > 1 and group[0].file.mosaic is None:
            strays.extend(group)
        else:
            parts.extend(_every_position_once(group, fingerprints))
    if len(alike) > 1 or len(slices) <= MOST_PLANNED:
        parts = [_planned(part) for part in parts]
    return [*parts, *([_judge_strays(strays)] if strays else [])]


def _is_identity(uid: str) -> bool:
    """Whether a UID can be one that a scanner gave, not blank, one repeated digit, a word or a mere root."""
    numbers = uid.split(".")
    digits = set("".join(numbers))
    return len(numbers) >= FEWEST_UID_PARTS and all(map(str.isdigit, numbers)) and len(digits) > 1


def _planned(part: Part) -> Part:
    """A few slices, or several planes, are a localizer if the description says so."""
    if part.reasons or not is_localizer_description(part.frames[0].file.description):
        return part
    return replace(part, reasons=(ScanReason.LOCALIZER,))


def _reasons_in(group: Sequence[Frame]) -> tuple[ScanReason, ...]:
    return tuple(dict.fromkeys(reason for frame in group for reason in kind_reasons(frame)))


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


def _every_position_once(frames: list[Frame], fingerprints: Fingerprints) -> list[Part]:
    if _most_repeats(frames) == 1:
        return [_judge_count(part) for part in _unmix(frames)]
    kept = _without_copies(frames, fingerprints)
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
    if frames[0].file.mosaic is not None:
        return [frames]
    normal = unit_axes(_orientation(frames[0]))[2]
    for parts in _divisions(frames, in_passes=_lie_evenly(frames) and not _overlap(frames)):
        if len(parts) > 1 and all(len(part) >= MIN_SLICES and _lie_evenly(part) for part in parts):
            heights = [_heights(part, normal) for part in parts]
            extents = sorted((float(along[0]), float(along[-1])) for along in heights)
            if any(later[0] < earlier[1] for earlier, later in pairwise(extents)):
                return parts
    return [frames]


def _divisions(frames: list[Frame], *, in_passes: bool) -> Iterator[list[list[Frame]]]:
    """Frames divided by each thing that may differ; time and acquisition also do in passes of one scan."""
    yield _grouped(frames, [frame.file.series_time for frame in frames])
    for key in Key:
        if key is not Key.IN_PLANE and not (in_passes and key is Key.ACQUISITION):
            yield _by_key(frames, key)
    for place in range(0 if in_passes else len(frames[0].file.times_s)):
        yield _by_pause(frames, place)


def _by_pause(frames: list[Frame], place: int, shortest_s: float = 0.0) -> list[list[Frame]]:
    """Frames before and after the longest pause between times, if it is longer than the shortest."""
    times_s = [time for frame in frames if (time := frame.file.times_s[place]) is not None]
    ends = sorted(set(times_s))
    if len(times_s) < len(frames) or len(ends) < 2:  # noqa: PLR2004  a pause has two ends
        return [frames]
    if ends[0] < _DAY_S:  # some without a date
        times_s = [time % _DAY_S for time in times_s]
        ends = sorted(set(times_s))
    pause_s, start = max((later - earlier, earlier) for earlier, later in pairwise(ends))
    return _grouped(frames, [str(t > start) for t in times_s]) if pause_s > shortest_s else [frames]


def _overlap(frames: Sequence[Frame]) -> bool:
    """Whether slices are thicker than their step, as those of two scans half a step apart are.

    One scan that is acquired in two passes leaves gaps in each, which the other fills.
    """
    heights = _heights(frames, unit_axes(_orientation(frames[0]))[2])
    step = float(heights[-1] - heights[0]) / max(1, len(heights) - 1)
    return all((frame.thickness_mm or math.inf) > THICKER * step for frame in frames)


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
    is_4d = min(repeats.values()) > 1 and len({frame.file.is_lossy for frame in frames}) == 1
    if _is_ge_pair(frames[0], max(repeats.values())):
        is_4d = any(len({frame.key(key) for frame in frames}) > 1 for key in _PHASE_KEYS)
    return Part(tuple(frames), (ScanReason.FOUR_DIMENSIONAL if is_4d else ScanReason.CONFLICTING_SLICES,))


def _is_ge_pair(frame: Frame, most_repeats: int) -> bool:
    """Whether two pictures a position may be a B0 map and its magnitude, which GE keeps in one series."""
    file = frame.file
    return most_repeats == 2 and file.modality == "MR" and file.manufacturer.startswith("ge ")  # noqa: PLR2004


def _judge_count(frames: Sequence[Frame]) -> Part:
    if len(frames) < MIN_SLICES and frames[0].file.mosaic is None:
        return Part(tuple(frames), (ScanReason.TOO_FEW_SLICES,))
    sources = {(frame.scaling.source, frame.scaling.is_private) for frame in frames}
    units = {frame.key(Key.UNIT) for frame in frames} - {""}
    clear = len(sources) == 1 and len(units) <= 1 and frames[0].scaling.source is not ScalingSource.UNREADABLE
    return Part(tuple(frames), () if clear else (ScanReason.UNCLEAR_SCALING,))


def _without_copies(frames: Sequence[Frame], fingerprints: Fingerprints) -> list[Frame]:
    """Drop frames with the position, the keys and the pixels of an earlier one."""
    places = _places(frames)
    candidates = Counter((place, frame.keys) for place, frame in zip(places, frames, strict=True))
    repeated = [candidates[place, frame.keys] > 1 for place, frame in zip(places, frames, strict=True)]
    hashes = iter(fingerprints(list(compress(frames, repeated))))
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
    in_plane = key is Key.IN_PLANE
    return _grouped(frames, [_in_plane(frame, frames[0]) if in_plane else frame.key(key) for frame in frames])


def _grouped(frames: Sequence[Frame], values: Sequence[str]) -> list[list[Frame]]:
    """The frames of each value, by value."""
    groups: dict[str, list[Frame]] = {}
    for frame, value in zip(frames, values, strict=True):
        groups.setdefault(value, []).append(frame)
    return [groups[value] for value in sorted(groups)]


def _in_plane(frame: Frame, first: Frame) -> str:
    axes = unit_axes(_orientation(first))[:2]
    offset = axes @ (np.array(frame.position_mm) - np.array(first.position_mm))
    across, down = (np.round(offset / _IN_PLANE_MM) + 0.0).astype(int).tolist()  # + 0.0: no negative zero
    return f"{across:+09d} {down:+09d}"
