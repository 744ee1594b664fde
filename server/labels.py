"""The short id of a run, as a label value; the others are those of `mmare.host.metric_labels`."""

from __future__ import annotations

import hashlib
import re
from typing import Any

__all__ = ["run_label"]

_RUN = re.compile(r".*-([0-9a-f]{8})")


def run_label(run: Any) -> str:  # noqa: ANN401 - whatever a journal holds
    """The short id of a run: the end of its name, or eight signs of a digest of a name of another form.

    Example:
        >>> run_label("mmist-vital12-d95f77ff")
        'd95f77ff'
    """
    found = _RUN.fullmatch(str(run))
    return found[1] if found else hashlib.sha256(str(run).encode(errors="replace")).hexdigest()[:8]
