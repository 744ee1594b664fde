"""Weights from outside: checked once, converted to safetensors, pinned by their hash.

::

    resnet_18_23dataset.pth ─┐  read as tensors only,    ┌─► WEIGHTS/med3d-resnet18.safetensors
    unimed_clip_vit_b16.pt  ─┼─ recognised by its names, ┼─► WEIGHTS/unimed-clip-text.safetensors
    config.json, vocab.txt  ─┘  every shape compared     ├─► WEIGHTS/unimed-clip-text/{config.json,vocab.txt}
                                                         └─► WEIGHTS/weights.json   the hashes

Only the converted files are used afterwards. A file is pinned when imported or first used and refused if it
has changed since, as it would silently change every embedding.
"""

from __future__ import annotations

import _codecs
import json
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from client.encoders import med3d, resnet50_wsi, unimed_clip, vgg11
from client.encoders.digest import sha256_of
from mmare.errors import InputError, RunError
from mmare.host.files import replacing

__all__ = [
    "LAYOUTS",
    "ImportedWeights",
    "Layout",
    "import_weights",
    "load_weights",
    "pinned_hash",
    "read_tensors",
    "sha256_of",
]

PINS: Final = "weights.json"
SUFFIX: Final = ".safetensors"

_MODULE: Final = "module."  # prefix added by torch's DataParallel
_UNUSED: Final = ("num_batches_tracked", "embeddings.position_ids")  # counters; a buffer of old transformers
_SHOWN: Final = 2  # names per message

# What a training checkpoint of open_clip holds besides tensors: the epoch or a loss as numpy scalars.
# They are plain values and cannot run code. numpy 1 and 2 write different module names.
_SAFE_GLOBALS: Final[list[Any]] = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]  # no stub
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]  # no stub
    np.dtype,
    np.dtypes.Float64DType,
    _codecs.encode,
]


@dataclass(frozen=True)
class Layout:
    """What the checkpoint of an encoder must hold."""

    name: str  # of the encoder and of the converted file
    title: str  # for people
    prefix: str  # of the tensors that are kept; others (an image tower) are dropped
    shapes: Mapping[str, tuple[int, ...]]  # by name without the prefix
    companions: tuple[str, ...] = ()  # files required in a folder of the encoder's name
    spare: tuple[str, ...] = ()  # prefixes of published tensors that the encoder does not need


def _unimed(name: str, title: str, spec: unimed_clip.TowerSpec) -> Layout:
    return Layout(name, title, "text_encoder.", spec.state_shapes(), unimed_clip.LOCAL_FILES)


LAYOUTS: Final = (
    Layout("med3d-resnet18", "Med3D ResNet-18 (resnet_18_23dataset.pth)", "", med3d.state_shapes()),
    _unimed("unimed-clip-text", "UniMed-CLIP ViT-B/16 (unimed_clip_vit_b16.pt)", unimed_clip.B16),
    _unimed(
        "unimed-clip-text-l14-base",
        "UniMed-CLIP ViT-L/14, base text encoder (unimed_clip_vit_l14_base_text_encoder.pt)",
        unimed_clip.L14_BASE,
    ),
    _unimed(
        "unimed-clip-text-l14-large",
        "UniMed-CLIP ViT-L/14, large text encoder (unimed_clip_vit_l14_large_text_encoder.pt)",
        unimed_clip.L14_LARGE,
    ),
    Layout(
        "resnet50-wsi",
        "ResNet-50 of torchvision (resnet50-*.pth)",
        "",
        resnet50_wsi.state_shapes(),
        spare=("layer4.", "fc."),
    ),
    Layout(
        "hypermm-vgg11",
        "VGG11 of torchvision (vgg11-*.pth)",
        "",
        vgg11.state_shapes(),
        spare=("classifier.",),
    ),
)


@dataclass(frozen=True)
class ImportedWeights:
    """Result of an import."""

    name: str  # of the encoder
    title: str  # of the recognised checkpoint
    source_sha256: str  # of the given file, to compare with its publisher's page
    file: Path  # converted
    sha256: str  # of the converted file, part of the encoder's fingerprint
    n_tensors: int
    n_values: int  # numbers in them
    lacking: tuple[Path, ...] = ()  # companions that were not found beside the source


def import_weights(file: Path, into: Path, layouts: Sequence[Layout] = LAYOUTS) -> ImportedWeights:
    """Check a downloaded checkpoint and convert it once.

    The same checkpoint gives the same bytes wherever it is imported. ``config.json`` and ``vocab.txt`` beside
    it are copied too.

    Args:
        file: The checkpoint, as its authors published it.
        into: The folder of weights; created if absent.
        layouts: The known checkpoints.

    Raises:
        InputError: If the file cannot be read or is no known checkpoint, or other weights of that name are
            already there; names what was found and what was expected.
        RunError: If the converted file cannot be written.
    """
    layout, state = _recognise(read_tensors(file), layouts, file.name)
    source_sha256 = sha256_of(file)
    target = into / f"{layout.name}{SUFFIX}"
    sha256 = _convert(state, target)
    companions = [Path(layout.name) / name for name in layout.companions]
    for companion in companions:
        beside = file.with_name(companion.name)
        if beside.is_file() and not (into / companion).exists():
            with _written(into / companion) as partial:
                shutil.copyfile(beside, partial)
    _pin(into, target.name, {"sha256": sha256, "source": file.name, "source_sha256": source_sha256})
    return ImportedWeights(
        name=layout.name,
        title=layout.title,
        source_sha256=source_sha256,
        file=target,
        sha256=sha256,
        n_tensors=len(state),
        n_values=sum(value.numel() for value in state.values()),
        lacking=tuple(into / companion for companion in companions if not (into / companion).is_file()),
    )


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of an imported encoder, after checking their hash; raises as `pinned_hash`."""
    pinned_hash(folder, f"{name}{SUFFIX}")
    try:
        return load_file(folder / f"{name}{SUFFIX}")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / name}{SUFFIX}: cannot be read ({error})") from None


def pinned_hash(folder: Path, name: str) -> str:
    """The sha256 of a file in the folder of weights: pinned on first use, compared ever after.

    ``name`` is relative to the folder, with ``/`` between parts.

    Raises:
        InputError: If the file is missing or has changed since it was pinned.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: no such file; import the weights first: mmare-site weights import FILE")
    found = sha256_of(path)
    expected = _pins(folder).get(name, {}).get("sha256")
    if expected is None:
        _pin(folder, name, {"sha256": found})
    elif found != expected:
        raise InputError(
            f"{path} has changed: sha256 is {found}, expected {expected} as pinned in {PINS}. "
            f"Restore the old file; if the change is intended, remove the file and its entry in {PINS}"
        )
    return found


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without the prefix of data-parallel training."""
    try:
        content = _unpickled(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{file}: is no checkpoint, or holds more than tensors and numbers, so it is not opened"
        ) from None
    except Exception as error:  # torch raises almost anything on a damaged file
        raise InputError(f"{file}: damaged or no torch checkpoint ({type(error).__name__})") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file}: holds no named tensors, expected a state_dict as published")
    return {
        str(key).removeprefix(_MODULE): value for key, value in state.items() if isinstance(value, Tensor)
    }


def _unpickled(file: Path) -> Any:  # noqa: ANN401  a file may hold anything
    if file.suffix == SUFFIX:
        return load_file(file)
    mapped = zipfile.is_zipfile(file)  # False before torch 1.6; mapped, 5 GB of optimiser state stay on disk
    with torch.serialization.safe_globals(_SAFE_GLOBALS):
        return torch.load(  # noqa: TID251  published as pickles; weights only, so nothing runs
            file, map_location="cpu", weights_only=True, mmap=mapped
        )


def _recognise(
    tensors: Mapping[str, Tensor], layouts: Sequence[Layout], source: str
) -> tuple[Layout, dict[str, Tensor]]:
    """The layout that the tensors match exactly, and its tensors in float32."""
    kept = {layout.name: _behind(tensors, layout) for layout in layouts}
    scores = {
        layout.name: sum(kept[layout.name].get(name) == shape for name, shape in layout.shapes.items())
        for layout in layouts
    }
    nearest = max(layouts, key=lambda layout: scores[layout.name])
    if not scores[nearest.name]:
        known = "; ".join(layout.title for layout in layouts)
        raise InputError(f"{source}: found {_named(sorted(tensors))}; expected one of: {known}")
    if fault := _difference(kept[nearest.name], nearest.shapes):
        raise InputError(f"{source}: nearest to {nearest.title}, but {fault}")
    state = {name: tensors[nearest.prefix + name].float().contiguous() for name in nearest.shapes}
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{source}: {name} holds NaN or infinity, expected finite weights")
    return nearest, state


def _behind(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names (without prefix) and shapes of the tensors that the frozen network uses."""
    return {
        name.removeprefix(layout.prefix): tuple(value.shape)
        for name, value in tensors.items()
        if name.startswith(layout.prefix) and not name.endswith(_UNUSED) and not name.startswith(layout.spare)
    }


def _difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """How two sets of shapes differ, in words; empty if they are equal."""
    lacking = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    other = [name for name in expected if name in found and found[name] != expected[name]]
    faults = []
    if lacking:
        faults.append(f"it lacks {_named(lacking)}")
    if unknown:
        faults.append(f"it has {_named(unknown)} beyond it")
    faults += [f"{name} has the shape {found[name]}, expected {expected[name]}" for name in other[:_SHOWN]]
    return "; ".join(faults)


def _named(names: Sequence[str]) -> str:
    """The number of tensors and the first names."""
    shown = ", ".join(names[:_SHOWN])
    return f"{len(names)} tensor{'s' * (len(names) != 1)} ({shown}{', …' * (len(names) > _SHOWN)})"


def _convert(state: Mapping[str, Tensor], target: Path) -> str:
    """Write safetensors, unless the target is pinned with another hash; returns the hash."""
    with _written(target) as partial:
        save_file(dict(state), partial)
        sha256 = sha256_of(partial)
        pinned = _pins(target.parent).get(target.name, {}).get("sha256", sha256)
        if pinned != sha256:
            raise InputError(
                f"{target} is pinned with other weights: found sha256 {sha256}, expected {pinned}. "
                f"To change them, remove the file and its entry in {PINS} first"
            )
    return sha256


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """A file beside the target to write to, which takes its place when all went well."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            yield partial
    except (OSError, SafetensorError) as error:
        raise RunError(f"{target}: cannot be written ({error})") from None


def _pins(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / PINS
    try:
        pins = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}), expected the pinned hashes"
        ) from None
    if not isinstance(pins, dict) or not all(isinstance(entry, dict) for entry in pins.values()):
        raise InputError(f"{path}: expected one table per file")
    return pins


def _pin(folder: Path, name: str, entry: dict[str, str]) -> None:
    """Add or complete an entry."""
    pins = _pins(folder)
    pins[name] = pins.get(name, {}) | entry
    with _written(folder / PINS) as partial:
        partial.write_text(json.dumps(pins, indent=2, sort_keys=True) + "\n", encoding="utf-8")
