"""From a scan to the input of a volume encoder: a versioned list of pure steps.

::

    Volume ─► orient ─► crop ─► resize ─► window ─► strip ─► z-score ─► noise ─► (1, D, H, W)
                        organ   nearest   CT only   outside  over the   in the
                        box               from 0    the mask foreground background

The order is MedicalNet's (Chen et al., "Med3D", arXiv:1904.00625; ``datasets/brains18.py`` of
Tencent/MedicalNet at 20f76aaa): size, intensities, noise. The thesis resizes last. Nearest-neighbour
resizing changes no voxel value, so the voxelwise steps (window, strip) give the same bits in either order.

Differs from MedicalNet: axes are oriented by the affine; noise is drawn from a seed per scan; volumes
without contrast are refused instead of divided by zero; CT is windowed and shifted to start at 0, because
no Hounsfield scale has 0 as its background.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from client.ingest.reasons import ScanReason, ScanRefused
from mmare.errors import InputError
from mmare.host.files import own_folder, replacing

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from client.ingest.volume import Volume

__all__ = ["MaskUse", "VolumeSteps", "nearest_indices", "noise_seed", "preprocess", "run_mask_command"]

VERSION: Final = "volume/1"  # raise the number when any step changes the output
DEFAULT_SIZE: Final = (56, 448, 448)  # what MedicalNet was trained on
AXES: Final = "SAR"  # slices rise to the head, rows to the front, columns to the right
GRID_TOLERANCE_MM: Final = 0.1  # affines of one scan differ by float32 rounding of qform and sform

_FARTHEST: Final = 1e6  # deviations from the mean; no scanner has such a range, and networks overflow
_LABELS: Final = (("L", "R"), ("P", "A"), ("I", "S"))  # the letters of nibabel, for axes of an RAS affine
_PLACEHOLDERS: Final = ("{input}", "{output}")
_LAST_WORDS: Final = 200  # characters of a failed command's last line


class MaskUse(StrEnum):
    """What happens to the voxels outside a mask."""

    NONE = "none"  # they stay
    MASK = "mask"  # they become background: skull stripping


@dataclass(frozen=True)
class VolumeSteps:
    """Preprocessing of the volumes of one modality: the same at every site of a study.

    With ``crop_to_mask`` but not ``mask``, the surroundings within the box stay, as in the kidney-centred
    variant of thesis 5.2.3.

    Example:
        >>> VolumeSteps(window=(-79, 304)).fingerprint
        'volume/1:56x448x448:window=-79.0..304.0'
    """

    size: tuple[int, int, int] = DEFAULT_SIZE  # slices, rows, columns
    window: tuple[float, float] | None = None  # lowest and highest intensity kept, in HU for CT
    mask: MaskUse = MaskUse.NONE
    crop_to_mask: bool = False  # to the mask's bounding box, before resizing

    @property
    def needs_mask(self) -> bool:
        """Whether every volume needs a mask."""
        return self.mask is MaskUse.MASK or self.crop_to_mask

    @property
    def fingerprint(self) -> str:
        """Version and parameters: equal if the steps are."""
        parts = [VERSION, "x".join(map(str, self.size))]
        if self.window is not None:
            parts.append(f"window={float(self.window[0])!r}..{float(self.window[1])!r}")
        if self.mask is MaskUse.MASK:
            parts.append("mask")
        if self.crop_to_mask:
            parts.append("crop")
        return ":".join(parts)


def preprocess(volume: Volume, steps: VolumeSteps, seed: int, mask: Volume | None = None) -> Tensor:
    """Run the steps; ``seed`` (see `noise_seed`) draws the background noise.

    The mask must be on the volume's grid, though its axes may run otherwise; voxels above 0 are inside. It is
    ignored if the steps need none.

    Returns:
        ``(1, D, H, W)`` float32 of ``steps.size``: foreground of mean 0 and deviation 1, background N(0, 1).

    Raises:
        ScanRefused: If the volume or the mask cannot be used; with the reason.
    """
    scan = _orient(volume)  # (1, D, H, W) in the type of the file
    if steps.needs_mask:
        inside = _oriented_mask(mask, scan)
        if steps.crop_to_mask:
            scan, inside = _crop(scan, inside)
        inside = _resize(inside, steps.size)
    voxels = _resize(scan, steps.size).float()
    if steps.window is not None:
        voxels = _window(voxels, *steps.window)
    if steps.mask is MaskUse.MASK:
        voxels = torch.where(inside, voxels, 0.0)
    background = voxels == 0  # before the mean is subtracted
    return _fill(_standardise(voxels), background, seed)


def noise_seed(*names: str | int) -> int:
    """A seed from a scan's identity alone: embeddings stay valid under another seed of the study.

    Example:
        >>> noise_seed("ixi", "012", "t1") == noise_seed("ixi", "012", "t1") != noise_seed("ixi", "0", "12t1")
        True
    """
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def nearest_indices(length: int, wanted: int) -> Tensor:
    """Voxel indices ``(wanted,)`` int64 that resizing an axis picks: the ends stay the ends.

    The rule of ``scipy.ndimage.zoom(order=0)``, which MedicalNet used: index i of n is
    ``floor(i * (length - 1) / (n - 1) + 1 / 2)``. "nearest" of MONAI and torch aligns cells instead of ends
    and picks other voxels.

    Example:
        >>> nearest_indices(10, 4).tolist()
        [0, 3, 6, 9]
    """
    step = (length - 1) / (wanted - 1) if wanted > 1 else 0.0
    places = torch.floor(torch.arange(wanted, dtype=torch.float64) * step + 0.5)
    return places.long().clamp_(max=length - 1)  # the last may be rounded up


def _orient(volume: Volume, axes: str = AXES) -> Any:  # noqa: ANN401  a MetaTensor: monai is imported on first use
    """``(1, D, H, W)`` with slices, rows and columns along ``axes``; the affine follows."""
    from monai.data.meta_tensor import MetaTensor  # noqa: PLC0415  takes seconds to import
    from monai.transforms.spatial.array import Orientation  # noqa: PLC0415  as above

    voxels = torch.from_numpy(np.ascontiguousarray(volume.voxels))
    scan = MetaTensor(voxels[None], affine=torch.from_numpy(volume.affine_mm))
    return Orientation(axes, labels=_LABELS)(scan)


def _oriented_mask(mask: Volume | None, scan: Any, axes: str = AXES) -> Tensor:  # noqa: ANN401  as `_orient`
    """``(1, D, H, W)`` bool on the grid of the scan."""
    if mask is None:
        raise ScanRefused(ScanReason.NO_MASK)
    found = _orient(mask, axes)
    if found.shape != scan.shape:
        grids = [" x ".join(map(str, tensor.shape[1:])) for tensor in (found, scan)]
        raise ScanRefused(ScanReason.MASK_GRID, f"It has {grids[0]} voxels, the scan {grids[1]}.")
    apart_mm = _largest_distance_mm(found.affine, scan.affine, scan.shape[1:])
    if apart_mm > GRID_TOLERANCE_MM:
        raise ScanRefused(ScanReason.MASK_GRID, f"Their voxels lie up to {apart_mm:.1f} mm apart.")
    inside: Tensor = found.as_tensor() > 0
    if not bool(inside.any()):
        raise ScanRefused(ScanReason.EMPTY_MASK)
    return inside


def _largest_distance_mm(one: Tensor, other: Tensor, shape: torch.Size) -> float:
    """Largest distance between corresponding corners of two grids."""
    ends = [torch.tensor([0.0, length - 1.0], dtype=torch.float64) for length in shape]
    corners = torch.cartesian_prod(*ends)  # (8, 3)
    shift = one.double() - other.double()
    return float((corners @ shift[:3, :3].T + shift[:3, 3]).norm(dim=1).max())


def _crop(scan: Any, inside: Tensor) -> tuple[Any, Tensor]:  # noqa: ANN401  as `_orient`
    """Scan and mask cut to the mask's bounding box."""
    from monai.transforms.croppad.array import CropForeground  # noqa: PLC0415  takes seconds to import

    start, end = CropForeground(allow_smaller=True).compute_bounding_box(inside)
    box = (slice(None), *(slice(int(low), int(high)) for low, high in zip(start, end, strict=True)))
    return scan.as_tensor()[box], inside[box]


def _resize(voxels: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Nearest-neighbour resizing, see `nearest_indices`; returns a plain tensor."""
    picked = np.asarray(voxels)  # numpy indexes five times as fast
    for axis in (1, 3, 2):  # fewest voxels copied: slices first, then whole rows
        places = nearest_indices(picked.shape[axis], size[axis - 1]).numpy()
        picked = np.take(picked, places, axis=axis)
    return torch.from_numpy(picked)


def _window(voxels: Tensor, lowest: float, highest: float) -> Tensor:
    """Clip to a window and shift its lower end, the background, to 0."""
    return voxels.clamp(lowest, highest) - lowest


def _standardise(voxels: Tensor) -> Tensor:
    """Standardise all voxels by mean and (population) deviation of those above 0."""
    from monai.transforms.intensity.array import NormalizeIntensity  # noqa: PLC0415  takes seconds to import

    values = voxels.numpy().ravel()  # numpy indexes ten times as fast
    with np.errstate(invalid="ignore"):  # infinities of both signs
        total = values.sum(dtype=np.float64)
    if not np.isfinite(total):  # one odd voxel spoils the sum; float32 values cannot overflow it
        raise ScanRefused(ScanReason.NON_FINITE_VOXELS)
    foreground = values[np.flatnonzero(values > 0)].astype(np.float64)
    if foreground.size == 0:
        raise ScanRefused(ScanReason.EMPTY_VOLUME)
    if foreground.min() == foreground.max():
        raise ScanRefused(ScanReason.CONSTANT_VOLUME)
    mean, deviation = float(foreground.mean()), float(foreground.std())
    standardise = NormalizeIntensity(subtrahend=mean, divisor=deviation)  # type: ignore[arg-type]  # takes plain numbers, too
    found = torch.as_tensor(standardise(voxels)).as_subclass(torch.Tensor)
    if not bool((found.abs() <= _FARTHEST).all()):  # NaN is not
        raise ScanRefused(ScanReason.OUTLYING_VOXELS)
    return found


def _fill(voxels: Tensor, background: Tensor, seed: int) -> Tensor:
    """N(0, 1) in the background, one draw per voxel whatever the anatomy."""
    noise = torch.randn(voxels.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(background, noise, voxels)


def run_mask_command(template: str, source: Path, target: Path, timeout_s: float) -> None:
    """Make a mask with a program such as SynthStrip: ``mri_synthstrip -i {input} -m {output}``.

    No shell is involved: the template is split into words before the paths are inserted. The target appears
    only when complete; its suffix tells the program the format. On a timeout child processes are killed too.

    Raises:
        InputError: If the template is invalid or its program not found.
        ScanRefused: If the program fails, times out or writes nothing.
    """
    words = _words(template)
    own_folder(target.parent)
    with replacing(target, f"partial-{uuid.uuid4().hex}-{target.name}") as partial:
        paths = dict(zip(_PLACEHOLDERS, (str(source), str(partial)), strict=True))
        _run([_put(word, paths) for word in words], timeout_s)
        if not partial.is_file() or partial.stat().st_size == 0:
            raise ScanRefused(ScanReason.MASK_COMMAND, f"{words[0]} ended well and wrote no mask.")


def _words(template: str) -> list[str]:
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise InputError(f"mask command {template!r}: {error}") from None
    lacking = [name for name in _PLACEHOLDERS if not any(name in word for word in words[1:])]
    if lacking:
        raise InputError(
            f"mask command {template!r} lacks {' and '.join(lacking)}, "
            "expected such as 'mri_synthstrip -i {input} -m {output}'"
        )
    return words


def _put(word: str, paths: dict[str, str]) -> str:
    for name, path in paths.items():
        word = word.replace(name, path)
    return word


def _run(command: list[str], timeout_s: float) -> None:
    """Run to the end, or kill the process group."""
    program = command[0]
    try:
        process = subprocess.Popen(  # noqa: S603  the site's own configuration names the program
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise InputError(f"mask command: cannot start {program!r} ({error.strerror})") from None
    with process:
        try:
            _, words = process.communicate(timeout=timeout_s)
        except BaseException as error:  # an interrupt must not leave it running either
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                detail = f"{program} was stopped after {timeout_s:g} s."
                raise ScanRefused(ScanReason.MASK_COMMAND, detail) from None
            raise
    if process.returncode != 0:
        lines = words.decode(errors="replace").strip().splitlines() or ["nothing on stderr"]
        detail = f"{program} ended with {process.returncode}: {lines[-1][:_LAST_WORDS]}"
        raise ScanRefused(ScanReason.MASK_COMMAND, detail)
