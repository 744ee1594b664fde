"""What an encoder embeds in a second, on the processor and on a GPU where there is one."""

import statistics
import time

import numpy as np
import pytest
import torch

from client.encoders import vgg11
from client.encoders.med3d import Med3DEncoder, random_med3d
from client.encoders.resnet50_wsi import ResNet50Wsi, TruncatedResNet50
from client.encoders.unimed_clip import B16, load_unimed_text
from tests.bench.printed import DEVICES, report
from tests.client.encoders.towers import drawn, write_local_files

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

VOLUME = (1, 56, 448, 448)
TYPES = pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])


def per_second(device, items, call):
    """Items a second: the median of runs, after one that warms up; an answer on the CPU ends a run."""
    assert np.isfinite(np.asarray(call())).all()
    spent = []
    for _ in range(10 if device == "cuda" else 3):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return items / statistics.median(spent)


def told(title, device, items, call):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rate = per_second(device, items, call)
    memory = {"gpu_peak_mb": torch.cuda.max_memory_allocated() >> 20} if device == "cuda" else {}
    report(f"{title}, {device}", per_s=f"{rate:.4g}", **memory)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 2, 8])
@TYPES
def test_volumes(device, batch, autocast):
    if device == "cpu" and batch > 1:
        pytest.skip("a processor has no use for more than one volume at a time")
    encoder = Med3DEncoder(random_med3d(), torch.device(device), autocast)
    volumes = torch.randn(batch, *VOLUME, generator=torch.Generator().manual_seed(0))
    volumes = volumes.pin_memory() if device == "cuda" else volumes
    told(f"Med3D, {autocast}, {batch} at a time, volumes", device, batch, lambda: encoder.encode(volumes))


@pytest.mark.parametrize("device", DEVICES)
@TYPES
def test_slices(device, autocast):
    network = vgg11.Vgg11Features()
    encoder = vgg11.Vgg11Encoder(network, torch.device(device), autocast)
    volumes = torch.rand(1, 1, 32, 224, 224, generator=torch.Generator().manual_seed(0))
    told(f"VGG11, {autocast}, volumes of 32 slices", device, 1, lambda: encoder.encode(volumes))


@pytest.mark.parametrize("device", DEVICES)
@TYPES
def test_tiles(device, autocast):
    encoder = ResNet50Wsi(TruncatedResNet50(), "", device=torch.device(device), autocast=autocast)
    count = 2048 if device == "cuda" else 64
    tiles = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), np.uint8)
    told(f"ResNet-50 of slides, {autocast}, tiles", device, count, lambda: encoder.encode(tiles))


@pytest.mark.parametrize("device", DEVICES)
def test_prompts(tmp_path, device):
    folder = write_local_files(tmp_path / "bert", B16)
    encoder = load_unimed_text(drawn(B16.state_shapes()), folder, B16, torch.device(device))
    prompt = " ".join(f"word{number}" for number in range(40))
    count = 512 if device == "cuda" else 16
    told("UniMed-CLIP text, prompts of 42 tokens", device, count, lambda: encoder.encode([prompt] * count))
