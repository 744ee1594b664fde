"""The largest messages that either end reads, and the longest names; whatever is larger is refused unparsed.

Parsing costs memory: 20 times a header's length. These are for messages whose study is not known yet; what a
coordinator expects of a study is in `server.rounds.answer_sizes`.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

__all__ = ["MOST_HEADER", "MOST_NAME", "MOST_PAYLOAD", "MOST_REQUEST", "RUN_NAME", "run_name"]

MOST_REQUEST: Final = 1 << 20  # characters of a request's header: a study and a few numbers
MOST_HEADER: Final = 16 << 20  # characters of an answer's header
MOST_PAYLOAD: Final = 256 << 20  # bytes of tensors: two models of 33 million float32 parameters to compare
MOST_NAME: Final = 64  # characters of a run's name, which names a folder at each site

RUN_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{MOST_NAME - 1}}}")
_DIGEST: Final = 8  # characters


def run_name(*parts: str) -> str:
    """The parts joined by ``-``; if that is too long, its beginning and a digest of the whole.

    Example:
        >>> run_name("ixi", "3f2a")
        'ixi-3f2a'
        >>> run_name("ixi" * 30, "3f2a"), len(run_name("ixi" * 30, "3f2a"))
        ('ixiixiixiixiixiixiixiixiixiixiixiixiixiixiixiixiixiixii-0ec972cc', 64)
    """
    name = "-".join(parts)
    if len(name) <= MOST_NAME:
        return name
    return f"{name[: MOST_NAME - _DIGEST - 1]}-{hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]}"
