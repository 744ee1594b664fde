"""Med3D: the dilated 3-D ResNet-18 of MedicalNet, then the mean over the last feature map.

Chen et al., "Med3D: Transfer Learning for 3D Medical Image Analysis", arXiv:1904.00625; Tencent/MedicalNet
at 20f76aaa, ``models/resnet.py``. Shortcuts are of type A, as published for ``resnet_18_23dataset``:
subsampled voxels and zero-filled channels, no parameters. The last two stages dilate instead of
downsampling.

Differs from the original: the shortcut is not detached from the gradient (irrelevant when frozen), and the
segmentation decoder is left out, as in the published file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["CHANNELS", "Med3D", "Med3DEncoder", "Variant", "load_med3d", "random_med3d", "state_shapes"]

ARCHITECTURE: Final = "med3d-resnet18/1"  # raise the number when the features change
RANDOM_SEED: Final = 0  # of the untrained network, equal at every site
CHANNELS: Final = (64, 128, 256, 512)  # of layer1 to layer4; the last is the width of the embedding
BLOCKS: Final = 2  # in every layer

_WIDEST_DILATED: Final = 256  # input channels up to which oneDNN's dilated AMX convolution is fast
_COUNTER: Final = "num_batches_tracked"  # used in training only


class Variant(StrEnum):
    """Two networks with the same parameters; the fingerprint says which one a study uses."""

    MEDICALNET = "medicalnet"  # the published weights were trained in it
    MONAI = "monai"  # the strides of monai.networks.nets.resnet18 by default


@dataclass(frozen=True)
class _Geometry:
    """Strides (stem, layer1 to layer4) and dilations."""

    stem_stride: int
    strides: tuple[int, int, int, int]
    dilations: tuple[int, int, int, int]


_GEOMETRY: Final = {
    Variant.MEDICALNET: _Geometry(2, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    Variant.MONAI: _Geometry(1, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)),
}


class _Conv(nn.Conv3d):
    """A 3 x 3 x 3 convolution without bias; stride 1 keeps the size."""

    def __init__(self, n_in: int, n_out: int, stride: int, dilation: int) -> None:
        super().__init__(
            n_in, n_out, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )

    def forward(self, maps: Tensor) -> Tensor:
        # With more channels, oneDNN's bfloat16 convolution for dilation 4 on CPUs with AMX (torch 2.15) is a
        # hundred times slower: 54 s instead of 3.4 s of CPU time per volume. Channels are summed in parts
        # there; in float32 never, so its bits are those of the original.
        whole = self.in_channels <= _WIDEST_DILATED or self.dilation[0] == 1
        if whole or maps.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(maps)
        parts = zip(
            torch.split(maps, _WIDEST_DILATED, dim=1),
            torch.split(self.weight, _WIDEST_DILATED, dim=1),
            strict=True,
        )
        sums = [functional.conv3d(m, w, None, self.stride, self.padding, self.dilation) for m, w in parts]
        return sum(sums[1:], start=sums[0])


class _Block(nn.Module):
    """Two convolutions around a type A shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _Conv(n_in, n_out, stride, dilation)
        self.bn1 = nn.BatchNorm3d(n_out)
        self.conv2 = _Conv(n_out, n_out, 1, dilation)
        self.bn2 = nn.BatchNorm3d(n_out)
        self._stride = stride
        self._n_added = n_out - n_in

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps[..., :: self._stride, :: self._stride, :: self._stride]
        inner = functional.relu(self.bn1(self.conv1(maps)), inplace=True)
        inner = self.bn2(self.conv2(inner))
        # The shortcut's added channels are zeros, so only the others need a sum.
        inner[:, : inner.shape[1] - self._n_added] += shortcut
        return functional.relu(inner, inplace=True)


class Med3D(nn.Module):
    """The network; parameter names are those of the published file.

    Example:
        >>> network = Med3D(channels=(4, 8, 8, 16)).eval()
        >>> network(torch.zeros(1, 1, 16, 32, 32)).shape
        torch.Size([1, 16])
    """

    def __init__(
        self, variant: Variant = Variant.MEDICALNET, channels: tuple[int, int, int, int] = CHANNELS
    ) -> None:
        super().__init__()
        geometry = _GEOMETRY[variant]
        self.conv1 = nn.Conv3d(
            1, channels[0], kernel_size=7, stride=geometry.stem_stride, padding=3, bias=False
        )
        self.bn1 = nn.BatchNorm3d(channels[0])
        self.maxpool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
        n_in, layers = channels[0], []
        for n_out, stride, dilation in zip(channels, geometry.strides, geometry.dilations, strict=True):
            rest = [_Block(n_out, n_out, 1, dilation) for _ in range(BLOCKS - 1)]
            layers.append(nn.Sequential(_Block(n_in, n_out, stride, dilation), *rest))
            n_in = n_out
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.pool = nn.AdaptiveAvgPool3d(1)

    def forward(self, volumes: Tensor) -> Tensor:
        """Features ``(B, C)`` of preprocessed volumes ``(B, 1, D, H, W)``, C the channels of layer4."""
        maps = self.maxpool(functional.relu(self.bn1(self.conv1(volumes)), inplace=True))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))  # (B, C, D / 8, H / 8, W / 8)
        return cast("Tensor", self.pool(maps.float())).flatten(1)  # mean in float32


class Med3DEncoder:
    """The frozen network on a device.

    Args:
        network: With its weights; switched to evaluation mode here.
        device: CPU by default.
        autocast: Type of the convolutions; None for float32 throughout.
    """

    def __init__(
        self, network: Med3D, device: torch.device | None = None, autocast: torch.dtype | None = None
    ) -> None:
        self.device = device or torch.device("cpu")
        self.autocast = autocast
        network = network.eval().requires_grad_(requires_grad=False).to(self.device)
        if autocast is not None:  # twice as fast in 16 bits, no gain in float32
            network = network.to(memory_format=torch.channels_last_3d)
        self._network = network

    @torch.inference_mode()
    def encode(self, volumes: Tensor) -> Tensor:
        """Embeddings ``(B, 512)`` float32 on the CPU of preprocessed volumes ``(B, 1, D, H, W)`` float32.

        The copy from pinned memory is asynchronous.
        """
        volumes = volumes.to(self.device, non_blocking=True)
        if self.autocast is not None:
            volumes = volumes.to(memory_format=torch.channels_last_3d)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            found: Tensor = self._network(volumes)
        return found.float().cpu()


def load_med3d(state: Mapping[str, Tensor], variant: Variant = Variant.MEDICALNET) -> Med3D:
    """The network with weights that `client.encoders.weights` has checked and converted."""
    with torch.device("meta"):  # no initial values, so no global random draw
        network = Med3D(variant)
    counters = {name: torch.zeros((), dtype=torch.int64) for name in network.state_dict() if _COUNTER in name}
    network.load_state_dict(counters | dict(state), strict=True, assign=True)
    return network


def random_med3d(
    variant: Variant = Variant.MEDICALNET, channels: tuple[int, int, int, int] = CHANNELS
) -> Med3D:
    """The untrained network (He et al. 2015), bit-identical every time: for demo and tests."""
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    with torch.device("meta"):
        network = Med3D(variant, channels)
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm3d):
            module.reset_parameters()  # scale 1, shift 0, moments of a standard normal
    return network


def state_shapes(channels: tuple[int, int, int, int] = CHANNELS) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a weights file, training counters left out."""
    with torch.device("meta"):
        state = Med3D(channels=channels).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if _COUNTER not in name}
