"""HyperMM's image encoder: slices through a frozen VGG11, then the maximum over the slices.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv:1409.1556,
configuration A, with torchvision's ImageNet weights; hyperMM at 7a05f31f keeps ``features`` and takes the
maximum of its 512 x 7 x 7 maps over a scan's slices.

::

    Volume ─► orient ─► organ ─► foreground ─► slices ─► window ─► strip ─► [0, 1] ─► (1, S, 224, 224)
                        box      box           evenly    CT only   outside            rows and columns
                                               over it             the mask           resized

Differs from the thesis (5.1.4, 5.2.3), which gives no number of slices:

- Slices lie evenly over the foreground instead of at random: a cached embedding must be deterministic.
- Volumes are not resampled to a common spacing: slices are cropped to the foreground and resized to 224 x 224
  anyway, so resampling would only blur them.
- Values are scaled to [0, 1] by the window if there is one, else by the range of the slices used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn
from torch.nn import functional

from client.encoders.preprocess import MaskUse, VolumeSteps, _crop, _orient, _oriented_mask, nearest_indices
from client.ingest.reasons import ScanReason, ScanRefused
from mmare.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from client.ingest.volume import Volume

__all__ = [
    "ARCHITECTURE",
    "WIDTH",
    "SliceSteps",
    "Vgg11Encoder",
    "Vgg11Features",
    "load_vgg11",
    "slices_of",
    "state_shapes",
]

ARCHITECTURE: Final = "hypermm-vgg11/1"  # raise the number when the features change
VERSION: Final = "slices/1"  # raise the number when any step changes the output
SIDE: Final = 224  # pixels of a slice: the maps are 7 x 7
WIDTH: Final = 512 * 7 * 7
SLICES: Final = 32  # default; a third of Med3D's operations per scan
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

_STAGES: Final = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # channels; each stage halves the map


@dataclass(frozen=True)
class SliceSteps(VolumeSteps):
    """As `VolumeSteps`, but ``size`` is the most slices, 224 rows and 224 columns; the crop comes first.

    Raises:
        DataError: If the study asks for other rows and columns.

    Example:
        >>> SliceSteps(window=(-79, 304)).fingerprint
        'slices/1:32x224x224:window=-79.0..304.0'
    """

    size: tuple[int, int, int] = (SLICES, SIDE, SIDE)

    def __post_init__(self) -> None:
        if self.size[1:] != (SIDE, SIDE):
            raise DataError(
                f"[[modality]] size is {list(self.size)}, "
                f"but encoder hypermm-vgg11 expects [slices, {SIDE}, {SIDE}]"
            )

    @property
    def fingerprint(self) -> str:
        """Version and parameters: equal if the steps are."""
        return ":".join([VERSION, *super().fingerprint.split(":")[1:]])


def slices_of(volume: Volume, steps: SliceSteps, mask: Volume | None = None) -> Tensor:
    """Run the steps; the mask is on the volume's grid, voxels above 0 are inside, and ignored if not needed.

    Returns:
        ``(1, S, 224, 224)`` float32 between 0 and 1, axial slices from foot to head; S is that of the steps,
        or less if the foreground has fewer slices.

    Raises:
        ScanRefused: If the volume or the mask cannot be used; with the reason.
    """
    scan = _orient(volume)  # (1, D, H, W) in the type of the file
    inside: Tensor | None = None
    if steps.needs_mask:
        inside = _oriented_mask(mask, scan)
        if steps.crop_to_mask:
            scan, inside = _crop(scan, inside)
    if steps.mask is not MaskUse.MASK:
        inside = None  # voxels outside stay
    lowest, highest = steps.window or (0.0, None)
    voxels = torch.as_tensor(scan).as_subclass(torch.Tensor)
    foreground = voxels > lowest
    box = _box(foreground if inside is None else foreground & inside, steps.size[0])
    picked = voxels[box].float()  # (1, S, h, w)
    if not bool(picked.isfinite().all()):
        raise ScanRefused(ScanReason.NON_FINITE_VOXELS)
    if highest is not None:
        picked = (picked.clamp(lowest, highest) - lowest) / (highest - lowest)
    if inside is not None:
        picked = torch.where(inside[box], picked, 0.0)
    darkest, brightest = picked.aminmax()
    if darkest == brightest:
        raise ScanRefused(ScanReason.CONSTANT_VOLUME)
    if highest is None:
        if not bool((brightest - darkest).isfinite()):
            raise ScanRefused(ScanReason.OUTLYING_VOXELS)
        picked = (picked - darkest) / (brightest - darkest)
    resized = functional.interpolate(
        picked.transpose(0, 1), size=(SIDE, SIDE), mode="bilinear", antialias=True
    )  # (S, 1, 224, 224)
    return resized.transpose(0, 1).contiguous()


def _box(foreground: Tensor, most_slices: int) -> tuple[slice, Tensor, slice, slice]:
    """Index of the slices used, cropped to the bounding box of ``foreground`` ``(1, D, H, W)``."""
    spans = []
    for axis in (1, 2, 3):
        others = [other for other in range(4) if other != axis]
        filled = foreground.any(dim=others).nonzero().flatten()
        if len(filled) == 0:
            raise ScanRefused(ScanReason.EMPTY_VOLUME)
        spans.append((int(filled[0]), int(filled[-1]) + 1))
    (bottom, top), rows, columns = spans
    places = bottom + nearest_indices(top - bottom, min(most_slices, top - bottom))
    return slice(None), places, slice(*rows), slice(*columns)


class Vgg11Features(nn.Module):
    """The convolutions of VGG11; parameter names are those of torchvision's file.

    Example:
        >>> network = Vgg11Features().eval()
        >>> network(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 512, 1, 1])
    """

    def __init__(self) -> None:
        super().__init__()
        n_in, layers = 3, list[nn.Module]()
        for stage in _STAGES:
            for n_out in stage:
                layers += [nn.Conv2d(n_in, n_out, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                n_in = n_out
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps ``(N, 512, H / 32, W / 32)`` of normalised images ``(N, 3, H, W)``."""
        return cast("Tensor", self.features(pictures))


class Vgg11Encoder:
    """The frozen network on a device.

    Args:
        network: With its weights; switched to evaluation mode here.
        device: CPU by default.
        autocast: Type of the convolutions; None for float32 throughout.
        batch_size: Slices per forward pass.
    """

    def __init__(
        self,
        network: Vgg11Features,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        batch_size: int = 16,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.autocast = autocast
        self._batch_size = batch_size
        network = network.eval().requires_grad_(requires_grad=False).to(self.device)
        self._network = network.to(memory_format=torch.channels_last)
        self._mean = torch.tensor(IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=self.device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def encode(self, volumes: Tensor) -> Tensor:
        """Embeddings ``(B, 25088)`` float32 on the CPU of ``(B, 1, S, 224, 224)`` float32 between 0 and 1.

        An embedding is the flattened map: channels, rows, columns.
        """
        return torch.stack([self._maximum(slices) for slices in volumes.transpose(1, 2)])

    def _maximum(self, slices: Tensor) -> Tensor:
        """Maximum ``(25088,)`` over slices ``(S, 1, 224, 224)``; the grey value fills all three channels."""
        parts = [self._maps(part).amax(dim=0) for part in torch.split(slices, self._batch_size)]
        return torch.stack(parts).amax(dim=0).flatten().cpu()

    def _maps(self, slices: Tensor) -> Tensor:
        """Maps ``(n, 512, 7, 7)`` float32."""
        pictures = (slices.to(self.device, non_blocking=True) - self._mean) / self._std  # (n, 3, 224, 224)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            found: Tensor = self._network(pictures)
        return found.float()


def load_vgg11(state: Mapping[str, Tensor]) -> Vgg11Features:
    """The network with weights that `client.encoders.weights` has checked and converted."""
    with torch.device("meta"):  # no initial values, so no global random draw
        network = Vgg11Features()
    network.load_state_dict(dict(state), strict=True, assign=True)
    return network


def state_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a weights file."""
    with torch.device("meta"):
        state = Vgg11Features().state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}
