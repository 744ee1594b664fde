"""The encoders that a study can name. A new encoder is one file and one entry here.

Nothing heavy is imported and no weights are read before an encoder is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from client.encoders import hashing_text, med3d, resnet50_wsi, unimed_clip, vgg11, weights
from mmare.errors import DataError, InputError
from mmare.study.choices import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = [
    "ENCODERS",
    "GIVEN",
    "TEXT_ENCODERS",
    "EncoderEntry",
    "EncoderSource",
    "TextEncoder",
    "VolumeEncoder",
    "check_encoders",
    "encoder_notes",
    "encoder_source",
    "fast_type",
    "fingerprint",
    "pick_device",
]

GIVEN: Final = "given"  # features that were extracted before
UNTRAINED: Final = "UNTRAINED: random weights, for trials only"

_CPU: Final = torch.device("cpu")
_AMPERE: Final = 8  # compute capability from which a GPU computes in bfloat16


class TextEncoder(Protocol):
    """What turns texts into embeddings."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(N, W)`` of N texts."""


class VolumeEncoder(Protocol):
    """What turns preprocessed volumes into embeddings."""

    def encode(self, volumes: Tensor) -> Tensor:
        """``(B, W)`` float32 on the CPU, of ``(B, 1, D, H, W)``."""


@dataclass(frozen=True)
class EncoderSource:
    """What a site gives its encoders.

    Args:
        weights: Folder that ``mmare-site weights import`` has filled; none where the site has no weights.
        device: Where they run.
        autocast: Number type of the convolutions of volume encoders; none for float32. It is not in the
            fingerprint, so sites may differ: bfloat16 moves an embedding by 0.2 % of its length.
    """

    weights: Path | None = None
    device: torch.device = _CPU
    autocast: torch.dtype | None = None

    def folder(self, encoder: str) -> Path:
        """The folder of weights.

        Raises:
            InputError: If the site names none.
        """
        if self.weights is None:
            raise InputError(
                f"encoder {encoder} needs weights; expected their folder in site.toml: [compute] weights"
            )
        return self.weights


@dataclass(frozen=True)
class EncoderEntry:
    """One encoder.

    Args:
        kind: What it takes.
        width: Of its embedding; none for any that the study asks for.
        fingerprint: Architecture, hashes of its files and, where there is one, the fingerprint of the
            preprocessing, which comes second.
        open_text: Makes it, where it takes texts; also given the width that the study asks for.
        open_volume: Makes it, where it takes volumes.
        note: What a person must know of its features: commands and reports show it.
        slides: Whether its scans are whole slides, cut into tiles, instead of volumes.
        slices: Whether it sees a volume slice by slice, prepared by `client.encoders.vgg11.slices_of`.
    """

    kind: Kind
    width: int | None
    fingerprint: Callable[[EncoderSource, str], str]
    open_text: Callable[[EncoderSource, int], TextEncoder] | None = None
    open_volume: Callable[[EncoderSource], VolumeEncoder] | None = None
    note: str = ""
    slides: bool = False
    slices: bool = False


def fingerprint(encoder: str, source: EncoderSource | None = None, preprocessing: str = "") -> str:
    """What names an encoder's architecture, weights and preprocessing: equal at all sites of a federation.

    Args:
        encoder: A name of `ENCODERS`, or ``given``.
        source: Where its weights are, if it has any.
        preprocessing: Of volumes, `client.encoders.preprocess.VolumeSteps.fingerprint`.

    Raises:
        InputError: If its weights are missing or have changed.
    """
    if encoder == GIVEN:
        return GIVEN
    return ENCODERS[encoder].fingerprint(source or EncoderSource(), preprocessing)


def encoder_notes(study: Study, names: Collection[str]) -> tuple[str, ...]:
    """What a person must know of the features of the modalities in ``names``, each note once."""
    told: dict[str, list[str]] = {}
    for modality in study.modalities:
        entry = ENCODERS.get(modality.encoder)
        if modality.name in names and entry is not None and entry.note:
            told.setdefault(entry.note, []).append(modality.name)
    return tuple(f"Features of {', '.join(found)}: {note}" for note, found in told.items())


def pick_device(name: str) -> torch.device:
    """The device that a site names; ``auto`` is a GPU where there is one.

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
    """The 16-bit type that a device computes in natively; none where it has none or it is not known."""
    if device.type == "cuda":
        recent = torch.cuda.get_device_capability(device)[0] >= _AMPERE
        return torch.bfloat16 if recent else torch.float16
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.bfloat16
    return None


def encoder_source(site: SiteConfig) -> EncoderSource:
    """What a site gives its encoders.

    Raises:
        InputError: If it names a device that this machine has not.
    """
    device = pick_device(site.device)
    return EncoderSource(weights=site.weights, device=device, autocast=fast_type(device))


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
    """Tiles of one slide at a time, where volumes would come."""

    encoder: resnet50_wsi.ResNet50Wsi

    def encode(self, volumes: Tensor) -> Tensor:
        """``(1, W)`` of the tiles ``(1, N, 256, 256, 3)`` uint8 of a slide."""
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

    return EncoderEntry(Kind.VOLUME, resnet50_wsi.WIDTH, mark, open_volume=open_volume, slides=True)


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
        # Of the configuration only what is compared with the tower's sizes matters: its bytes may differ.
        return f"{unimed_clip.ARCHITECTURE}+sha256:{tower}+vocabulary:{vocabulary}"

    def open_text(source: EncoderSource, _width: int) -> TextEncoder:
        folder = source.folder(name)
        return unimed_clip.load_unimed_text(
            weights.load_weights(folder, name), folder / name, spec, source.device
        )

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

# The text encoders that need nothing from the site: fingerprint, and texts and width to ``(N, width)``.
TEXT_ENCODERS: Final[dict[str, tuple[str, Callable[[Sequence[str], int], NDArray[np.float32]]]]] = {
    "hashing-text": (hashing_text.FINGERPRINT, hashing_text.encode_texts),
}


def check_encoders(study: Study) -> None:
    """Refuse a study that names an encoder which this software does not have.

    Raises:
        DataError: Naming the modality and the known encoders, or the width that the encoder has.
    """
    for modality in study.modalities:
        known = sorted(name for name, entry in ENCODERS.items() if entry.kind is modality.kind)
        known = known or [GIVEN]
        if modality.encoder not in known:
            raise DataError(
                f"modality {modality.name} ({modality.kind}) names the encoder {modality.encoder!r}, "
                f"expected one of {', '.join(known)}"
            )
        width = None if modality.encoder == GIVEN else ENCODERS[modality.encoder].width
        if width not in (None, modality.width):
            raise DataError(f"modality {modality.name} has width {modality.width}; its encoder gives {width}")
