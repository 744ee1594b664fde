"""Messages between server and sites as plain dataclasses, without Flower or torch.

A message is one JSON header and at most one flat run of bytes: the tensors in the order of a `Layout`. Both
are versioned: ends that differ refuse each other instead of misreading.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Final, TypeVar

from mmare.errors import Reason, SiteCode
from mmare.study.tables import TableError, from_table
from mmare.wire.limits import MOST_HEADER

__all__ = [
    "CHUNK_BYTES",
    "EVENT_TIMES",
    "HEADER_KEY",
    "HEADER_RECORD",
    "PAYLOAD_KEY",
    "PAYLOAD_RECORD",
    "PAYLOAD_STYPE",
    "Comparison",
    "Counts",
    "Endpoint",
    "Evaluation",
    "Layout",
    "Masked",
    "Moments",
    "Refusal",
    "Request",
    "RollCall",
    "SecureSum",
    "Split",
    "Statistics",
    "Task",
    "TensorSpec",
    "Unmasked",
    "Update",
    "WireError",
    "decode",
    "encode",
]

WIRE_VERSION: Final = 2
HEADER_RECORD: Final = "mmare"  # of a Flower message: a ConfigRecord with the header under HEADER_KEY
HEADER_KEY: Final = "header"
PAYLOAD_RECORD: Final = "tensors"  # of a Flower message: an ArrayRecord with one flat array under PAYLOAD_KEY
PAYLOAD_KEY: Final = "flat"
EVENT_TIMES: Final = "event times"  # in place of a modality's name
CHUNK_BYTES: Final = 8 << 20  # of the payload per request: one for a usual model; the proxy accepts 16 MiB
PAYLOAD_STYPE: Final = "mmare.flat"  # serialisation of the array: a run of a Layout

Endpoint = Callable[[str, bytes], tuple[str, bytes]]  # a site as its relay sees it: header, payload both ways
_ALIGNMENT: Final = 8  # bytes, enough for any dtype
_ITEM_BYTES: Final = {"float16": 2, "float32": 4, "float64": 8, "int64": 8, "int32": 4, "bool": 1}

Header = TypeVar("Header")


class WireError(ValueError):
    """An invalid message or reply: a sentence for people, a code for programs."""

    def __init__(self, sentence: str, code: Reason | SiteCode = Reason.OTHER) -> None:
        super().__init__(sentence)
        self.code = code


class Split(StrEnum):
    """Use of a patient's row."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Task(StrEnum):
    """Requests that a site answers."""

    DESCRIBE = "describe"
    STATISTICS = "statistics"
    TRAIN = "train"
    EVALUATE = "evaluate"
    COMPARE = "compare"
    UNMASK = "unmask"  # of a secure sum


class SecureSum(StrEnum):
    """Secure sums of a run."""

    MOMENTS = "moments"
    ROUND = "round"
    VALIDATION = "validation"  # of the last round's model
    TEST = "test"


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor of a layout."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Numbers from one index to the next, by dimension, in a run that is in order."""
        return tuple(math.prod(self.shape[place + 1 :]) for place in range(len(self.shape)))


@dataclass(frozen=True)
class Layout:
    """The tensors of a flat run of bytes, in order.

    Example:
        >>> layout = Layout((TensorSpec("w", "float32", (2, 3)), TensorSpec("n", "int64", ())))
        >>> layout.size, layout.offsets
        (32, (0, 24, 32))
    """

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First byte of each tensor, then the length of the run."""
        ends = accumulate(-(-tensor.size // _ALIGNMENT) * _ALIGNMENT for tensor in self.tensors)
        return (0, *ends)

    @property
    def size(self) -> int:
        """Length of the run in bytes."""
        return self.offsets[-1]

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of version, names, dtypes and shapes; both ends must agree."""
        content = json.dumps([WIRE_VERSION, *([t.name, t.dtype, list(t.shape)] for t in self.tensors)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """A request of the server to a site."""

    task: Task
    run: str  # its name; the site keeps state under it
    study: Mapping[str, Any]  # its tables; the site compares their hash with what it approved
    round: int = 0  # of training, from 1; 0 before and after
    splits: tuple[Split, ...] = ()  # to evaluate the received model on
    patterns: bool = False  # evaluate per presence pattern too
    train: bool = False  # after evaluating
    state_round: int | None = None  # whose kept state (optimiser moments, local parts) to start from
    keep_round: int | None = None  # whose kept state not to delete: that of the best model so far
    layout: str = ""  # fingerprint of the payload; empty without one
    rate_factor: float = 1.0  # of the study's learning rates
    gap: bool = False  # evaluate the trained model on the validation rows too
    subsets: bool = False  # evaluate every subset of modalities too
    calibration: bool = False  # tell the losses at every point of the calibration grid too
    shapley: bool = False  # tell how far each modality moves predictions of the test rows too
    final: bool = False  # the run trains no more: its kept state can be deleted
    sum: SecureSum | None = None  # which secure sum the answer is part of
    roster: Mapping[str, str] = field(default_factory=dict)  # of a secure sum: public key by site
    shares: Mapping[str, str] = field(default_factory=dict)  # to unmask: sealed for this site, by sender


@dataclass(frozen=True)
class Counts:
    """Sizes of groups; ``None`` where a group is too small to disclose."""

    splits: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)  # split, class name
    patterns: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)  # split, such as "1011"


@dataclass(frozen=True)
class RollCall:
    """A site's description of itself before a run."""

    site: str
    study_hash: str  # of the requested study, which it approved
    software: str  # version of this package
    encoders: Mapping[str, str]  # fingerprint per modality that the site has
    counts: Counts  # without small groups
    samples: int  # train rows
    held_rounds: tuple[int, ...] = ()  # of this run, whose state it keeps
    notes: tuple[str, ...] = ()  # caveats about the site's features, such as untrained encoders
    public_key: str = ""  # under secure sums, where ``samples`` is 1 or 0 and there are no counts


@dataclass(frozen=True)
class Moments:
    """Sums over the train rows that have a modality; ``n`` is 0 where they are too few to disclose.

    Args:
        counts: Rows that each sum is over, where some have blank cells; by default ``n`` for all.
    """

    modality: str
    n: int
    total: tuple[float, ...]
    squares: tuple[float, ...]
    counts: tuple[int, ...] = ()

    @property
    def over(self) -> tuple[int, ...]:
        """Rows that each sum is over."""
        return self.counts or (self.n,) * len(self.total)

    @property
    def between(self) -> tuple[float, ...]:
        """What the squares would be if all rows had the mean."""
        return tuple(
            total * total / over if over else 0.0 for over, total in zip(self.over, self.total, strict=True)
        )


@dataclass(frozen=True)
class Statistics:
    """Moments of every modality of the study, in slot order.

    Args:
        events: Of task survival, events of the train rows by bin of the time; total and squares are the same.
    """

    site: str
    moments: tuple[Moments, ...]
    events: Moments | None = None


@dataclass(frozen=True)
class Evaluation:
    """Metric states of a model on one split.

    Args:
        patterns: States per presence pattern, 1 and 0 in slot order.
        subsets: States per subset of modalities, written alike, over the rows that have them, all other
            modalities hidden.
        calibration: Losses on the grid of `mmare.metrics.calibration`.
        attribution: Sums of absolute Shapley values, a state of `mmare.metrics.attribution`.
    """

    split: Split
    state: Mapping[str, Any]
    patterns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    subsets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    attribution: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """A site's reply of a round; the changed tensors are the payload."""

    site: str
    round: int
    samples: int = 0  # draws of training samples
    exposures: Mapping[str, int] = field(default_factory=dict)  # draws per block of the phase
    evaluations: tuple[Evaluation, ...] = ()  # of the received model
    train_loss: float | None = None  # mean over draws; ``None`` without training
    norm: float | None = None  # L2 norm of the change
    seconds: Mapping[str, float] = field(default_factory=dict)  # per step of the site's work
    layout: str = ""  # fingerprint of the payload; empty without one
    blocks: tuple[str, ...] = ()  # in the payload, in the model's order
    trained: Evaluation | None = None  # of the trained model on the validation rows, if requested


@dataclass(frozen=True)
class Masked:
    """A site's part of a secure sum; the payload is its masked vector, int64."""

    site: str
    round: int
    shares: Mapping[str, str]  # of the seed of its own mask, sealed, by recipient
    seed_digest: str  # SHA-256, so that a wrong share is found
    seconds: Mapping[str, float] = field(default_factory=dict)  # per step of the site's work


@dataclass(frozen=True)
class Unmasked:
    """A site's shares of the seeds of a sum that is complete, by sender, as hex digits."""

    site: str
    round: int
    shares: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows.

    Args:
        cells: Per class name, rows that both, only the first, only the second, neither predicted correctly;
            without classes too small to disclose.
        sums: Instead, where there are no classes: sums of `mmare.metrics.paired`.
    """

    site: str
    cells: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sums: tuple[float, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A site's reply when it cannot fulfil a request."""

    code: SiteCode


def encode(header: Any) -> str:  # noqa: ANN401 - any dataclass of this module
    """One of this module's dataclasses as JSON, with `WIRE_VERSION`.

    Raises:
        ValueError: If a number is not finite.
    """
    content = {"version": WIRE_VERSION, "kind": type(header).__name__, "body": header}
    return json.dumps(content, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> dict[str, Any]:  # noqa: ANN401 - what JSON does not know
    """A dataclass as its fields, which unlike `asdict` copies nothing; other mappings than dicts."""
    if isinstance(value, Mapping):
        return dict(value)
    return {part.name: getattr(value, part.name) for part in fields(value)}


def decode(kind: type[Header], text: str, most: int = MOST_HEADER) -> Header:
    """Parse and validate what `encode` wrote.

    Raises:
        WireError: If it has more than ``most`` characters, or is not a message of this kind and version with
            fields of the right types.

    Example:
        >>> decode(Refusal, encode(Refusal(SiteCode.DATA)))
        Refusal(code=<SiteCode.DATA: 'S201'>)
    """
    if len(text) > most:
        raise WireError(f"a header of {len(text)} characters, expected at most {most}")
    return _decoded_request(text) if kind is Request else _decoded(kind, text)  # type: ignore[return-value] # as asked


@lru_cache(maxsize=4)
def _decoded_request(text: str) -> Request:
    """Cached: in a simulation all sites are asked the same."""
    return _decoded(Request, text)


def _decoded(kind: type[Header], text: str) -> Header:
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
        version, name, body = content["version"], content["kind"], content["body"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WireError("not a message of this system") from None
    if version != WIRE_VERSION:
        raise WireError(
            f"wire version {version!r}, expected {WIRE_VERSION}: {_who_upgrades(kind, version)}",
            Reason.SOFTWARE,
        )
    if name != kind.__name__ or not isinstance(body, Mapping):
        raise WireError(f"a message of kind {name!r}, expected {kind.__name__}")
    try:
        return from_table(kind, body, kind.__name__)
    except TableError as error:
        raise WireError(str(error)) from None


def _who_upgrades(kind: type, version: object) -> str:
    """Of a message's sender and receiver, the one with the older protocol."""
    newer = isinstance(version, int) and version > WIRE_VERSION
    of_coordinator = kind is Request
    return f"the {'coordinator' if newer != of_coordinator else 'hospital'} has to upgrade"


def _refuse_constant(name: str) -> float:
    """NaN and infinity are not JSON, but Python parses them by default."""
    raise ValueError(name)
