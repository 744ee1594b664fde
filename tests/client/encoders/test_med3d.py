import pytest
import torch
from torch.nn import functional

from client.encoders.med3d import (
    CHANNELS,
    Med3D,
    Med3DEncoder,
    Variant,
    load_med3d,
    random_med3d,
    state_shapes,
)

NARROW = (4, 8, 16, 32)
STRIDES = {Variant.MEDICALNET: (1, 2, 1, 1), Variant.MONAI: (1, 2, 2, 2)}
DILATIONS = {Variant.MEDICALNET: (1, 1, 2, 4), Variant.MONAI: (1, 1, 1, 1)}


def drawn(channels=NARROW, seed=0):
    """Weights as of a trained network: nothing is 0 or 1, moments differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in state_shapes(channels).items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values *= (2 / (values[0].numel())) ** 0.5
        elif name.endswith("running_var"):
            values = values.square() + 0.5
        elif name.endswith("weight"):
            values = 1 + values / 4
        state[name] = values
    return state


def volumes(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network_with(state, variant=Variant.MEDICALNET, channels=NARROW):
    network = Med3D(variant, channels).eval()
    network.load_state_dict(state, strict=True)  # a state without counters counts as an old one
    return network


def reference(state, batch, variant):
    """The network from its description, on a state dict: no module, shortcut by pooling and padding."""

    def norm(maps, name):
        moments = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return functional.batch_norm(maps, *moments, state[f"{name}.weight"], state[f"{name}.bias"])

    stem = 2 if variant is Variant.MEDICALNET else 1
    maps = norm(functional.conv3d(batch, state["conv1.weight"], stride=stem, padding=3), "bn1").relu()
    maps = functional.max_pool3d(maps, 3, stride=2, padding=1)
    for layer in range(4):
        dilation = DILATIONS[variant][layer]
        for block in range(2):
            where = f"layer{layer + 1}.{block}"
            stride = STRIDES[variant][layer] if block == 0 else 1
            first = state[f"{where}.conv1.weight"]
            inner = functional.conv3d(maps, first, stride=stride, padding=dilation, dilation=dilation)
            inner = norm(inner, f"{where}.bn1").relu()
            inner = functional.conv3d(
                inner, state[f"{where}.conv2.weight"], padding=dilation, dilation=dilation
            )
            shortcut = functional.avg_pool3d(maps, kernel_size=1, stride=stride)
            zeros = shortcut.new_zeros(len(batch), first.shape[0] - first.shape[1], *shortcut.shape[2:])
            maps = (norm(inner, f"{where}.bn2") + torch.cat([shortcut, zeros], dim=1)).relu()
    return functional.adaptive_avg_pool3d(maps, 1).flatten(1)


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("shape", [(2, 1, 16, 24, 32), (1, 1, 9, 17, 23)], ids=["even", "odd"])
@torch.inference_mode()
def test_equals_the_description_bit_for_bit(variant, shape):
    state, batch = drawn(), volumes(*shape)
    assert torch.equal(network_with(state, variant)(batch), reference(state, batch, variant))


@torch.inference_mode()
def test_the_full_layout_equals_the_description_bit_for_bit():
    state, batch = drawn(CHANNELS), volumes(1, 1, 8, 24, 24)
    found = Med3DEncoder(load_med3d(state)).encode(batch)
    assert found.shape == (1, 512)
    assert torch.equal(found, reference(state, batch, Variant.MEDICALNET))


def monai_network(state, **options):
    from monai.networks.nets.resnet import ResNet

    network = ResNet(
        "basic",
        [2, 2, 2, 2],
        list(NARROW),
        n_input_channels=1,
        shortcut_type="A",
        feed_forward=False,
        **options,
    ).eval()
    network.load_state_dict(state, strict=True)
    return network


@torch.inference_mode()
def test_the_monai_variant_is_monais_network_bit_for_bit():
    state, batch = drawn(), volumes(1, 1, 16, 32, 32)
    assert torch.equal(network_with(state, Variant.MONAI)(batch), monai_network(state)(batch))


@torch.inference_mode()
def test_monais_network_with_the_published_strides_is_the_original_bit_for_bit():
    state, batch = drawn(), volumes(1, 1, 16, 32, 32)
    network = monai_network(state, conv1_t_stride=2)
    for layer, dilation in ((network.layer3, 2), (network.layer4, 4)):
        layer[0].downsample.keywords["stride"] = 1
        for conv in (module for module in layer.modules() if isinstance(module, torch.nn.Conv3d)):
            conv.stride, conv.dilation, conv.padding = (1,) * 3, (dilation,) * 3, (dilation,) * 3
    assert torch.equal(network_with(state)(batch), network(batch))


@torch.inference_mode()
def test_the_two_variants_are_different_networks():
    state, batch = drawn(), volumes(1, 1, 16, 32, 32)
    found = [network_with(state, variant)(batch) for variant in Variant]
    assert float(functional.cosine_similarity(*found)) < 0.999


def test_names_and_sizes_are_those_of_the_published_file():
    with torch.device("meta"):
        network = Med3D()
    state = network.state_dict()
    assert len(state) == 102
    assert (
        sum(value.numel() for value in network.parameters()) == 32_986_176
    )  # 131.9 MB, the size of the file
    assert [name for name in state if name.startswith("layer2.0.")] == [
        f"layer2.0.{part}"
        for n in (1, 2)
        for part in (
            f"conv{n}.weight",
            *(
                f"bn{n}.{name}"
                for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            ),
        )
    ]
    assert not [name for name in state if "downsample" in name or ("conv" in name and name.endswith("bias"))]
    shapes = state_shapes()
    assert len(shapes) == 102 - 17  # 17 counters of training
    assert shapes["conv1.weight"] == (64, 1, 7, 7, 7)
    assert shapes["layer4.0.conv1.weight"] == (512, 256, 3, 3, 3)


@torch.inference_mode()
def test_a_map_is_an_eighth_of_the_volume():
    network = network_with(drawn())
    network.pool = torch.nn.Identity()
    maps = network(volumes(1, 1, 56, 64, 64)).reshape(1, NARROW[-1], -1)
    assert maps.shape[2] == 7 * 8 * 8


@torch.inference_mode()
def test_a_batch_is_its_volumes_one_by_one():
    encoder = Med3DEncoder(network_with(drawn()))
    batch = volumes(3, 1, 16, 24, 24)
    singles = torch.cat([encoder.encode(volume[None]) for volume in batch])
    torch.testing.assert_close(encoder.encode(batch), singles, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    state, batch = drawn(CHANNELS), volumes(1, 1, 8, 16, 16)
    exact = Med3DEncoder(load_med3d(state)).encode(batch)
    fast = Med3DEncoder(load_med3d(state), autocast=torch.bfloat16).encode(batch)
    assert fast.dtype == torch.float32
    assert 0 < float((fast - exact).norm() / exact.norm()) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_is_near_the_processor(autocast):
    state, batch = drawn(CHANNELS), volumes(1, 1, 16, 64, 64)
    exact = Med3DEncoder(load_med3d(state)).encode(batch)
    found = Med3DEncoder(load_med3d(state), torch.device("cuda"), autocast).encode(batch.pin_memory())
    assert found.device.type == "cpu"
    assert float((found - exact).norm() / exact.norm()) < 0.01


def test_the_untrained_network_is_the_same_every_time():
    before = torch.random.get_rng_state()
    one, other = (random_med3d(channels=NARROW) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    encoder = Med3DEncoder(one)
    found = encoder.encode(torch.cat([volumes(1, 1, 16, 24, 24), torch.ones(1, 1, 16, 24, 24)]))
    assert bool(torch.isfinite(found).all())
    assert float((found[0] - found[1]).norm()) > 0.1


def test_the_network_is_frozen():
    network = load_med3d(drawn(CHANNELS))
    Med3DEncoder(network)
    assert not network.training
    assert not any(value.requires_grad for value in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_volume_of_full_size(autocast):
    found = Med3DEncoder(random_med3d(), autocast=autocast).encode(volumes(1, 1, 56, 448, 448))
    assert found.shape == (1, 512)
    assert bool(torch.isfinite(found).all())
