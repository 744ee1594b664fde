"""The truncated ResNet50 against torchvision's, its weights files and its mean over tiles."""

import copy
import hashlib
import io

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.functional import adaptive_avg_pool2d

from client.encoders.resnet50_wsi import WIDTH, ResNet50Wsi, TruncatedResNet50, load_resnet50_wsi
from client.ingest.slides.tissue import Tiling
from client.ingest.slides.wsi import tiles_of
from mmare.errors import InputError
from tests.data_folder import data_folder

SIDE = 32


@pytest.fixture(scope="module")
def reference():
    """Torchvision's whole network; batch statistics as far from their start as a trained one's."""
    import torchvision

    network = torchvision.models.resnet50(weights=None).eval()
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if "running" in name or "bn" in name:
                value.copy_(0.5 + torch.rand(value.shape, generator=source))
            elif value.ndim > 1:
                fan_in = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=source) / fan_in**0.5)
    return network


@pytest.fixture(scope="module")
def weights(reference):
    return reference.state_dict()


@pytest.fixture(scope="module")
def weights_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def encoder(weights_file):
    return load_resnet50_wsi(weights_file)


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(2).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)


def hooked(network, pictures):
    """What `layer3` of the whole network gives, pooled."""
    caught = []
    handle = network.layer3.register_forward_hook(lambda _module, _given, found: caught.append(found))
    with torch.inference_mode():
        network(pictures)
    handle.remove()
    return adaptive_avg_pool2d(caught[0], 1).flatten(1)


def truncated(weights):
    return {name: value for name, value in weights.items() if not name.startswith(("layer4.", "fc."))}


def save(path, weights):
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def test_network_equals_torchvision_up_to_layer3_bit_for_bit(reference, weights):
    network = TruncatedResNet50()
    network.load_state_dict(truncated(weights), strict=True)
    pictures = torch.randn(3, 3, 96, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = network.eval()(pictures)
    expected = hooked(reference, pictures)
    assert found.shape == (3, WIDTH)
    assert expected.std() > 0.01
    assert torch.equal(found, expected)


def test_features_equal_torchvision_after_its_own_normalisation_bit_for_bit(reference, encoder, tiles):
    import torchvision

    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pictures = torch.stack([normalise(torchvision.transforms.functional.to_tensor(tile)) for tile in tiles])
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    expected = hooked(copy.deepcopy(reference).to(memory_format=torch.channels_last), pictures)
    np.testing.assert_array_equal(encoder.features(tiles), expected.numpy())


def test_embedding_is_the_mean_over_tiles_whatever_the_batch(weights_file, encoder, tiles):
    embedding = encoder.encode(tiles)
    assert (embedding.shape, embedding.dtype) == ((WIDTH,), np.float32)
    one_by_one = [encoder.features(tile[None])[0].astype(np.float64) for tile in tiles]
    np.testing.assert_allclose(embedding, np.mean(one_by_one, axis=0), rtol=1e-5, atol=1e-6)
    by_two = load_resnet50_wsi(weights_file, batch_size=2)
    np.testing.assert_allclose(by_two.encode(tiles), embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(tiles[::-1].copy()), embedding, rtol=1e-5, atol=1e-6)


def test_same_tiles_give_the_same_bits_and_tiles_may_be_read_only(encoder, tiles):
    locked = tiles.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(encoder.encode(locked), encoder.encode(tiles))


@pytest.mark.slow
def test_bfloat16_stays_near(weights_file, encoder, tiles):
    rough = load_resnet50_wsi(weights_file, autocast=torch.bfloat16).encode(tiles)
    exact = encoder.encode(tiles)
    assert rough.dtype == np.float32
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.02


def test_network_is_frozen(encoder, tiles):
    before = {name: value.clone() for name, value in encoder._network.state_dict().items()}
    encoder.encode(tiles)
    assert not any(value.requires_grad for value in encoder._network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder._network.state_dict().items())


def test_no_download_and_no_global_randomness(monkeypatch, weights_file, tiles):
    def refuse(*_args: object, **_options: object):
        raise AssertionError("downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    before = torch.get_rng_state()
    load_resnet50_wsi(weights_file).encode(tiles[:1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("suffix", "whole"), [(".pth", True), (".pth", False), (".safetensors", True), (".safetensors", False)]
)
@pytest.mark.slow
def test_both_kinds_of_file_whole_or_cut_give_the_same_bits(tmp_path, weights, encoder, tiles, suffix, whole):
    path = save(tmp_path / f"w{suffix}", weights if whole else truncated(weights))
    loaded = load_resnet50_wsi(path)
    np.testing.assert_array_equal(loaded.encode(tiles), encoder.encode(tiles))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_old_file_without_training_counters_loads(tmp_path, weights, encoder, tiles):
    """As torchvision's first release of the weights: other container, no `num_batches_tracked`."""
    old = {name: value for name, value in truncated(weights).items() if "num_batches" not in name}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(
        load_resnet50_wsi(tmp_path / "old.pth").encode(tiles), encoder.encode(tiles)
    )


def test_half_precision_file_runs_in_float32(tmp_path, weights, encoder, tiles):
    halves = {name: v.half() if v.is_floating_point() else v for name, v in truncated(weights).items()}
    found = load_resnet50_wsi(save(tmp_path / "half.safetensors", halves)).encode(tiles)
    exact = encoder.encode(tiles)
    assert 0 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.01


def test_fingerprint_names_architecture_tiles_and_weights(encoder):
    found = encoder.fingerprint(Tiling().fingerprint)
    assert found == f"resnet50-wsi/1+{Tiling().fingerprint}+sha256:{encoder.sha256}"
    assert encoder.fingerprint(Tiling(um_px=1.0).fingerprint) != found
    assert ResNet50Wsi(TruncatedResNet50(), "0" * 64).fingerprint(Tiling().fingerprint) != found


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(lambda w: without(w, "layer3.5.bn3.weight"), "layer3.5.bn3.weight", id="missing"),
        pytest.param(lambda w: w | {"layer5.weight": torch.ones(1)}, "layer5.weight", id="unknown"),
        pytest.param(lambda w: {f"module.{name}": value for name, value in w.items()}, "names", id="prefix"),
        pytest.param(lambda w: w | {"conv1.weight": torch.ones(64, 1, 7, 7)}, r"\(64, 1, 7, 7\)", id="shape"),
        pytest.param(lambda w: w | {"bn1.bias": torch.ones(64, dtype=torch.int8)}, "int8", id="type"),
        pytest.param(lambda w: w | {"bn1.bias": torch.full((64,), torch.nan)}, "NaN", id="nan"),
        pytest.param(lambda w: {"state_dict": w}, "no plain state dict", id="nested"),
        pytest.param(lambda w: list(w.values())[:2], "no plain state dict", id="list"),
        pytest.param(lambda _: {}, "names are missing", id="nothing"),
    ],
)
def test_wrong_weights_are_refused_in_one_line(tmp_path, weights, change, told):
    flat = {name: value.new_ones(()).expand(value.shape) for name, value in truncated(weights).items()}
    torch.save(change(flat), tmp_path / "secret.pth")  # a few bytes a tensor
    with pytest.raises(InputError, match=told) as refused:
        load_resnet50_wsi(tmp_path / "secret.pth")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_file_that_would_run_code_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(InputError, match="damaged or is no state dict"):
        load_resnet50_wsi(tmp_path / "module.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_file_is_refused(tmp_path, suffix):
    small = {"a": torch.ones(4)}
    stream = io.BytesIO()
    torch.save(small, stream)
    content = stream.getvalue() if suffix == ".pth" else safetensors.torch.save(small)
    for number, damaged in enumerate((b"", b"no weights", content[: len(content) // 2])):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            load_resnet50_wsi(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_resnet50_wsi(tmp_path / f"none{suffix}")


@pytest.mark.slow
@pytest.mark.data
def test_real_slide_becomes_one_embedding(encoder):
    slide = tiles_of(
        data_folder("wsi") / "cmu-1-small-region.svs", tiling=Tiling(most_tiles=4, fewest_tiles=1)
    )
    embedding = encoder.encode(slide.pixels)
    assert embedding.shape == (WIDTH,)
    assert np.isfinite(embedding).all()
    assert embedding.std() > 0


@pytest.mark.gpu
def test_gpu_agrees_with_the_processor(weights_file, encoder, tiles):
    on_gpu = load_resnet50_wsi(weights_file, device=torch.device("cuda"))
    np.testing.assert_allclose(on_gpu.encode(tiles), encoder.encode(tiles), rtol=1e-2, atol=1e-3)  # TF32
