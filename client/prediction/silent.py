"""A silent trial (DECIDE-AI, Vasey et al. 2022): predictions are kept for scoring and shown to nobody."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from client.prediction.written.table import record
from mmare.host.files import own_folder, replacing
from mmare.host.locks import locked
from sites.manifest import ID

if TYPE_CHECKING:
    from pathlib import Path

    from client.prediction.predict import Predictions
    from mmare.package.package import Package
    from sites.config import SiteConfig

__all__ = ["keep_silently", "kept_file"]


def kept_file(package: Package, site: SiteConfig) -> Path:
    """Where a model's predictions are kept, in the JSON form of the table."""
    return site.folder / "silent" / f"{package.digest}.jsonl"


def keep_silently(found: Predictions, site: SiteConfig) -> None:
    """Keep the predictions, of each patient the last one."""
    path = kept_file(found.package, site)
    own_folder(path.parent)
    with locked(path.parent):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = {json.loads(line)[ID]: line for line in lines}
        for row, patient in enumerate(found.inputs.patients):
            kept[patient] = json.dumps(record(found, row), ensure_ascii=False, allow_nan=False)
        with replacing(path, private=True) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept.values()), encoding="utf-8")
