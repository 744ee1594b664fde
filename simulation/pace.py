"""Which rounds of a simulated run are kept on the disk: a run that dies repeats the others, bit for bit."""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmare.study.study import Study

__all__ = ["PACE", "Pace"]

KEEP_S: Final = 2.0
MOST: Final = 64  # rounds remembered


class Pace:
    """Coordinator and sites of this process ask the same one, so that they keep the same rounds.

    Every round is kept, unless `relaxed` says otherwise.
    """

    def __init__(self) -> None:
        self._every_s = 0.0
        self._last = float("-inf")
        self._decided: OrderedDict[tuple[str, int], bool] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def relaxed(self, study: Study) -> Iterator[None]:
        """Keep a round every `KEEP_S`, the first at once.

        Not where an earlier round may be asked for again: the best round's local parts, or answers with noise
        or masks, which are given once.
        """
        strict = study.federation.local or study.privacy.dp is not None or study.privacy.secure_sum
        self._every_s, self._last = 0.0 if strict else KEEP_S, float("-inf")
        try:
            yield
        finally:
            self._every_s = 0.0

    def keeps(self, run: str, number: int) -> bool:
        """Whether a round is kept; the same answer whoever asks."""
        with self._lock:
            if not self._every_s:
                return True
            if (run, number) not in self._decided:
                now = time.monotonic()
                keep = now - self._last >= self._every_s
                self._last = now if keep else self._last
                self._decided[run, number] = keep
                if len(self._decided) > MOST:
                    self._decided.popitem(last=False)
            return self._decided[run, number]


PACE: Final = Pace()
