"""From a scan or tiles to the input that ``encoder.toml`` asks for.

::

    Volume ─► orient ─► organ ─► window ─► strip ─► foreground ─┬─► spacing, size ────► volume (C, D, H, W)
                        box      to scale  outside  box         └─► slices, fit ──────► pictures (S, C, H, W)
    tiles of a slide, 0 to 255 ─► fit ─► 0 to 1 ──────────────────────────────────────► pictures (N, 3, H, W)

Mean and deviation come last. Volumes are resampled linearly; pictures that shrink are smoothed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from client.encoders.files.contract import Crop, Fit, InputKind, InputSpec
from client.encoders.preprocess import MaskUse, VolumeSteps, _crop, _orient, _oriented_mask, nearest_indices
from client.ingest.reasons import ScanReason, ScanRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from client.ingest.volume import Volume

__all__ = ["FileSteps", "foreground_steps", "pictures_of", "prepared", "standardised"]

_BRIGHTEST = 255.0


@dataclass(frozen=True)
class FileSteps:
    """The steps for the volumes of one modality; the study says what a mask is for."""

    spec: InputSpec
    mask: MaskUse = MaskUse.NONE
    crop_to_mask: bool = False

    @property
    def needs_mask(self) -> bool:
        """Whether every volume needs a mask."""
        return self.mask is MaskUse.MASK or self.crop_to_mask

    @property
    def fingerprint(self) -> str:
        """What the encoder's own fingerprint does not hold."""
        return ":".join(["steps", *["mask"] * (self.mask is MaskUse.MASK), *["crop"] * self.crop_to_mask])


def prepared(volume: Volume, steps: FileSteps, mask: Volume | None = None) -> Tensor:
    """Run the steps; voxels of the mask above 0 are inside.

    Returns:
        ``(C, D, H, W)`` or, for slices, ``(S, C, H, W)``, float32.

    Raises:
        ScanRefused: If the volume or the mask cannot be used; with the reason.
    """
    spec = steps.spec
    scan, inside = _orient(volume, spec.orientation), None
    spacing_mm = scan.affine[:3, :3].norm(dim=0).tolist()
    if steps.needs_mask:
        inside = _oriented_mask(mask, scan, spec.orientation)
        if steps.crop_to_mask:
            scan, inside = _crop(scan, inside)
    voxels = _scaled(torch.as_tensor(scan).as_subclass(torch.Tensor).float(), spec)
    if inside is not None and steps.mask is MaskUse.MASK:
        voxels = torch.where(inside, voxels, spec.scale[0])
    if spec.crop is Crop.FOREGROUND:
        voxels = _foreground(voxels, spec.scale[0])
    if spec.kind is InputKind.SLICES:
        places = nearest_indices(voxels.shape[1], min(spec.slices, voxels.shape[1]))
        pictures = _fitted(voxels[0, places].unsqueeze(1), spec)  # (S, 1, H, W)
        return standardised(pictures.expand(-1, spec.channels, -1, -1), spec)
    voxels = _resized(voxels, spec, spacing_mm)
    return standardised(voxels.expand(spec.channels, -1, -1, -1).unsqueeze(0), spec)[0]


def foreground_steps(spec: InputSpec) -> VolumeSteps:
    """MedicalNet's steps, for a contract that asks for them."""
    size, window = spec.size, spec.window
    return VolumeSteps((size[0], size[1], size[2]), (window[0], window[1]) if window else None)


def pictures_of(tiles: Tensor, spec: InputSpec) -> Tensor:
    """``(N, 3, H, W)`` float32 of RGB tiles ``(N, h, w, 3)`` uint8."""
    return standardised(_fitted(tiles.permute(0, 3, 1, 2).float() / _BRIGHTEST, spec), spec)


def standardised(values: Tensor, spec: InputSpec) -> Tensor:
    """Subtract the mean of each channel and divide by its deviation; ``(N, C, …)``."""
    if spec.mean:
        shape = (1, -1, *[1] * (values.ndim - 2))
        mean, std = (values.new_tensor(each).view(shape) for each in (spec.mean, spec.std))
        values = (values - mean) / std
    return values.contiguous()


def _scaled(voxels: Tensor, spec: InputSpec) -> Tensor:
    """Intensities from the window, or the scan's own range, to the scale."""
    if not bool(voxels.isfinite().all()):
        raise ScanRefused(ScanReason.NON_FINITE_VOXELS)
    darkest, brightest = (float(value) for value in voxels.aminmax())
    if darkest == brightest:
        raise ScanRefused(ScanReason.CONSTANT_VOLUME)
    low, high = spec.window or (darkest, brightest)
    if not high - low < float("inf"):
        raise ScanRefused(ScanReason.OUTLYING_VOXELS)
    return (voxels.clamp(low, high) - low) / (high - low) * (spec.scale[1] - spec.scale[0]) + spec.scale[0]


def _foreground(voxels: Tensor, background: float) -> Tensor:
    """The bounding box of what is brighter than the background."""
    filled = voxels > background
    box = [slice(None)]
    for axis in (1, 2, 3):
        hits = filled.any(dim=[other for other in range(4) if other != axis]).nonzero().flatten()
        if len(hits) == 0:
            raise ScanRefused(ScanReason.EMPTY_VOLUME)
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return voxels[tuple(box)]


def _resized(voxels: Tensor, spec: InputSpec, spacing_mm: Sequence[float]) -> Tensor:
    """Resampled to the spacing, then cut or filled up around the middle; or resized."""
    shape = list(voxels.shape[1:])
    if spec.spacing_mm:
        steps = zip(shape, spacing_mm, spec.spacing_mm, strict=True)
        shape = [max(1, round(length * own / wanted)) for length, own, wanted in steps]
    elif spec.size:
        shape = list(spec.size)
    if shape != list(voxels.shape[1:]):
        voxels = functional.interpolate(voxels.unsqueeze(0), size=shape, mode="trilinear")[0]
    if spec.spacing_mm and spec.size:
        missing = [wanted - length for wanted, length in zip(spec.size, voxels.shape[1:], strict=True)]
        pads = [side for lack in reversed(missing) for side in (lack // 2, lack - lack // 2)]
        voxels = functional.pad(voxels, pads, value=spec.scale[0])  # negative ones cut
    return voxels


def _fitted(pictures: Tensor, spec: InputSpec) -> Tensor:
    """Pictures ``(N, C, h, w)`` in the rows and columns of the size, if there is one."""
    if not spec.size or tuple(pictures.shape[2:]) == spec.size:
        return pictures
    size = spec.size
    if spec.fit is Fit.CROP:
        factor = max(wanted / length for wanted, length in zip(spec.size, pictures.shape[2:], strict=True))
        lengths = zip(spec.size, pictures.shape[2:], strict=True)
        size = tuple(max(wanted, round(length * factor)) for wanted, length in lengths)
    mode = "bilinear" if spec.interpolation == "linear" else "bicubic"
    pictures = functional.interpolate(pictures, size=list(size), mode=mode, antialias=True)
    pictures = pictures.clamp(*spec.scale)  # cubic overshoots; Pillow, which the authors used, clips too
    top, left = ((length - wanted) // 2 for length, wanted in zip(size, spec.size, strict=True))
    return pictures[:, :, top : top + spec.size[0], left : left + spec.size[1]]
