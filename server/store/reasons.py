"""Why something did not happen, in a closed set of words: the journal's sentences hold what sites claim."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from mmare.errors import SiteCode

__all__ = ["REASONS", "Ending", "Reason", "ending_of", "reason_of"]


class Reason(StrEnum):
    """Why a site is not in a round or a run, besides the codes of `mmare.errors.SiteCode`."""

    LATE = "late"
    NODE_FAILED = "node_failed"
    NON_FINITE = "non_finite"
    LAYOUT = "layout"
    EXPOSURE = "exposure"
    SAMPLES = "samples"
    METRICS = "metrics"
    MOMENTS = "moments"
    STUDY_HASH = "study_hash"
    SOFTWARE = "software"
    ENCODER = "encoder"
    DUPLICATE = "duplicate"
    OTHER = "other"


class Ending(StrEnum):
    """Why a run, and with it the round that was under way, ended before its time."""

    QUORUM = "quorum"
    NON_FINITE = "non_finite"
    CHECKPOINT = "checkpoint"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"  # without a word: the process died, and a later one took the run up
    OTHER = "other"


REASONS: Final = (*(reason.value for reason in Reason), *(code.value for code in SiteCode))

_REFUSED = re.compile(r"refused: (S\d{3})")
_SENTENCES: Final = (  # the first that is found in a sentence decides
    ("no answer before the deadline", Reason.LATE),
    ("node failed", Reason.NODE_FAILED),
    ("not finite", Reason.NON_FINITE),
    ("metric state", Reason.METRICS),
    ("evaluation", Reason.METRICS),
    ("exposure", Reason.EXPOSURE),
    ("moments of", Reason.MOMENTS),
    ("tensors", Reason.LAYOUT),
    ("samples, expected", Reason.SAMPLES),
    ("study hash", Reason.STUDY_HASH),
    ("software version", Reason.SOFTWARE),
    ("encoder of", Reason.ENCODER),
    ("the same site id", Reason.DUPLICATE),
)
_ENDINGS: Final = (
    ("federation.min_sites", Ending.QUORUM),
    ("no site", Ending.QUORUM),
    ("not finite", Ending.NON_FINITE),
    ("selected model cannot be read", Ending.CHECKPOINT),
    ("interrupted", Ending.INTERRUPTED),
)


def reason_of(sentence: object) -> str:
    """The word for a sentence of a ``site_left_out`` or ``roll_call`` event.

    Example:
        >>> reason_of("refused: S203"), reason_of("values that are not finite"), reason_of("/home/x")
        ('S203', 'non_finite', 'other')
    """
    text = str(sentence)
    refused = _REFUSED.fullmatch(text)
    if refused:
        return refused[1] if refused[1] in REASONS else Reason.OTHER.value
    return next((reason.value for part, reason in _SENTENCES if part in text), Reason.OTHER.value)


def ending_of(sentence: object) -> str:
    """The word for the sentence of a ``run_failed`` event.

    Example:
        >>> ending_of("interrupted")
        'interrupted'
    """
    text = str(sentence)
    return next((ending.value for part, ending in _ENDINGS if part in text), Ending.OTHER.value)
