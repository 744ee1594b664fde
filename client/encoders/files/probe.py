"""The probe: a raw input that passes the same steps and network as a patient's, and what must come out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from client.encoders.files.contract import InputKind, Normalise
from client.encoders.files.encoder import FileEncoder, FileText
from client.encoders.files.steps import FileSteps, foreground_steps, prepared
from client.encoders.preprocess import preprocess
from client.ingest.nifti import read_nifti
from mmare.errors import DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from client.encoders.files.folder import EncoderFolder

__all__ = [
    "OUTPUT",
    "check_probe",
    "draw_probe",
    "largest_difference",
    "open_encoder",
    "opened",
    "run_probe",
]

OUTPUT: Final = "probe-output.safetensors"

_NAMES: Final = {
    InputKind.VOLUME: "probe.nii.gz",
    InputKind.SLICES: "probe.nii.gz",
    InputKind.TILES: "probe.safetensors",
    InputKind.TEXT: "probe.txt",
}
_KEY: Final = "probe"
_SEED: Final = 0
_SHAPE: Final = (
    96,
    112,
    40,
)  # of the scan that is drawn: right, front, head; unlike numbers, so no axis is mistaken
_SPACING_MM: Final = (2.0, 2.0, 5.0)
_TILES: Final = 3
_TEXTS: Final = (
    "The patient is a male of 63 years; a tumor of the left kidney, grade G3, stage T3a, no metastasis.",
    "No prior history.",
)


def opened(folder: EncoderFolder, device: torch.device) -> FileEncoder | FileText:
    """The encoder, whose probe gives what it must.

    Raises:
        InputError: If it cannot be opened, or its probe gives something else on this device.
    """
    encoder = open_encoder(folder, device)
    check_probe(folder, encoder, device)
    return encoder


def open_encoder(folder: EncoderFolder, device: torch.device) -> FileEncoder | FileText:
    """The encoder, whose probe is not run; raises as `FileEncoder`."""
    return (FileText if folder.contract.input.kind is InputKind.TEXT else FileEncoder)(folder, device)


def check_probe(folder: EncoderFolder, encoder: FileEncoder | FileText, device: torch.device) -> float:
    """The largest difference from what must come out, relative to the largest value expected.

    Raises:
        InputError: If it is beyond the tolerance.
    """
    probe = folder.contract.probe
    assert probe is not None  # noqa: S101 - a folder without one is not opened
    path = folder.path / probe.output
    try:
        expected = load_file(path)[_KEY]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}), expected a tensor {_KEY!r}"
        ) from None
    found = run_probe(folder, encoder, folder.path / probe.input)
    if found.shape != expected.shape:
        raise InputError(f"{path}: the probe gives {tuple(found.shape)}, expected {tuple(expected.shape)}")
    apart = largest_difference(found, expected)
    if not apart <= probe.tolerance:  # NaN is not
        raise InputError(
            f"{folder.path}: its probe gives another output on {device}: largest difference {apart:.3g} of "
            f"the largest value, expected at most {probe.tolerance:g}"
        )
    return apart


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two outputs, relative to the largest value expected.

    Example:
        >>> largest_difference(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0]))
        0.25
    """
    largest = float(expected.abs().max())
    return float((found - expected).abs().max()) / largest if largest else float("inf")


def run_probe(folder: EncoderFolder, encoder: FileEncoder | FileText, path: Path) -> Tensor:
    """Vectors ``(N, W)`` of a raw input; a DataError in it is an InputError of the folder."""
    spec = folder.contract.input
    try:
        if isinstance(encoder, FileText):
            texts = path.read_text(encoding="utf-8").splitlines()
            return torch.from_numpy(encoder.encode(texts))
        if spec.kind is InputKind.TILES:
            return encoder.encode(load_file(path)[_KEY].unsqueeze(0))
        volume = read_nifti(path)
        if spec.normalise is Normalise.FOREGROUND:
            given = preprocess(volume, foreground_steps(spec), _SEED)
        else:
            given = prepared(volume, FileSteps(spec))
        return encoder.encode(given.unsqueeze(0))
    except (DataError, OSError, SafetensorError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be used as a probe ({error})") from None


def draw_probe(folder: EncoderFolder) -> Path:
    """Draw a raw input of the contract's kind into the folder, the same every time.

    Volumes are a bright, uneven ellipsoid on air, in units of CT if there is a window.
    """
    spec = folder.contract.input
    path = folder.path / _NAMES[spec.kind]
    if spec.kind is InputKind.TEXT:
        path.write_text("\n".join(_TEXTS) + "\n", encoding="utf-8")
        return path
    generator = np.random.default_rng(_SEED)
    if spec.kind is InputKind.TILES:
        tiles = generator.integers(0, 256, (_TILES, spec.tile_px, spec.tile_px, 3), np.uint8)
        save_file({_KEY: torch.from_numpy(tiles)}, path)
        return path
    import nibabel as nib  # noqa: PLC0415 - takes a second to import

    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in _SHAPE), indexing="ij"))
    inside = (grid**2).sum(0) < 0.7  # noqa: PLR2004 - a body that does not touch the edge
    low, high = spec.window or (0.0, 1000.0)
    bright = 0.5 + 0.2 * np.sin(5 * grid[0] + 3 * grid[1] * grid[2]) + generator.normal(0, 0.05, _SHAPE)
    voxels = np.where(inside, low + (high - low) * bright, low).round().astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([*_SPACING_MM, 1.0]))  # type: ignore[no-untyped-call]
    image.set_sform(image.affine, 1)  # type: ignore[no-untyped-call]
    nib.save(image, path)
    return path
