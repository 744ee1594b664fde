"""Read the headers of all files of a folder, on all cores if there are many."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from client.ingest.dicom.header import Frame
from client.ingest.dicom.reader import read_frames
from client.ingest.files import IgnoredFile, list_files, os_error_reason
from client.ingest.reasons import ScanReason, ScanRefused

__all__ = ["scan_folder"]

_CHUNK = 64  # files
_FEWEST_FILES = 1000  # a process takes as long to start as it needs for some five hundred headers
_MOST_PROCESSES = 8  # the disk is the limit then

_Read = list[Frame] | ScanReason
Progress = Callable[[str, int, int], None]


def scan_folder(source: Path, progress: Progress) -> tuple[list[Frame], list[IgnoredFile]]:
    """Read the header of every file below a folder, which is never written to.

    ``progress`` is called with ``("scan", done, total)``.

    Returns:
        The frames of all DICOM files, and the skipped files with the reason.
    """
    ignored: list[IgnoredFile] = []

    def refuse(path: Path, reason: ScanReason) -> None:
        ignored.append(IgnoredFile(str(path.relative_to(source)), reason))

    frames: list[Frame] = []
    files = list_files(source, refuse)
    alone = len(files) < _FEWEST_FILES or _cores() == 1
    read = _read_in_turn if alone else _read_side_by_side
    for path, found in zip(files, read(files, progress), strict=True):
        if isinstance(found, ScanReason):
            refuse(path, found)
        else:
            frames.extend(found)
    progress("scan", len(files), len(files))
    return frames, ignored


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def _read_in_turn(files: Sequence[Path], progress: Progress) -> Iterator[_Read]:
    for done, path in enumerate(files):
        progress("scan", done, len(files))
        yield _read(path)


def _read_side_by_side(files: Sequence[Path], progress: Progress) -> Iterator[_Read]:
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    n_others = min(_cores(), _MOST_PROCESSES) - 1
    # Started afresh, as a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(n_others, get_context("spawn"), _ignore_interrupts)
    try:
        others = [pool.submit(_read_chunk, chunk) for chunk in chunks]
        own = {}
        for place in reversed(range(len(chunks))):  # from the end, until this process meets the others
            progress("scan", min(_CHUNK * sum(other.done() for other in others), len(files)), len(files))
            if not others[place].cancel():
                break
            own[place] = _read_chunk(chunks[place])
        for place, other in enumerate(others):
            yield from own[place] if place in own else other.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends them to all; the first process ends


def _read_chunk(files: Sequence[Path]) -> list[_Read]:
    return [_read(path) for path in files]


def _read(path: Path) -> _Read:
    try:
        return read_frames(path)
    except ScanRefused as error:
        return error.reason
    except OSError as error:
        return os_error_reason(error)
