"""What every encoder keeps, built in or from a file."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from client.encoders import hashing_text, med3d, resnet50_wsi, vgg11
from client.encoders.files.folder import open_folder
from client.encoders.files.probe import opened
from client.encoders.registry import _Slides
from client.encoders.unimed_clip import load_unimed_text
from tests.client.encoders.files.conftest import sealed  # noqa: F401 - a fixture
from tests.client.encoders.files.folders import DRAFTS
from tests.client.encoders.towers import NARROW, drawn, write_local_files

CPU = torch.device("cpu")
TEXTS = ["the patient is a male.", "a tumor.", "the patient is a male. a tumor, is a tumor."]


def texts(_seed):
    return TEXTS


def volumes(*shape):
    return lambda seed: torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def tiles(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 5, 64, 64, 3), dtype=torch.uint8, generator=generator)


def slices(seed):
    return torch.rand(1, 5, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


class Hashing:
    def encode(self, given):
        return hashing_text.encode_texts(given, 64)


def resnet50(folder):
    state = drawn(resnet50_wsi.state_shapes())
    kernels = {name: value / value.shape[2] for name, value in state.items() if value.ndim == 4}
    moments = {name: torch.full_like(value, 9.0) for name, value in state.items() if "running_var" in name}
    save_file(
        state | kernels | moments, folder / "resnet50.safetensors"
    )  # values that stay small over 40 layers
    return _Slides(resnet50_wsi.load_resnet50_wsi(folder / "resnet50.safetensors"))


def unimed(folder):
    return load_unimed_text(drawn(NARROW.state_shapes()), write_local_files(folder), NARROW)


NARROW_3D = (4, 4, 8, 8)
BUILT_IN = {  # the four of the registry, and hashed words: how it is opened, what it takes, width
    "med3d": (lambda _: med3d.Med3DEncoder(med3d.random_med3d(channels=NARROW_3D)), volumes(1, 8, 16, 16), 8),
    "resnet50": (resnet50, tiles, 1024),
    "vgg11": (
        lambda _: vgg11.Vgg11Encoder(vgg11.load_vgg11(drawn(vgg11.state_shapes()))),
        lambda seed: torch.rand(1, 1, 2, 224, 224, generator=torch.Generator().manual_seed(seed)),
        vgg11.WIDTH,
    ),
    "unimed": (unimed, texts, NARROW.width),
    "hashing": (lambda _: Hashing(), texts, 64),
}
TAKES = {
    "volume": volumes(1, 12, 16, 16),
    "slices": slices,
    "tiles": tiles,
    "text": texts,
}


QUICK = (
    "med3d",
    "unimed",
    "hashing",
    "onnx_volume",
    "onnx_tiles",
    "transformers_text",
    "torch_export_volume",
)
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in (*BUILT_IN, *DRAFTS)]


@pytest.fixture(params=EVERY)
def encoder(request, sealed, tmp_path_factory):  # noqa: F811 - the fixture
    """Two encoders opened one after the other, what they take, their width."""
    if request.param in BUILT_IN:
        make, given, width = BUILT_IN[request.param]
        folder = tmp_path_factory.mktemp("tower")
        return [make(folder), make(folder)], given, width
    folder = open_folder(sealed(request.param))
    contract = folder.contract
    return [opened(folder, CPU), opened(folder, CPU)], TAKES[contract.input.kind], contract.output.width


def state():
    return hashlib.sha256(torch.random.get_rng_state().numpy().tobytes()).hexdigest()


def test_an_encoder_gives_the_same_finite_vectors_alone_and_among_others(encoder):
    (one, other), given, width = encoder
    inputs, before = given(0), state()
    found = torch.as_tensor(one.encode(inputs))
    assert found.shape == (len(inputs), width)
    assert found.dtype is torch.float32
    assert found.device == CPU
    assert bool(found.isfinite().all())
    assert torch.equal(found, torch.as_tensor(other.encode(inputs)))  # opened again, the same bits
    assert state() == before  # no draw from a state that others use
    alone = torch.cat([torch.as_tensor(one.encode(inputs[row : row + 1])) for row in range(len(inputs))])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
    if isinstance(inputs, torch.Tensor):
        assert not torch.equal(found, torch.as_tensor(one.encode(given(1))))
    else:
        assert not torch.equal(found[0], found[1])
