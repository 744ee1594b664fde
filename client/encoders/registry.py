"""The encoders that a study can name: a new one is one file and one entry here, or a folder at every site.

Nothing heavy is imported and no weights are read before an encoder is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from client.encoders import hashing_text, med3d, resnet50_wsi, unimed_clip, vgg11, weights
from client.encoders.files.contract import CONTRACT, InputKind, Normalise
from client.encoders.files.folder import open_folder
from client.encoders.files.steps import FileSteps, foreground_steps
from client.encoders.preprocess import MaskUse, VolumeSteps
from client.ingest.slides.tissue import Tiling
from mmare.errors import DataError, InputError
from mmare.study.choices import Kind
from mmare.study.choices import MaskUse as StudyMask

if TYPE_CHECKING:
    from torch import Tensor

    from client.encoders.files.contract import InputSpec
    from client.encoders.files.folder import EncoderFolder
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = [
    "ENCODERS",
    "FROM_FILE",
    "GIVEN",
    "EncoderEntry",
    "EncoderSource",
    "Steps",
    "TextEncoder",
    "VolumeEncoder",
    "check_encoders",
    "encoder_entry",
    "encoder_notes",
    "encoder_source",
    "fast_type",
    "fingerprint",
    "pick_device",
]

GIVEN: Final = "given"  # features extracted beforehand
FROM_FILE: Final = "file:"  # begins the name of an encoder whose folder the sites hold
UNTRAINED: Final = "UNTRAINED: random weights, for trials only"

_CPU: Final = torch.device("cpu")
_AMPERE: Final = 8  # first compute capability with native bfloat16

Steps = VolumeSteps | FileSteps | Tiling  # from what a site holds to the input of a volume encoder


class TextEncoder(Protocol):
    """Turns texts into embeddings."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(N, W)`` for N texts."""


class VolumeEncoder(Protocol):
    """Turns preprocessed volumes into embeddings."""

    def encode(self, volumes: Tensor) -> Tensor:
        """``(B, W)`` float32 on the CPU for ``(B, 1, D, H, W)``."""


@dataclass(frozen=True)
class EncoderSource:
    """A site's weights and hardware.

    ``autocast`` is not in the fingerprint, so sites may differ: bfloat16 moves an embedding by 0.2 % of its
    length.
    """

    weights: Path | None = None  # folder filled by ``mmare-site weights import``
    device: torch.device = _CPU
    autocast: torch.dtype | None = None  # of the convolutions of volume encoders; None for float32
    given: Path | None = None  # folder of an encoder that lies elsewhere, for one modality

    def folder(self, encoder: str) -> Path:
        """The folder of weights; an InputError if the site names none."""
        if self.weights is None:
            raise InputError(
                f"encoder {encoder} needs weights; expected their folder in site.toml: [compute] weights"
            )
        return self.weights


@dataclass(frozen=True)
class EncoderEntry:
    """One encoder."""

    kind: Kind  # of its input
    width: int | None  # of its embedding; None if the study chooses
    fingerprint: Callable[[EncoderSource, str], str]  # second argument: that of the preprocessing
    open_text: Callable[[EncoderSource, int], TextEncoder] | None = None  # takes the study's width
    open_volume: Callable[[EncoderSource], VolumeEncoder] | None = None
    note: str = ""  # a caution about its features, shown by commands and reports
    slides: bool = False  # takes tiles of whole slides instead of volumes
    slices: bool = False  # takes slices, prepared by `client.encoders.vgg11.slices_of`
    steps: Callable[[ModalitySpec], Steps] | None = None  # its own, where the study has no say


def fingerprint(encoder: str, source: EncoderSource | None = None, preprocessing: str = "") -> str:
    """Identity of an encoder's architecture, weights and preprocessing: equal at all sites of a federation.

    ``preprocessing`` is the fingerprint of the volume steps.

    Raises:
        InputError: If its weights are missing or have changed.
    """
    if encoder == GIVEN:
        return GIVEN
    source = source or EncoderSource()
    return _entry(encoder, source).fingerprint(source, preprocessing)


def encoder_entry(modality: ModalitySpec, source: EncoderSource) -> EncoderEntry:
    """The entry of a modality's encoder; one from a file is read at the site.

    Raises:
        DataError: If one from a file is of another kind or width, or the study sets a size or window.
        InputError: If its folder is missing, or a file in it has changed.
    """
    entry = _entry(modality.encoder, source)
    if modality.encoder.startswith(FROM_FILE):
        found, expected = (entry.kind, entry.width), (modality.kind, modality.width)
        if found != expected:
            raise DataError(
                f"modality {modality.name} is {expected[0]} of width {expected[1]}, but its encoder "
                f"{modality.encoder} takes {found[0]} and gives {found[1]}"
            )
        if modality.size or modality.window:
            raise DataError(
                f"modality {modality.name} has a size or window, but {modality.encoder} brings its own"
            )
    return entry


def _entry(encoder: str, source: EncoderSource) -> EncoderEntry:
    if not encoder.startswith(FROM_FILE):
        return ENCODERS[encoder]
    name = encoder.removeprefix(FROM_FILE)
    path = source.given or source.folder(encoder) / name
    if not (path / CONTRACT).is_file():
        raise InputError(
            f"{path}: no {CONTRACT} of encoder {name}; add it first: mmare-site encoders add FOLDER"
        )
    folder = open_folder(path)
    if folder.contract.name != name:
        raise InputError(
            f"{path / CONTRACT}: name is {folder.contract.name!r}, expected {name!r} as in the study"
        )
    return _from_file(folder)


def _from_file(folder: EncoderFolder) -> EncoderEntry:
    spec = folder.contract.input

    def mark(_source: EncoderSource, preprocessing: str) -> str:
        return "+".join([folder.fingerprint, *([preprocessing] if preprocessing else [])])

    def open_encoder(source: EncoderSource) -> Any:  # noqa: ANN401  of texts or of scans, as the kind says
        from client.encoders.files.probe import opened  # noqa: PLC0415 - nibabel takes a second

        return opened(folder, source.device)

    text = folder.contract.kind is Kind.TEXT
    return EncoderEntry(
        folder.contract.kind,
        folder.contract.output.width,
        mark,
        open_text=(lambda source, _width: open_encoder(source)) if text else None,
        open_volume=None if text else open_encoder,
        slides=spec.kind is InputKind.TILES,
        steps=lambda modality: _steps(spec, modality),
    )


def _steps(spec: InputSpec, modality: ModalitySpec) -> Steps:
    if spec.kind is InputKind.TILES:
        return Tiling(um_px=spec.um_px, tile_px=spec.tile_px)
    mask = MaskUse.MASK if modality.mask is StudyMask.STRIP else MaskUse.NONE
    if spec.normalise is Normalise.FOREGROUND:
        return replace(foreground_steps(spec), mask=mask, crop_to_mask=modality.crop_to_mask)
    return FileSteps(spec, mask, modality.crop_to_mask)


def encoder_notes(study: Study, names: Collection[str]) -> tuple[str, ...]:
    """Notes on the features of the modalities in ``names``, each note once."""
    notes: dict[str, list[str]] = {}
    for modality in study.modalities:
        entry = ENCODERS.get(modality.encoder)
        if modality.name in names and entry is not None and entry.note:
            notes.setdefault(entry.note, []).append(modality.name)
    return tuple(f"Features of {', '.join(found)}: {note}" for note, found in notes.items())


def pick_device(name: str) -> torch.device:
    """The device that a site names; ``auto`` is a GPU if there is one.

    Raises:
        InputError: If torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"[compute] device is {name!r}, expected such as auto, cpu or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"[compute] device is {name!r}, but torch finds no GPU on this machine")
    return device


def fast_type(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that a device computes in natively; None if it has none or it is unknown."""
    if device.type == "cuda":
        recent = torch.cuda.get_device_capability(device)[0] >= _AMPERE
        return torch.bfloat16 if recent else torch.float16
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.bfloat16
    return None


def encoder_source(site: SiteConfig, modality: str = "") -> EncoderSource:
    """A site's weights and hardware, for one modality if it is named; an InputError without the device."""
    device = pick_device(site.device)
    given = site.modalities[modality].encoder if modality in site.modalities else None
    return EncoderSource(weights=site.weights, device=device, autocast=fast_type(device), given=given)


@dataclass(frozen=True)
class _HashingText:
    width: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return hashing_text.encode_texts(texts, self.width)


def _hashing() -> EncoderEntry:
    def mark(_source: EncoderSource, _preprocessing: str) -> str:
        return hashing_text.FINGERPRINT

    return EncoderEntry(Kind.TEXT, None, mark, open_text=lambda _, width: _HashingText(width))


def _med3d(variant: med3d.Variant) -> EncoderEntry:
    def mark(source: EncoderSource, preprocessing: str) -> str:
        sha256 = weights.pinned_hash(source.folder(_MED3D), _MED3D + weights.SUFFIX)
        return f"{med3d.ARCHITECTURE}-{variant}+{preprocessing}+sha256:{sha256}"

    def open_volume(source: EncoderSource) -> VolumeEncoder:
        state = weights.load_weights(source.folder(_MED3D), _MED3D)
        return med3d.Med3DEncoder(med3d.load_med3d(state, variant), source.device, source.autocast)

    return EncoderEntry(Kind.VOLUME, med3d.CHANNELS[-1], mark, open_volume=open_volume)


def _random_med3d() -> EncoderEntry:
    def mark(_source: EncoderSource, preprocessing: str) -> str:
        return f"{med3d.ARCHITECTURE}-random+{preprocessing}+seed:{med3d.RANDOM_SEED}"

    def open_volume(source: EncoderSource) -> VolumeEncoder:
        return med3d.Med3DEncoder(med3d.random_med3d(), source.device, source.autocast)

    return EncoderEntry(Kind.VOLUME, med3d.CHANNELS[-1], mark, open_volume=open_volume, note=UNTRAINED)


@dataclass(frozen=True)
class _Slides:
    """Adapts the tiles of one slide to the interface of volumes."""

    encoder: resnet50_wsi.ResNet50Wsi

    def encode(self, volumes: Tensor) -> Tensor:
        """``(1, W)`` for the tiles ``(1, N, 256, 256, 3)`` uint8 of a slide."""
        return torch.from_numpy(self.encoder.encode(volumes[0].numpy())).unsqueeze(0)


def _resnet50() -> EncoderEntry:
    file = _RESNET50 + weights.SUFFIX

    def mark(source: EncoderSource, preprocessing: str) -> str:
        sha256 = weights.pinned_hash(source.folder(_RESNET50), file)
        return f"{resnet50_wsi.ARCHITECTURE}+{preprocessing}+sha256:{sha256}"

    def open_volume(source: EncoderSource) -> VolumeEncoder:
        folder = source.folder(_RESNET50)
        weights.pinned_hash(folder, file)
        return _Slides(
            resnet50_wsi.load_resnet50_wsi(folder / file, device=source.device, autocast=source.autocast)
        )

    return EncoderEntry(
        Kind.VOLUME, resnet50_wsi.WIDTH, mark, open_volume=open_volume, slides=True, steps=lambda _: Tiling()
    )


def _vgg11() -> EncoderEntry:
    def mark(source: EncoderSource, preprocessing: str) -> str:
        sha256 = weights.pinned_hash(source.folder(_VGG11), _VGG11 + weights.SUFFIX)
        return f"{vgg11.ARCHITECTURE}+{preprocessing}+sha256:{sha256}"

    def open_volume(source: EncoderSource) -> VolumeEncoder:
        state = weights.load_weights(source.folder(_VGG11), _VGG11)
        return vgg11.Vgg11Encoder(vgg11.load_vgg11(state), source.device, source.autocast)

    return EncoderEntry(Kind.VOLUME, vgg11.WIDTH, mark, open_volume=open_volume, slices=True)


def _unimed(name: str, spec: unimed_clip.TowerSpec) -> EncoderEntry:
    def mark(source: EncoderSource, _preprocessing: str) -> str:
        folder = source.folder(name)
        tower = weights.pinned_hash(folder, name + weights.SUFFIX)
        unimed_clip.check_local_names(folder / name, spec)
        vocabulary = weights.pinned_hash(folder, f"{name}/vocab.txt")
        # config.json is compared with the tower's sizes, so its bytes may differ and are not hashed.
        return f"{unimed_clip.ARCHITECTURE}+sha256:{tower}+vocabulary:{vocabulary}"

    def open_text(source: EncoderSource, _width: int) -> TextEncoder:
        folder = source.folder(name)
        state = weights.load_weights(folder, name)
        return unimed_clip.load_unimed_text(state, folder / name, spec, source.device)

    return EncoderEntry(Kind.TEXT, spec.width, mark, open_text=open_text)


_MED3D: Final = "med3d-resnet18"
_RESNET50: Final = "resnet50-wsi"
_VGG11: Final = "hypermm-vgg11"

ENCODERS: Final[dict[str, EncoderEntry]] = {
    "hashing-text": _hashing(),
    _VGG11: _vgg11(),
    _MED3D: _med3d(med3d.Variant.MEDICALNET),
    f"{_MED3D}-monai": _med3d(med3d.Variant.MONAI),
    f"{_MED3D}-random": _random_med3d(),
    _RESNET50: _resnet50(),
    "unimed-clip-text": _unimed("unimed-clip-text", unimed_clip.B16),
    "unimed-clip-text-l14-base": _unimed("unimed-clip-text-l14-base", unimed_clip.L14_BASE),
    "unimed-clip-text-l14-large": _unimed("unimed-clip-text-l14-large", unimed_clip.L14_LARGE),
}


def check_encoders(study: Study) -> None:
    """Refuse a study with an unknown encoder or a wrong width.

    Raises:
        DataError: Naming the modality and the known encoders, or the encoder's width.
    """
    for modality in study.modalities:
        if modality.encoder.startswith(FROM_FILE) and modality.kind is not Kind.FEATURES:
            continue  # known at the site alone: `encoder_entry`
        known = sorted(name for name, entry in ENCODERS.items() if entry.kind is modality.kind) or [GIVEN]
        if modality.encoder not in known:
            raise DataError(
                f"modality {modality.name} ({modality.kind}) names the encoder {modality.encoder!r}, "
                f"expected one of {', '.join(known)}{'' if modality.kind is Kind.FEATURES else ', file:NAME'}"
            )
        width = None if modality.encoder == GIVEN else ENCODERS[modality.encoder].width
        if width not in (None, modality.width):
            raise DataError(f"modality {modality.name} has width {modality.width}; its encoder gives {width}")
