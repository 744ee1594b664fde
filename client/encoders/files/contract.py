"""``encoder.toml``: what an encoder takes, how its input is made, what comes out; nothing in it is code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from mmare.errors import InputError
from mmare.study.choices import Kind
from mmare.study.tables import TableError, from_table, read_toml

__all__ = [
    "CONTRACT",
    "Contract",
    "Crop",
    "Fit",
    "Format",
    "InputKind",
    "InputSpec",
    "Normalise",
    "OutputSpec",
    "Pooling",
    "ProbeSpec",
    "load_contract",
]

CONTRACT: Final = "encoder.toml"
TOLERANCE: Final = 1e-3  # float32 on processors and GPUs differs by less, another preprocessing by more

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # of a file's path: no "..", no hidden file
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_AXES: Final = ("LR", "PA", "IS")
_SCAN: Final = {"kind", "tensor", "channels", "orientation", "crop", "window", "scale", "mean", "std", "size"}
_KEYS: Final = {
    "volume": _SCAN | {"spacing_mm", "normalise"},
    "slices": _SCAN | {"slices", "fit", "interpolation"},
    "tiles": {"kind", "tensor", "um_px", "tile_px", "size", "fit", "interpolation", "mean", "std"},
    "text": {"kind", "max_tokens"},
}


class Format(StrEnum):
    """What holds the network; none of them runs code of its own."""

    ONNX = "onnx"
    TRANSFORMERS = "transformers"
    TIMM = "timm"
    OPEN_CLIP = "open_clip"
    TORCH_EXPORT = "torch-export"


class InputKind(StrEnum):
    """What a patient's input becomes."""

    VOLUME = "volume"  # one array
    SLICES = "slices"  # pictures, evenly chosen along the first axis of a volume
    TILES = "tiles"  # pictures of a whole slide
    TEXT = "text"


class Crop(StrEnum):
    """What a volume is cut to."""

    NONE = "none"
    FOREGROUND = "foreground"  # bounding box of what lies above the window's lower end


class Normalise(StrEnum):
    """How intensities become the network's; `mean` and `std` follow."""

    SCALE = "scale"  # the window, or else the scan's range, becomes `scale`
    FOREGROUND = "foreground"  # MedicalNet's steps, see `client.encoders.preprocess`


class Fit(StrEnum):
    """How a picture gets another shape."""

    STRETCH = "stretch"
    CROP = "crop"  # its shorter side is fitted, the middle of the longer one kept


class Interpolation(StrEnum):
    """Between pixels."""

    LINEAR = "linear"
    CUBIC = "cubic"


class Pooling(StrEnum):
    """From a network's output to one vector: tokens are ``(B, T, W)``, maps ``(B, W, …)``."""

    NONE = "none"  # it is ``(B, W)``
    FIRST = "first"  # the first token: the class token of most, the first patch of some
    PATCHES = "patches"  # the mean of the tokens behind the first
    MEAN = "mean"  # of tokens or map; of a text's own tokens
    MAX = "max"


class Across(StrEnum):
    """From the vectors of slices or tiles to one."""

    MEAN = "mean"
    MAX = "max"


class Length(StrEnum):
    """What becomes of a vector's length."""

    KEPT = "none"
    L2 = "l2"


@dataclass(frozen=True)
class InputSpec:
    """How the input is made; see ``deploy/encoders.md`` for the order of the steps."""

    kind: InputKind
    tensor: str = ""  # input of the graph; empty: the only one
    channels: int = 1  # to which a grey value is repeated
    orientation: str = "SAR"  # where the array's axes point
    crop: Crop = Crop.NONE
    window: tuple[float, ...] = ()  # lowest and highest intensity kept; empty: the scan's range
    scale: tuple[float, ...] = (0.0, 1.0)  # what the window's ends become
    normalise: Normalise = Normalise.SCALE
    mean: tuple[float, ...] = ()  # per channel, subtracted
    std: tuple[float, ...] = ()  # per channel, divided by
    spacing_mm: tuple[float, ...] = ()  # that volumes are resampled to
    size: tuple[int, ...] = ()  # resized to; with spacing, cut or filled up to
    slices: int = 32  # most of them
    fit: Fit = Fit.STRETCH
    interpolation: Interpolation = Interpolation.LINEAR
    um_px: float = 0.5  # of tiles
    tile_px: int = 256
    max_tokens: int = 256


@dataclass(frozen=True)
class OutputSpec:
    """What comes out."""

    width: int  # of the vector
    tensor: str = ""  # output of the graph or of the model; empty: the only or the usual one
    pooling: Pooling = Pooling.NONE
    across: Across = Across.MEAN
    normalise: Length = Length.KEPT


@dataclass(frozen=True)
class ProbeSpec:
    """An input and what came out of it where the folder was sealed."""

    input: str
    output: str
    tolerance: float = TOLERANCE  # largest difference, relative to the largest value expected
    memory_mb: int = 0  # that the process took for it on a CPU; 0: unknown


@dataclass(frozen=True)
class Contract:
    """A checked ``encoder.toml``. Without `files` and `probe` it is a draft that cannot be used yet.

    Raises:
        TableError: If a value is out of range or two contradict each other.
    """

    name: str
    format: Format
    licence: str
    input: InputSpec
    output: OutputSpec
    source: str = ""  # where it comes from, for people
    files: Mapping[str, str] = field(default_factory=dict)  # sha256 by path in the folder
    probe: ProbeSpec | None = None

    def __post_init__(self) -> None:
        for holds, sentence in _rules(self):
            if not holds:
                raise TableError(sentence)

    @property
    def kind(self) -> Kind:
        """Of the modality in a study."""
        return Kind.TEXT if self.input.kind is InputKind.TEXT else Kind.VOLUME

    @property
    def identity(self) -> dict[str, Any]:
        """All that its vectors depend on."""
        probes = () if self.probe is None else (self.probe.input, self.probe.output)
        files = {name: digest for name, digest in self.files.items() if name not in probes}
        return {
            "format": self.format,
            "files": files,
            "input": asdict(self.input),
            "output": asdict(self.output),
        }


def load_contract(folder: Path) -> Contract:
    """Read the ``encoder.toml`` of a folder.

    Raises:
        InputError: If it is missing, has an unknown key, or a value that is out of range.
    """
    path = folder / CONTRACT
    try:
        content = read_toml(path, "encoder")
        _check_kind(content.get("input"))
        return from_table(Contract, content, "the file")
    except TableError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def _check_kind(table: object) -> None:
    """Refuse a key that belongs to another kind of input: it would have no effect."""
    if not isinstance(table, Mapping) or table.get("kind") not in _KEYS:
        return  # said better by `from_table`
    kind = table["kind"]
    known = set(InputSpec.__dataclass_fields__)
    for key in table:
        if key in known - _KEYS[kind]:
            raise TableError(
                f"[input] {key} is not for {kind}, expected some of {', '.join(sorted(_KEYS[kind]))}"
            )


def _rules(contract: Contract) -> list[tuple[bool, str]]:
    given, output = contract.input, contract.output
    axes = 3 if given.kind is InputKind.VOLUME else 2
    letters = [next((pair for pair in _AXES if letter in pair), "") for letter in given.orientation]
    per_channel = 3 if given.kind is InputKind.TILES else given.channels
    rules = [
        (
            bool(_NAME.fullmatch(contract.name)),
            f"name is {contract.name!r}, expected small letters, digits, dot, dash and underscore",
        ),
        (bool(contract.licence), "licence is empty, expected what the weights may be used for"),
        (output.width >= 1, f"[output] width must be at least 1, found {output.width}"),
        (
            sorted(letters) == sorted(_AXES),
            f"[input] orientation is {given.orientation!r}, expected as 'SAR'",
        ),
        (given.channels >= 1, f"[input] channels must be at least 1, found {given.channels}"),
        (
            len(given.size) in (0, axes) and all(length > 0 for length in given.size),
            f"[input] size must be {axes} positive numbers, found {list(given.size)}",
        ),
        (
            len(given.spacing_mm) in (0, 3) and all(step > 0 for step in given.spacing_mm),
            f"[input] spacing_mm must be 3 positive numbers, found {list(given.spacing_mm)}",
        ),
        (
            given.window == () or (len(given.window) == len("lh") and given.window[0] < given.window[1]),
            f"[input] window must be a lower and a higher number, found {list(given.window)}",
        ),
        (
            len(given.scale) == len("lh") and given.scale[0] < given.scale[1],
            f"[input] scale must be a lower and a higher number, found {list(given.scale)}",
        ),
        (
            len(given.mean) == len(given.std) and len(given.mean) in (0, 1, per_channel),
            f"[input] mean and std must be one number for each of {per_channel} channels",
        ),
        (all(step > 0 for step in given.std), f"[input] std must be positive, found {list(given.std)}"),
        (given.kind is not InputKind.SLICES or given.size != (), "[input] of slices needs a size"),
        (given.slices >= 1, f"[input] slices must be at least 1, found {given.slices}"),
        (given.max_tokens >= 1, f"[input] max_tokens must be at least 1, found {given.max_tokens}"),
        (
            given.normalise is Normalise.SCALE
            or (
                given.size != ()
                and given.spacing_mm == ()
                and given.orientation == "SAR"
                and given.crop is Crop.NONE
                and given.mean == ()
                and given.channels == 1
            ),
            "[input] normalise = 'foreground' takes size and window alone",
        ),
    ]
    rules += [
        (
            all(map(_PART.fullmatch, name.split("/"))) and name != CONTRACT,
            f"[files] names {name!r}, expected a file inside the folder",
        )
        for name in contract.files
    ]
    rules += [
        (bool(_SHA256.fullmatch(digest)), f"[files] {name} is {digest!r}, expected 64 digits of a sha256")
        for name, digest in contract.files.items()
    ]
    if contract.probe is not None:
        rules += [
            (name in contract.files, f"[probe] names {name}, which is not in [files]")
            for name in (contract.probe.input, contract.probe.output)
        ]
        rules.append((0 < contract.probe.tolerance < 1, "[probe] tolerance must lie between 0 and 1"))
        rules.append((contract.probe.memory_mb >= 0, "[probe] memory_mb must not be negative"))
    return rules
