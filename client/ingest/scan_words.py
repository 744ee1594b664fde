"""Why a scan cannot be used, as one word of a closed set: sentences hold what was found in a file."""

from __future__ import annotations

from typing import Final

from client.ingest.reasons import Reason, SlideReason, SlideRefused, VolumeReason, VolumeRefused, explain

__all__ = ["OTHER_REASON", "SCAN_REASONS", "reason_word"]

OTHER_REASON: Final = "other"

_STARTS: Final = {
    "cannot be read (": "unreadable-file",  # of client.data.embed.reason_of
    "The folder holds no series that fits": "no-fitting-series",  # of client.data.read_scan
    "The encoder gave values that are not finite": "non-finite-embedding",  # of client.data.embed
    **{explain(reason): reason.value for reason in Reason},
    **{str(VolumeRefused(reason)): reason.value for reason in VolumeReason},
    **{str(SlideRefused(reason)): reason.value for reason in SlideReason},
}
SCAN_REASONS: Final = frozenset({*_STARTS.values(), OTHER_REASON})


def reason_word(sentence: str) -> str:
    """The word for a sentence that says why a scan cannot be used.

    Example:
        >>> reason_word("The file holds no bytes."), reason_word("cannot be read (PermissionError)")
        ('empty-file', 'unreadable-file')
        >>> reason_word("/data/patients/0001.nii.gz")
        'other'
    """
    return next((word for start, word in _STARTS.items() if sentence.startswith(start)), OTHER_REASON)
