"""Errors that a person may see, and their exit codes.

::

    MmareError
    ├── InputError        bad input or settings: exit code 2
    │   ├── BusyError     another process holds a resource; retry later
    │   ├── StudyError    a study file or an override of it
    │   └── DataError     a manifest, a table or a features file
    ├── RunError          a run that failed, resumable: exit code 1
    └── SiteError         a hospital's refusal: a `SiteCode`, never a path, an id or a value
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "BusyError",
    "DataError",
    "Ending",
    "InputError",
    "MmareError",
    "Reason",
    "RunError",
    "SiteCode",
    "SiteError",
    "StudyError",
]


class Reason(StrEnum):
    """Why the coordinator excludes a site from a round or a run, beside the `SiteCode` of its refusal."""

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
    """Why a run ended early."""

    QUORUM = "quorum"
    NON_FINITE = "non_finite"
    CHECKPOINT = "checkpoint"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"  # unreported: the process died, and a later one resumed the run
    OTHER = "other"


class MmareError(Exception):
    """Base of errors shown as one sentence instead of a traceback."""

    exit_code = 1
    ending = Ending.OTHER  # of a run that it stops


class InputError(MmareError):
    """Invalid input or settings; the message names the place, what was found, what was expected."""

    exit_code = 2


class BusyError(InputError):
    """A resource that another process holds; the same command may succeed later."""


class StudyError(InputError):
    """An unreadable or contradictory study."""


class DataError(InputError):
    """An invalid table, manifest or features file of a site."""


class RunError(MmareError):
    """A run that stopped early; the same command resumes it. ``ending`` tells programs why."""

    def __init__(self, sentence: str, ending: Ending = Ending.OTHER) -> None:
        super().__init__(sentence)
        self.ending = ending


class SiteCode(StrEnum):
    """Why a site refused a request: all that leaves the site about it. ``meaning`` is for people.

    Example:
        >>> print(SiteCode("S102"), SiteCode.STUDY.meaning, sep=": ")
        S102: the hospital has not approved this study
    """

    meaning: str

    MESSAGE = "S101", "the message is not valid"
    STUDY = "S102", "the hospital has not approved this study"
    NODES = "S103", "the federation has another number of nodes than sites"
    DATA = "S201", "the site's data cannot be used for this study"
    NON_FINITE = "S203", "training or evaluation produced NaN or infinity"
    STATE = "S204", "the site's kept optimiser state is missing or damaged"
    EMPTY = "S205", "the site has no rows to train on"
    TABLE = "S206", "the site's table changed since the run began, and its part in the run ends"
    RELEASE = "S301", "the reply is not what the approved study releases"
    NORM = "S302", "the update's norm exceeds the site's limit"
    RELEASES = "S303", "the site's limit of releases for this study is reached"
    AUDIT = "S304", "the site's audit log could not be written, so nothing was released"
    CHAIN = "S305", "lines of the site's audit log are missing or were changed, so nothing is released"
    REQUEST = "S306", "the approved study does not call for what was asked"
    ROUND = "S307", "an earlier round, or one that was answered, was asked again with something else"
    MODEL = "S308", "the model does not descend from what the site has seen"
    SUM = "S309", "the site cannot take part in the secure sum: too few sites, another key, another value"
    BUDGET = "S310", "differential privacy: more than the site's budget, or than its data can carry"
    START = "S311", "the start model that the study names is not installed at the site, or does not fit"
    WORKER = "S401", "the site worker does not reply: it is not running, or it ended"
    LATE = "S402", "the site worker missed the study's deadline"
    RELAY = (
        "S403",
        "the installed Flower is not the one that the relay was checked with, so it does not start",
    )
    LINE = "S404", "the site's line to the coordinator is too slow for the model and the study's deadline"
    INTERNAL = "S500", "something else failed; the detail is in the site's own log"

    def __new__(cls, code: str, meaning: str = "") -> SiteCode:
        """A member whose text is its code."""
        member = str.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member


class SiteError(MmareError):
    """A hospital's refusal. It carries a code only, so nothing else can leave."""

    def __init__(self, code: SiteCode) -> None:
        super().__init__(code)  # the member, not its text: unpickling calls the class with it
        self.code = code
