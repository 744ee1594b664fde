"""The embedded federation: synthetic features of three hospitals."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from mmare.study.study import STUDY_FILE
from sites.datasets.synthetic import prepare_synthetic

__all__ = ["embedded_federation"]


def embedded_federation() -> Path:
    """Folder of the embedded federation, written on first use below the user's cache folder.

    Several processes may come here at once: a folder appears whole or not at all, and all write the same.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "mmare" / version("federated-mmare") / "synthetic"
    if not (folder / STUDY_FILE).exists():
        try:
            prepare_synthetic(out=folder)
        except Exception:
            if not (folder / STUDY_FILE).exists():
                raise  # not another process that was first
    return folder
