"""What crosses the wire, in plain dataclasses: no Flower, no torch.

A message is one JSON header and at most one flat run of bytes: the tensors one after the other, in the order
of a `Layout`. Header and layout are versioned: two ends that differ refuse each other instead of misreading.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Any, Final, TypeVar

from mmare.errors import Reason, SiteCode
from mmare.study.tables import TableError, from_table

__all__ = [
    "CHUNK_BYTES",
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
    "Moments",
    "Refusal",
    "Request",
    "RollCall",
    "Split",
    "Statistics",
    "Task",
    "TensorSpec",
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
CHUNK_BYTES: Final = 8 << 20  # of it in one request: a usual model goes in one; the door lets 16 MiB in
PAYLOAD_STYPE: Final = "mmare.flat"  # how the array's bytes are to be read: a run of a Layout

Endpoint = Callable[
    [str, bytes], tuple[str, bytes]
]  # a site as its relay sees it: header and payload both ways
_ALIGNMENT: Final = 8  # bytes: every tensor of a run starts where any dtype may
_ITEM_BYTES: Final = {"float16": 2, "float32": 4, "float64": 8, "int64": 8, "int32": 4, "bool": 1}

Header = TypeVar("Header")


class WireError(ValueError):
    """A message that cannot be understood, or an answer that cannot be used.

    Args:
        sentence: For people.
        code: The same for programs.
    """

    def __init__(self, sentence: str, code: Reason | SiteCode = Reason.OTHER) -> None:
        super().__init__(sentence)
        self.code = code


class Split(StrEnum):
    """What a patient's row is used for."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Task(StrEnum):
    """The calls that a site answers."""

    DESCRIBE = "describe"
    STATISTICS = "statistics"
    TRAIN = "train"
    EVALUATE = "evaluate"
    COMPARE = "compare"


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor of a layout."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Layout:
    """Which tensors a flat run of bytes holds, in which order.

    Example:
        >>> layout = Layout((TensorSpec("w", "float32", (2, 3)), TensorSpec("n", "int64", ())))
        >>> layout.size, layout.offsets
        (32, (0, 24, 32))
    """

    tensors: tuple[TensorSpec, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """First byte of each tensor, and the length of the run."""
        ends = accumulate(-(-tensor.size // _ALIGNMENT) * _ALIGNMENT for tensor in self.tensors)
        return (0, *ends)

    @property
    def size(self) -> int:
        """Length of the run in bytes."""
        return self.offsets[-1]

    @property
    def fingerprint(self) -> str:
        """Hex digest of version, names, dtypes and shapes: equal at both ends or refused."""
        content = json.dumps([WIRE_VERSION, *([t.name, t.dtype, list(t.shape)] for t in self.tensors)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """What the server asks of a site.

    Args:
        task: One of the four calls.
        run: Name of the run, under which a site keeps its state.
        study: Tables of the study; the site checks their hash against what it approved.
        round: Of the training, from 1; 0 before and after.
        splits: To evaluate the received model on.
        patterns: Whether to evaluate per presence pattern too.
        train: Whether to train after evaluating.
        state_round: Round whose kept state (optimiser moments, local parts) to start from; nothing for none.
        keep_round: Round whose kept state must not be forgotten: that of the best model so far.
        layout: Fingerprint of the tensors sent along; empty where none are.
        rate_factor: Of the study's step sizes in this round.
        gap: Whether to evaluate the trained model on the validation rows too.
        subsets: Whether to evaluate every subset of modalities too.
        final: Nothing will be trained any more in this run: what was kept for it can go.
    """

    task: Task
    run: str
    study: Mapping[str, Any]
    round: int = 0
    splits: tuple[Split, ...] = ()
    patterns: bool = False
    train: bool = False
    state_round: int | None = None
    keep_round: int | None = None
    layout: str = ""
    rate_factor: float = 1.0
    gap: bool = False
    subsets: bool = False
    final: bool = False


@dataclass(frozen=True)
class Counts:
    """Sizes of groups; ``null`` where a group is too small to be told.

    Args:
        splits: Rows per split and class name.
        patterns: Rows per split and presence pattern, 1 and 0 in slot order.
    """

    splits: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    patterns: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class RollCall:
    """What a site says of itself before a run.

    Args:
        site: Id.
        study_hash: Of the study that it was asked about and approved.
        software: Version of this package.
        encoders: Fingerprint per modality that the site has.
        counts: With small groups withheld.
        samples: Train rows.
        held_rounds: Rounds of this run of which it keeps optimiser state.
        notes: What a reader of the result must know of the site's features, such as untrained encoders.
    """

    site: str
    study_hash: str
    software: str
    encoders: Mapping[str, str]
    counts: Counts
    samples: int
    held_rounds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Moments:
    """Sums over the train rows that have a modality; ``n`` is 0 where there are too few to be told."""

    modality: str
    n: int
    total: tuple[float, ...]
    squares: tuple[float, ...]


@dataclass(frozen=True)
class Statistics:
    """Moments of every modality of the study, in slot order."""

    site: str
    moments: tuple[Moments, ...]


@dataclass(frozen=True)
class Evaluation:
    """Metric states of a model on one split.

    Args:
        split: Whose rows.
        state: Of all of them.
        patterns: Per presence pattern, 1 and 0 in slot order.
        subsets: Per subset of modalities, written alike: of the rows that have them, all others hidden.
    """

    split: Split
    state: Mapping[str, Any]
    patterns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    subsets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """What a site returns of a round; the changed tensors travel beside it.

    Args:
        site: Id.
        round: That it answers.
        samples: Draws of training samples.
        exposures: Draws per block of the phase.
        evaluations: Of the received model.
        train_loss: Mean over draws; nothing where the site did not train.
        norm: L2 norm of the change.
        seconds: Per phase.
        layout: Fingerprint of the tensors sent along; empty where none are.
        blocks: Whose tensors are sent along, in the model's order.
        trained: Evaluation of the trained model on the validation rows, where asked for.
    """

    site: str
    round: int
    samples: int = 0
    exposures: Mapping[str, int] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    train_loss: float | None = None
    norm: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    layout: str = ""
    blocks: tuple[str, ...] = ()
    trained: Evaluation | None = None


@dataclass(frozen=True)
class Comparison:
    """How two models did on the same rows.

    Args:
        site: Id.
        cells: Per class name, rows that both, the first alone, the second alone, neither predicted right; a
            class that is too small to be told is not there.
    """

    site: str
    cells: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Refusal:
    """A site's answer where it cannot do what it was asked."""

    code: SiteCode


def encode(header: Any) -> str:  # noqa: ANN401 - any dataclass of this module
    """One of this module's dataclasses as JSON, with the version of the wire.

    Raises:
        ValueError: If a number is not finite.
    """
    content = {"version": WIRE_VERSION, "kind": type(header).__name__, "body": asdict(header)}
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def decode(kind: type[Header], text: str) -> Header:
    """Read what `encode` wrote.

    Args:
        kind: The dataclass that is expected.
        text: JSON from the other end.

    Raises:
        WireError: If it is not that, in this version, with fields of the right kinds.

    Example:
        >>> decode(Refusal, encode(Refusal(SiteCode.DATA)))
        Refusal(code=<SiteCode.DATA: 'S201'>)
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
        version, name, body = content["version"], content["kind"], content["body"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WireError("not a message of this system") from None
    if version != WIRE_VERSION:
        raise WireError(f"wire version {version!r}, expected {WIRE_VERSION}")
    if name != kind.__name__ or not isinstance(body, Mapping):
        raise WireError(f"a message of kind {name!r}, expected {kind.__name__}")
    try:
        return from_table(kind, body, kind.__name__)
    except TableError as error:
        raise WireError(str(error)) from None


def _refuse_constant(name: str) -> float:
    """NaN and infinity are not JSON; Python reads them unless told otherwise."""
    raise ValueError(name)
