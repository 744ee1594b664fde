"""Which text may be a number."""

from __future__ import annotations

__all__ = ["is_plain"]


def is_plain(text: str) -> bool:
    """Whether text may hold a number as people write it: Python also reads 1_5 and digits of every script.

    Example:
        >>> is_plain("-1.5e3"), is_plain("1_5"), is_plain("\N{FULLWIDTH DIGIT ONE}")
        (True, False, False)
    """
    return text.isascii() and "_" not in text
