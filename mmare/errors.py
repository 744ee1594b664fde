"""The errors that a person may see, and the exit code that each stands for.

::

    MmareError
    ├── InputError        bad input or settings: exit code 2
    │   ├── BusyError     another process has what this one needs; later it may be free
    │   ├── StudyError    a study file or an override of it
    │   └── DataError     a manifest, a table or a features file
    ├── RunError          a run that failed, resumable: exit code 1
    └── SiteError         what a hospital answers: a code of `SiteCode`, never a path, an id or a value
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
    """Why the coordinator leaves a site out of a round or a run, where it is no `SiteCode`."""

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
    """Why a run, and with it the round under way, ended before its time."""

    QUORUM = "quorum"
    NON_FINITE = "non_finite"
    CHECKPOINT = "checkpoint"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"  # without a word: the process died, and a later one took the run up
    OTHER = "other"


class MmareError(Exception):
    """Base of every error that is answered with one sentence instead of a traceback."""

    exit_code = 1
    ending = Ending.OTHER  # of a run that it stops


class InputError(MmareError):
    """Input or settings that cannot be used; the sentence names where, what was found, what was expected."""

    exit_code = 2


class BusyError(InputError):
    """Something that another process holds; the same command may succeed later."""


class StudyError(InputError):
    """A study that cannot be read or contradicts itself."""


class DataError(InputError):
    """A site's table, manifest or features file that cannot be used."""


class RunError(MmareError):
    """A run that stopped before its end; what was finished is kept and the same command resumes it.

    Args:
        sentence: For people.
        ending: The same for programs.
    """

    def __init__(self, sentence: str, ending: Ending = Ending.OTHER) -> None:
        super().__init__(sentence)
        self.ending = ending


class SiteCode(StrEnum):
    """Why a site did not do what it was asked: the only words about it that leave the site."""

    MESSAGE = "S101"  # the message could not be understood
    STUDY = "S102"  # the study is not the approved one
    NODES = "S103"  # the federation has another number of nodes than sites
    DATA = "S201"  # the site's data cannot be used for this study
    NON_FINITE = "S203"  # training or evaluation produced NaN or infinity
    STATE = "S204"  # the site's kept optimiser state is missing or damaged
    EMPTY = "S205"  # no rows to train on
    RELEASE = "S301"  # what was to leave is not what the approved study lets out
    NORM = "S302"  # the update is longer than the site lets out
    RELEASES = "S303"  # as many answers have left for this study as the site allows
    AUDIT = "S304"  # the release could not be written to the site's audit log, so nothing left
    WORKER = "S401"  # the site worker does not answer: it is not running, or ended in the middle
    LATE = "S402"  # the site worker did not answer before the study's deadline
    INTERNAL = "S500"  # anything else; the detail is in the site's own log


class SiteError(MmareError):
    """What a hospital answers instead of a result.

    Args:
        code: One of `SiteCode`. Nothing else is kept, so nothing else can leave.
    """

    def __init__(self, code: SiteCode) -> None:
        super().__init__(code)  # the member, not its text: an error that is pickled is made again from it
        self.code = code
