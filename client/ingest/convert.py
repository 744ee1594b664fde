"""``mmare-site convert``: a folder of DICOM files to one NIfTI file per usable series, and a report."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic

import numpy as np
import SimpleITK as sitk  # noqa: N813  the usual name
from isal import igzip

from client.ingest.choose import SeriesRule, choose_each
from client.ingest.dicom.pixels import fingerprints
from client.ingest.dicom.scan import scan_folder
from client.ingest.dicom.series import Part, find_parts
from client.ingest.dicom.stacking import make_volume
from client.ingest.names import OwnedNames
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.report import REPORT_NAME, Outcome, Report, SeriesEntry, earlier_entries, write_json
from client.ingest.volume import Volume, ras_to_lps
from mmare.errors import InputError, RunError
from mmare.host.files import replacing

__all__ = ["convert_folder", "write_volume"]

Progress = Callable[[str, int, int], None]

_KEEP_S = 1.0  # at most this much work is lost when it is killed; a report per series would cost more
_COMPRESSION = 3  # the best of ISA-L: a file 4 % larger than zlib's in a tenth of its time
_PIECE_BYTES = 1 << 20
_WRITERS = 2
_MOST_BYTES_WRITTEN = 1 << 26  # of volumes at a time
_INPUTS_VERSION = b"3"  # raised when the same files are to become another volume


def convert_folder(
    source: Path, out: Path, progress: Progress | None = None, rules: Mapping[str, SeriesRule] | None = None
) -> Report:
    """Convert every usable series below a folder.

    The source is never written to; in the output folder only files of an earlier run over the same source are
    replaced. A bad file or series never stops the others.

    Args:
        source: Export of a scanner or archive.
        out: Created if absent; receives ``<series number>_<description>[_n].nii.gz`` and ``report.json``.
        progress: Called with the stage (``scan``, ``convert``), done and total.
        rules: Per modality, which series to choose; the choices go into the report.

    Returns:
        The outcome of every series and file; `Report.anything_refused` is True if something was left out.

    Raises:
        InputError: If the source is absent, or the output is inside it or belongs to another conversion.
        RunError: If the output cannot be written.
    """
    report_progress = progress or (lambda _stage, _done, _total: None)
    source, out = _check_folders(source, out)
    digest = hashlib.sha256(str(source).encode(errors="surrogateescape")).hexdigest()
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = OwnedNames(out, digest)
        frames, ignored = scan_folder(source, report_progress)
        parts = find_parts(frames, fingerprints)
        entries = _taken_up(_planned_entries(parts, names), parts, source, out)
        report = Report(
            source_digest=digest,
            series=tuple(entries),
            ignored=tuple(ignored),
            n_files=len({frame.file.path for frame in frames}) + len(ignored),
            left_over=names.left_over(entry.identity for entry in entries),
        )
        write_json(out / REPORT_NAME, report.to_json(finished=False))  # claims our files if we are killed
        kept_at = monotonic()
        for done, (index, entry) in enumerate(_converted(parts, entries, out)):
            report_progress("convert", done, len(parts))
            entries[index] = entry
            if entry.outcome is Outcome.REFUSED:
                names.discard(entry.identity)
            if monotonic() - kept_at > _KEEP_S:
                unfinished = replace(report, series=tuple(entries))
                write_json(out / REPORT_NAME, unfinished.to_json(finished=False))
                kept_at = monotonic()
        report_progress("convert", len(parts), len(parts))
        report = replace(report, series=tuple(entries))
        report = replace(report, chosen=_chosen(report, rules or {}))
        write_json(out / REPORT_NAME, report.to_json())
    except OSError as error:
        raise RunError(
            f"the output folder cannot be written: {error.strerror or 'input/output error'}"
        ) from error
    return report


def write_volume(volume: Volume, path: Path) -> None:
    """Write a volume with orthogonal axes as ``.nii.gz``, atomically; a RunError if it cannot be written."""
    affine_mm = ras_to_lps(volume.affine_mm)  # SimpleITK uses DICOM's axes
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels.transpose(2, 1, 0)))
    image.SetSpacing(volume.spacing_mm)  # type: ignore[no-untyped-call]  # SimpleITK's wrapper has no types
    image.SetOrigin(affine_mm[:3, 3].tolist())  # type: ignore[no-untyped-call]  # as above
    direction = affine_mm[:3, :3] / np.array(volume.spacing_mm)
    image.SetDirection(direction.ravel().tolist())  # type: ignore[no-untyped-call]  # as above
    # Names that are always the same: what a killed conversion left is written over by the next one.
    plain = path.with_name(f".plain-{path.stem}")
    try:
        with replacing(path, f".partial-{path.name}") as partial:
            sitk.WriteImage(image, str(plain), useCompression=False)
            with plain.open("rb") as whole, igzip.open(partial, "wb", _COMPRESSION) as stream:  # type: ignore[no-untyped-call]
                shutil.copyfileobj(whole, stream, _PIECE_BYTES)
    except (RuntimeError, OSError) as error:
        raise RunError("a volume cannot be written to the output folder; is the disk full?") from error
    finally:
        plain.unlink(missing_ok=True)


def _check_folders(source: Path, out: Path) -> tuple[Path, Path]:
    if not source.is_dir():
        raise InputError(f"there is no folder {str(source)!r} to convert")
    source, out = source.resolve(), out.resolve()
    if out == source or source in out.parents:
        raise InputError("the output folder lies within the folder to convert; choose one outside it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file; the output must be a folder")
    return source, out


def _planned_entries(parts: Sequence[Part], names: OwnedNames) -> list[SeriesEntry]:
    """An entry for every part; those that may become volumes get their output names."""
    ids = sorted({part.frames[0].file.patient for part in parts})
    patients = {patient: number for number, patient in enumerate(ids, 1)}
    counted: dict[tuple[str, str, int, int], int] = {}
    entries = []
    for part in parts:
        file = part.frames[0].file
        series = (file.study_uid, file.series_uid, file.series_number, patients[file.patient])
        counted[series] = counted.get(series, 0) + 1
        entries.append(
            SeriesEntry(
                patient=patients[file.patient],
                study_uid=file.study_uid,
                series_uid=file.series_uid,
                part=counted[series],
                series_number=file.series_number,
                description=file.description,
                modality=file.modality,
                n_files=len({frame.file.path for frame in part.frames}),
                n_frames=len(part.frames),
                outcome=Outcome.REFUSED,
                reasons=part.reasons,
                corrections=part.corrections,
                n_duplicates=part.n_duplicates,
            )
        )
    names.reserve(entry.identity for entry in entries)
    return [
        entry if entry.reasons else replace(entry, output=names.name(entry.identity, entry.description))
        for entry in entries
    ]


def _taken_up(
    entries: Sequence[SeriesEntry], parts: Sequence[Part], source: Path, out: Path
) -> list[SeriesEntry]:
    """Planned entries with their inputs, or the entry of an earlier run that made a volume of the same."""
    earlier = earlier_entries(out / REPORT_NAME)
    entries = [
        replace(entry, inputs=_inputs(part, source)) if entry.output else entry
        for entry, part in zip(entries, parts, strict=True)
    ]
    taken = []
    for entry in entries:
        old = earlier.get(entry.identity)
        same = old is not None and old.inputs and (old.inputs, old.output) == (entry.inputs, entry.output)
        if old is not None and same and _bytes(out / str(old.output)) == old.output_bytes:
            entry = replace(old, patient=entry.patient)  # noqa: PLW2901  numbers follow the whole folder
        taken.append(entry)
    return taken


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _inputs(part: Part, source: Path) -> str:
    """A digest that changes with the files, frames and corrections of a part; empty if a file is gone."""
    digest = hashlib.sha256(_INPUTS_VERSION)
    try:
        files = {path: path.stat() for path in {frame.file.path for frame in part.frames}}
    except OSError:  # reading it will name the error
        return ""
    for path, stat in sorted(files.items()):
        state = (os.fsencode(path.relative_to(source)), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        digest.update(repr(state).encode())
    for frame in part.frames:
        digest.update(repr((frame.file.sop_uid, frame.index, frame.scaling)).encode())
    digest.update(repr((part.corrections, part.n_duplicates)).encode())
    return digest.hexdigest()


def _converted(
    parts: Sequence[Part], entries: Sequence[SeriesEntry], out: Path
) -> Iterator[tuple[int, SeriesEntry]]:
    """Each part's place and entry, once its volume is on disk.

    Volumes are compressed while the next are read, as many as do not fill the memory, or one.
    """
    writings: deque[tuple[Future[None], int, int, SeriesEntry]] = deque()

    def finished() -> tuple[int, SeriesEntry]:
        writing, _, index, entry = writings.popleft()
        writing.result()
        return index, replace(entry, output_bytes=_bytes(out / str(entry.output)))

    with ThreadPoolExecutor(_WRITERS) as writer:
        for index, (part, planned) in enumerate(zip(parts, entries, strict=True)):
            entry, volume = _convert_part(part, planned)
            if volume is None:
                yield index, entry
                continue
            n_bytes = volume.voxels.nbytes
            while writings and n_bytes + sum(waiting for _, waiting, _, _ in writings) > _MOST_BYTES_WRITTEN:
                yield finished()
            writing = writer.submit(write_volume, volume, out / str(entry.output))
            writings.append((writing, n_bytes, index, entry))
        while writings:
            yield finished()


def _convert_part(part: Part, entry: SeriesEntry) -> tuple[SeriesEntry, Volume | None]:
    if entry.output is None or entry.outcome is Outcome.CONVERTED:  # of an earlier run
        return entry, None
    try:
        made = make_volume(part)
    except ScanRefused as error:
        return replace(entry, reasons=(error.reason,), detail=error.detail, output=None), None
    except Exception as error:  # must not stop the other series; the report names it
        reasons = (ScanReason.NOT_CONVERTED,)
        return replace(entry, reasons=reasons, detail=type(error).__name__, output=None), None
    done = replace(
        entry,
        outcome=Outcome.CONVERTED,
        corrections=made.corrections,
        size=made.volume.voxels.shape,
        spacing_mm=made.volume.spacing_mm,
        orientation=made.volume.orientation,
        plane=made.volume.plane,
    )
    return done, made.volume


def _chosen(report: Report, rules: Mapping[str, SeriesRule]) -> tuple[dict[str, object], ...]:
    if not rules:
        return ()
    return tuple(
        {
            "modality": modality,
            "output": choice.entry.output if choice.entry else None,
            "rule": asdict(rules[modality]),
            "why": choice.why,
            "passed_over": [{"output": output, "why": why} for output, why in choice.passed_over],
        }
        for modality, choice in choose_each(report.series, rules).items()
    )
