"""What becomes of memory that is freed."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from typing import Final

__all__ = ["collect_seldom", "keep_freed_memory"]

# Of glibc's mallopt(3)
_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_THRESHOLD: Final = -3

_LARGEST_REUSED: Final = 32 * 2**20 - 1  # bytes; glibc takes no more
_KEPT: Final = 256 * 2**20  # bytes


def keep_freed_memory() -> None:
    """Let this process use freed memory again in place of giving it back, where the C library is glibc.

    A step of training frees and asks for the same megabytes; what the system hands out anew it first clears
    page by page, up to a tenth of the step.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (
            (_MMAP_THRESHOLD, _LARGEST_REUSED),
            (_TRIM_THRESHOLD, _KEPT),
            (_TOP_PAD, 2**20),
        ):
            mallopt(option, value)


def collect_seldom() -> None:
    """Look for cycles of garbage every 50,000 new objects in place of 700 (2,000 from Python 3.14).

    While modules are imported, a fifth of the time goes into looking, and nothing is found.
    """
    gc.set_threshold(50_000, 20, 20)
