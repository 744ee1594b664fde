"""Whether a site's line carries a round's tensors within a deadline; both ends say it in the same words."""

from __future__ import annotations

from typing import Final

__all__ = ["LINE_KEY", "LINE_RECORD", "ROUND_BYTES_KEY", "WAYS", "carries", "line_words"]

# Beside the header of a roll call: the model there and its change back.
ROUND_BYTES_KEY: Final = "round-bytes"
# Of the relay's answer: a ConfigRecord with bytes per second under LINE_KEY.
LINE_RECORD: Final = "mmare-line"
LINE_KEY: Final = "bytes-per-s"
WAYS: Final = 2.0  # a line is shared: advice leaves as long again


def carries(bytes_per_s: float, round_bytes: int, deadline_s: float) -> bool:
    """Whether the tensors of a round are there and back before its deadline, however quick the training."""
    return round_bytes / bytes_per_s < deadline_s


def line_words(bytes_per_s: float, round_bytes: int = 0, deadline_s: float = 0.0) -> str:
    """What a line means for a study, with advice where its deadline is short.

    Example:
        >>> line_words(125_000)
        '1 Mbit/s'
        >>> line_words(125_000, 11_800_000, 60)  # doctest: +ELLIPSIS
        '1 Mbit/s, so 94 s for the 11.8 MB of a round, expected less than federation.deadline_s of 60 s: 1...'
        >>> line_words(1_250_000, 11_800_000, 60)
        '10 Mbit/s'
    """
    speed = f"{8 * bytes_per_s / 1e6:.3g} Mbit/s"
    seconds = round_bytes / bytes_per_s
    if WAYS * seconds <= deadline_s or not round_bytes:
        return speed
    return (
        f"{speed}, so {seconds:.0f} s for the {round_bytes / 1e6:.1f} MB of a round, expected less than "
        f"federation.deadline_s of {deadline_s:.0f} s: {WAYS * seconds:.0f} s and the time of a training "
        'would do, and federation.wire = "float16" halves the way back'
    )
