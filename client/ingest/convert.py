"""``mmare-site convert``: a folder of DICOM files to one NIfTI file per usable series, and a report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  the usual name

from client.ingest.choose import SeriesRule, choose_each
from client.ingest.dicom.folder import make_volume, scan_folder
from client.ingest.dicom.pixels import fingerprints
from client.ingest.dicom.series import Part, find_parts
from client.ingest.names import OwnedNames
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.report import REPORT_NAME, Outcome, Report, SeriesEntry, write_json
from client.ingest.volume import Volume, ras_to_lps
from mmare.errors import InputError, RunError
from mmare.host.files import replacing

__all__ = ["convert_folder", "write_volume"]

Progress = Callable[[str, int, int], None]


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
        entries = _planned_entries(parts, names)
        report = Report(
            source_digest=digest,
            series=tuple(entries),
            ignored=tuple(ignored),
            n_files=len({frame.file.path for frame in frames}) + len(ignored),
            left_over=names.left_over(entry.identity for entry in entries),
        )
        write_json(out / REPORT_NAME, report.to_json(finished=False))  # claims our files if we are killed
        with ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for index, part in enumerate(parts):
                report_progress("convert", index, len(parts))
                entries[index], volume = _convert_part(part, entries[index])
                if volume is None:
                    names.discard(entries[index].identity)
                    continue
                if written:  # one volume is compressed while the next is read: more would fill the memory
                    written.result()
                written = writer.submit(write_volume, volume, out / str(entries[index].output))
            if written:
                written.result()
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
    try:
        # A name that is always the same: what a killed conversion left is written over by the next one.
        with replacing(path, f".partial-{path.name}") as partial:
            sitk.WriteImage(image, str(partial), useCompression=True)
    except (RuntimeError, OSError) as error:
        raise RunError("a volume cannot be written to the output folder; is the disk full?") from error


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


def _convert_part(part: Part, entry: SeriesEntry) -> tuple[SeriesEntry, Volume | None]:
    if entry.output is None:
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
