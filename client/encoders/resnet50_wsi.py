"""Whole slides: each tile through a ResNet50 truncated after its third stage, then the mean over the tiles.

The features that the MMIST authors extracted with CLAM (Lu et al., Nature Biomedical Engineering 5, 2021):
an ImageNet ResNet50 (He et al., 2016, with the stride in the 3 x 3 convolution, as in torchvision) up to
``layer3``, average pooling to 1024 numbers per tile, averaged over the patient's tiles.

Differs from CLAM in the choice of tiles only, see `client.ingest.slides.wsi`; tiles keep their full 256
pixels, as in its first release (later ones resize to 224). Nothing is normalised to length 1.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Final, cast

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmare.errors import InputError

__all__ = ["ARCHITECTURE", "WIDTH", "ResNet50Wsi", "TruncatedResNet50", "load_resnet50_wsi", "state_shapes"]

WIDTH: Final = 1024
ARCHITECTURE: Final = "resnet50-wsi/1"  # raise the number when the features change
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

_STAGES: Final = ((64, 3, 1), (128, 4, 2), (256, 6, 2))  # channels, blocks, stride of layer1 to layer3
_EXPANSION: Final = 4
_CUT_OFF: Final = ("layer4.", "fc.")  # prefixes that only a whole ResNet50 has
_COUNTER: Final = "num_batches_tracked"  # used in training only; older files lack it
_BRIGHTEST: Final = 255.0


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution around a shortcut; names as in torchvision's files."""

    def __init__(self, n_in: int, channels: int, stride: int) -> None:
        super().__init__()
        n_out = channels * _EXPANSION
        self.conv1 = nn.Conv2d(n_in, channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, n_out, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            shrink = nn.Conv2d(n_in, n_out, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shrink, nn.BatchNorm2d(n_out))

    def forward(self, maps: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(maps)))
        inner = torch.relu(self.bn2(self.conv2(inner)))
        return torch.relu(self.bn3(self.conv3(inner)) + self.downsample(maps))


class TruncatedResNet50(nn.Module):
    """ResNet50 up to ``layer3``, averaged over the map; parameter names are torchvision's.

    Example:
        >>> network = TruncatedResNet50().eval()
        >>> network(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1024])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        n_in, stages = 64, []
        for channels, n_blocks, stride in _STAGES:
            blocks = [_Bottleneck(n_in, channels, stride)]
            n_in = channels * _EXPANSION
            blocks += [_Bottleneck(n_in, channels, 1) for _ in range(n_blocks - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features ``(N, 1024)`` of normalised images ``(N, 3, H, W)``."""
        maps = self.maxpool(torch.relu(self.bn1(self.conv1(pictures))))
        maps = self.layer3(self.layer2(self.layer1(maps)))  # (N, 1024, H / 16, W / 16)
        return cast("Tensor", self.pool(maps)).flatten(1)


class ResNet50Wsi:
    """The frozen network on a device.

    Args:
        network: With its weights; switched to evaluation mode here.
        sha256: Of the weights file, hexadecimal.
        device: CPU by default.
        autocast: Type of the convolutions; None for float32 throughout.
        batch_size: Tiles per forward pass.
    """

    def __init__(
        self,
        network: TruncatedResNet50,
        sha256: str,
        *,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        batch_size: int = 32,
    ) -> None:
        self.sha256 = sha256
        self._device = device or torch.device("cpu")
        network = network.eval().requires_grad_(requires_grad=False).to(self._device)
        self._network = network.to(memory_format=torch.channels_last)  # twice as fast on CPUs
        self._autocast = autocast
        self._batch_size = batch_size
        self._mean = torch.tensor(IMAGENET_MEAN, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=self._device).view(1, 3, 1, 1)

    def fingerprint(self, tiling: str) -> str:
        """Identity of architecture, tiling (its fingerprint) and weights: equal at all sites."""
        return f"{ARCHITECTURE}+{tiling}+sha256:{self.sha256}"

    def features(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features ``(N, 1024)`` of RGB tiles ``(N, H, W, 3)``, N at least 1."""
        starts = range(0, len(tiles), self._batch_size)
        parts = [self._forward(torch.tensor(tiles[start : start + self._batch_size])) for start in starts]
        found: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return found

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embedding ``(1024,)`` of a slide: the mean over its tiles ``(N, H, W, 3)``, N at least 1."""
        mean = self.features(tiles).mean(axis=0, dtype=np.float64)
        return np.asarray(mean, np.float32)

    @torch.inference_mode()
    def _forward(self, tiles: Tensor) -> Tensor:
        if self._device.type == "cuda":
            tiles = tiles.pin_memory().to(self._device, non_blocking=True)
        pictures = tiles.permute(0, 3, 1, 2).float() / _BRIGHTEST  # (b, 3, H, W), channels last in memory
        pictures = (pictures - self._mean) / self._std
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            found: Tensor = self._network(pictures)
        return found.float()  # (b, 1024)


def state_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a weights file, training counters left out."""
    with torch.device("meta"):
        network = TruncatedResNet50()
    return {name: tuple(value.shape) for name, value in network.state_dict().items() if _COUNTER not in name}


def load_resnet50_wsi(
    path: Path,
    *,
    device: torch.device | None = None,
    autocast: torch.dtype | None = None,
    batch_size: int = 32,
) -> ResNet50Wsi:
    """Read the weights of a ResNet50, whole or cut after ``layer3``; nothing is ever downloaded.

    ``path`` is a state dict with torchvision's names: ``.safetensors``, or a ``.pth`` loaded as weights only.

    Raises:
        InputError: If the file cannot be read or holds anything else; the message holds no path.
    """
    try:
        content = path.read_bytes()  # read once: what is hashed is what is loaded
    except OSError as error:
        raise InputError(f"the ResNet50 weights cannot be read: {error.strerror}") from error
    with torch.device("meta"):  # no initial values, so no global random draw
        network = TruncatedResNet50()
    weights = _checked(_state_dict(content, path.suffix), network.state_dict())
    network.load_state_dict(weights, strict=True, assign=True)
    sha256 = hashlib.sha256(content).hexdigest()
    return ResNet50Wsi(network, sha256, device=device, autocast=autocast, batch_size=batch_size)


def _state_dict(content: bytes, suffix: str) -> dict[str, Tensor]:
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load(content)
        found = torch.load(  # noqa: TID251  torchvision publishes .pth; weights only, so nothing runs
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
    except Exception as error:  # torch.load raises almost anything on a damaged file
        raise InputError("the ResNet50 weights file is damaged or is no state dict") from error
    plain = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    )
    if not plain:
        raise InputError("the ResNet50 weights file is no plain state dict")
    return cast("dict[str, Tensor]", found)


def _checked(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The truncated part of a state dict: complete, of the right shapes and finite."""
    kept = {name: value for name, value in found.items() if not name.startswith(_CUT_OFF)}
    counters = {
        name: torch.zeros_like(value, device="cpu") for name, value in expected.items() if _COUNTER in name
    }
    kept = counters | kept
    if wrong := sorted(set(kept) ^ set(expected)):
        raise InputError(
            f"the ResNet50 weights are of another network: {len(wrong)} names are missing or unknown, "
            f"the first is {wrong[0]!r}"
        )
    for name, value in kept.items():
        wanted = expected[name]
        if value.shape != wanted.shape or value.is_floating_point() != wanted.is_floating_point():
            raise InputError(
                f"the ResNet50 weights are of another network: {name!r} is {wanted.dtype} "
                f"{tuple(wanted.shape)}, found {value.dtype} {tuple(value.shape)}"
            )
        if not torch.isfinite(value).all():
            raise InputError(f"the ResNet50 weights hold NaN or infinity in {name!r}")
    return {name: value.to(expected[name].dtype) for name, value in kept.items()}
