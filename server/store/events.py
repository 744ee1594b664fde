"""The events of a run's journal, ``rounds.jsonl``: one dataclass per kind of line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final, get_type_hints

from mmare.errors import Ending, Reason, SiteCode
from mmare.study.tables import TableError, convert

__all__ = [
    "Aggregated",
    "Checkpoint",
    "CheckpointDamaged",
    "Event",
    "OptimizerStateLost",
    "Resumed",
    "RollCall",
    "RoundStarted",
    "RunFailed",
    "RunFinished",
    "RunStarted",
    "Scaling",
    "Selected",
    "SiteLeftOut",
    "SiteUpdate",
    "StartedFrom",
    "States",
    "Tested",
    "Validated",
    "name_of",
    "parse_event",
    "to_entry",
]

Table = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Event:
    """The common fields; an instance of this class itself is an event unknown to this version."""

    time: str = ""  # ISO, UTC
    run: str = ""


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """An attempt at a run begins."""

    settings: Table = field(default_factory=dict)  # the study; the sites' folder replaces its federation
    federation: Table = field(default_factory=dict)  # of the study
    versions: Table = field(default_factory=dict)
    hash: str = ""
    mode: str = ""
    backend: str = ""
    site: str = ""  # in the journal of a site that trains alone


@dataclass(frozen=True, kw_only=True)
class StartedFrom(Event):
    """The run begins with a start model: where it comes from, and what fits of it."""

    lineage: Table = field(default_factory=dict)
    taken: tuple[str, ...] = ()  # blocks
    left: Table = field(default_factory=dict)  # what does not fit, and why


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The result is written."""

    rounds_run: int = 0
    best_round: int = 0
    seconds: Table = field(default_factory=dict)
    bytes: Table = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    """An attempt failed."""

    reason: str = "no reason given"
    code: Ending = Ending.OTHER


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """An attempt resumes; earlier events of rounds after ``resumed_from`` are void."""

    round: int = 0
    resumed_from: int = 0


@dataclass(frozen=True, kw_only=True)
class RollCall(Event):
    """A node's answer to the roll call, or why there is none; and why its site is refused, if it is."""

    round: int = 0  # the next one
    site: str
    accepted: bool = True
    reason: str | None = None
    code: Reason | SiteCode | None = None
    samples: int | None = None
    encoders: Table = field(default_factory=dict)
    software: str = ""
    notes: tuple[str, ...] = ()
    line: str = ""  # to the site, with advice where it is slow for the deadline
    counts: Table = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scaling(Event):
    """A modality's moments were pooled over ``n`` rows of these sites."""

    modality: str
    n: int | None = None
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OptimizerStateLost(Event):
    """These sites continue with a fresh optimiser."""

    round: int = 0
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RoundStarted(Event):
    """A round begins."""

    round: int


@dataclass(frozen=True, kw_only=True)
class SiteUpdate(Event):
    """A valid answer; without ``samples``, the site only evaluated, unless it ``summed`` an update."""

    round: int
    phase: str = ""  # "test" after the rounds
    site: str
    samples: int = 0
    seconds: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    norm: float | None = None
    train_loss: float | None = None  # not told under differential privacy
    summed: bool = False  # its update is part of a secure sum: samples, norm and loss are unknown


@dataclass(frozen=True, kw_only=True)
class SiteLeftOut(Event):
    """A site's answer was late or refused."""

    round: int = 0
    phase: str = ""  # "test" after the rounds
    site: str
    reason: str
    code: Reason | SiteCode = Reason.OTHER


@dataclass(frozen=True, kw_only=True)
class Aggregated(Event):
    """The next model is made, with seconds per phase and draws per block."""

    round: int
    seconds: Table = field(default_factory=dict)
    exposure: Table = field(default_factory=dict)
    samples: int = 0  # of all sites, under secure sums
    train_loss: float | None = None  # over them


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """The model after a round was validated."""

    round: int
    metrics: Table


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Event):
    """A round was saved."""

    round: int
    file: str = ""
    bytes: int = 0
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointDamaged(Event):
    """Damaged checkpoints are ignored."""

    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Selected(Event):
    """The best round, on the validation rows."""

    round: int
    metrics: Table
    note: str = ""  # what is wrong with the selection


@dataclass(frozen=True, kw_only=True)
class Tested(Event):
    """The best round, on the test rows."""

    round: int
    metrics: Table


@dataclass(frozen=True, kw_only=True)
class States(Event):
    """The merged metric states of the best round, by split (`server.store.states`)."""

    round: int
    splits: Table


def name_of(kind: type[Event]) -> str:
    """The journal's name for a kind of event.

    Example:
        >>> name_of(SiteLeftOut)
        'site_left_out'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


KINDS: Final[dict[str, type[Event]]] = {name_of(kind): kind for kind in Event.__subclasses__()}


def _parts(kind: type[Event]) -> tuple[tuple[str, Any, bool], ...]:
    """Name and type of each field, and whether it is required."""
    hints = get_type_hints(kind)
    return tuple(
        (part.name, hints[part.name], part.default is MISSING and part.default_factory is MISSING)
        for part in fields(kind)
    )


_PARTS: Final = {kind: _parts(kind) for kind in KINDS.values()} | {Event: _parts(Event)}


def to_entry(event: Event) -> dict[str, Any]:
    """An event as a JSON object; empty strings are left out.

    Example:
        >>> to_entry(RoundStarted(round=3, run="r"))
        {'event': 'round_started', 'run': 'r', 'round': 3}
    """
    values = {part.name: getattr(event, part.name) for part in fields(event)}
    return {
        "event": name_of(type(event)),
        **{name: value for name, value in values.items() if value != ""},
    }


def parse_event(entry: Mapping[str, Any]) -> Event:
    """Make an event from a JSON object; reverses `to_entry`.

    Optional fields of a wrong type count as absent; unknown keys are ignored.

    Raises:
        TableError: If a required field is missing or of a wrong type.

    Example:
        >>> parse_event({"event": "round_started", "round": 3, "run": 5})
        RoundStarted(time='', run='', round=3)
        >>> parse_event({"event": "site_left_out", "site": "ash", "reason": "refused: S203"}).code
        <SiteCode.NON_FINITE: 'S203'>
    """
    kind = KINDS.get(entry.get("event", ""), Event)
    if "reason" in entry and "code" not in entry:
        entry = {**entry, "code": _legacy_code(str(entry["reason"]))}
    values: dict[str, Any] = {}
    for name, hint, required in _PARTS[kind]:
        try:
            value = entry[name]
            values[name] = value if type(value) is hint and hint is not float else convert(value, hint, name)
        except (KeyError, TableError):
            if required:
                raise TableError(f"{entry.get('event')} without a usable {name!r}") from None
    return kind(**values)


_LEGACY_CODES: Final = (  # the first match in a sentence decides
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
    ("federation.min_sites", Ending.QUORUM),
    ("no site", Ending.QUORUM),
    ("selected model cannot be read", Ending.CHECKPOINT),
    ("interrupted", Ending.INTERRUPTED),
)


def _legacy_code(sentence: str) -> str | None:
    """The code of a reason in a journal from before lines had one."""
    refused = re.fullmatch(r"refused: (S\d{3})", sentence)
    return refused[1] if refused else next((code for part, code in _LEGACY_CODES if part in sentence), None)
