"""The shared folder of real files: where it is, and what a test says that cannot find it."""

import os
from pathlib import Path

import pytest

__all__ = ["data_folder"]

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"  # ../shared/data from the project's root


def data_folder(name: str) -> Path:
    """One folder of the shared data, such as ``mmist``; skips the calling test where it is absent.

    The root comes from the environment variable ``MMARE_DATA``, by default ``../shared/data`` beside the
    project. Tests that call this carry the marker ``data``.
    """
    folder = Path(os.environ.get("MMARE_DATA") or _BESIDE) / name
    if not folder.is_dir():
        pytest.skip(f"needs the real files of {name!r}: set MMARE_DATA to the shared data folder")
    return folder
