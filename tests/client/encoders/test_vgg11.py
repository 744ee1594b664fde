"""HyperMM's slices and VGG11 against torchvision's network, from the published file to the cache."""

from functools import lru_cache

import nibabel as nib
import numpy as np
import pytest
import torch

from client.data.dataset import load_data
from client.data.embed import embed_site
from client.encoders import vgg11
from client.encoders.preprocess import MaskUse, VolumeSteps
from client.encoders.registry import ENCODERS, EncoderSource, fingerprint
from client.encoders.vgg11 import SliceSteps, Vgg11Encoder, Vgg11Features, load_vgg11, slices_of, state_shapes
from client.encoders.weights import import_weights, load_weights
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.volume import Volume
from mmare.errors import DataError, InputError
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec
from mmare.study.study import Study
from sites.config import load_site

NAME = "hypermm-vgg11"
RAS_MM = np.diag([1.0, 2.0, 3.0, 1.0])  # axes run to the right, the front and the head
STEPS = SliceSteps(size=(2, 224, 224))


@lru_cache
def published():
    """A whole VGG11 as torchvision publishes it, with small last layers, which no test reads."""
    import torchvision

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        names = {name: tuple(value.shape) for name, value in torchvision.models.vgg11().state_dict().items()}
    source = torch.Generator().manual_seed(3)
    return {
        name: torch.zeros(2)
        if name.startswith("classifier.")
        else torch.randn(shape, generator=source) * (2 / max(1, int(np.prod(shape[1:])))) ** 0.5
        for name, shape in names.items()
    }


@lru_cache
def reference():
    """Torchvision's own layers with those weights."""
    import torchvision

    with torch.device("meta"):
        network = torchvision.models.vgg11().features
    own = {key.removeprefix("features."): value for key, value in published().items() if "features" in key}
    network.load_state_dict(own, strict=True, assign=True)
    return network.eval()


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(published(), folder / "vgg11-8a719046.pth")
    import_weights(folder / "vgg11-8a719046.pth", folder)
    return folder


@pytest.fixture(scope="module")
def encoder(imported):
    return ENCODERS[NAME].open_volume(EncoderSource(weights=imported))


def head(shape=(9, 10, 12), seed=0):
    """Random brightness inside a background of 0: foreground from 2 to 7, 1 to 9 and 3 to 10."""
    voxels = np.zeros(shape, np.float32)
    voxels[2:7, 1:9, 3:10] = np.random.default_rng(seed).uniform(1, 200, (5, 8, 7))
    return voxels


def straightforward(voxels):
    """Slices in a loop, each through torchvision's resize, normalisation and layers; then their maximum."""
    import torchvision

    box = voxels[2:7, 1:9, 3:10].transpose(2, 1, 0)[[0, 6]]  # head-foot, front-back, right-left
    box = (box - box.min()) / (box.max() - box.min())
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    maps = []
    for picture in torch.from_numpy(box.copy()):
        grey = torchvision.transforms.functional.resize(picture[None], [224, 224], antialias=True)
        with torch.inference_mode():
            maps.append(reference()(normalise(grey.expand(3, -1, -1))[None])[0])
    return torch.stack(maps).amax(dim=0)  # (512, 7, 7)


@pytest.mark.slow
def test_embedding_equals_the_straightforward_computation(encoder):
    volume = Volume(head(), RAS_MM)
    found = encoder.encode(slices_of(volume, STEPS)[None])
    expected = straightforward(head())
    assert (found.shape, found.dtype) == ((1, 25088), torch.float32)
    assert expected.std() > 0.01
    torch.testing.assert_close(found[0].unflatten(0, (512, 7, 7)), expected, rtol=1e-4, atol=1e-4)


def test_batches_of_slices_and_their_order_change_nothing(imported, encoder):
    pictures = torch.rand(
        2, 1, 3, 64, 32, generator=torch.Generator().manual_seed(0)
    )  # any size goes through
    by_two = Vgg11Encoder(load_vgg11(load_weights(imported, NAME)), batch_size=2)
    whole = encoder.encode(pictures)
    assert whole.shape == (2, 512 * 2 * 1)
    torch.testing.assert_close(by_two.encode(pictures), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_two.encode(pictures.flip(2)), whole, rtol=1e-4, atol=1e-4)
    one_by_one = torch.stack([encoder.encode(pictures[:, :, [place]]) for place in range(3)]).amax(dim=0)
    torch.testing.assert_close(one_by_one, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_stays_near(imported, encoder):
    pictures = slices_of(Volume(head(), RAS_MM), STEPS)[None][..., ::4, ::4]
    source = EncoderSource(weights=imported, autocast=torch.bfloat16)
    rough, exact = ENCODERS[NAME].open_volume(source).encode(pictures), encoder.encode(pictures)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.03


def test_the_network_is_frozen_and_no_random_state_is_touched(imported):
    before = torch.random.get_rng_state()
    network = load_vgg11(load_weights(imported, NAME))
    Vgg11Encoder(network).encode(torch.rand(1, 1, 2, 32, 32, generator=torch.Generator()))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(value.requires_grad for value in network.parameters())
    assert sum(value.numel() for value in network.parameters()) == 9_220_480


def test_the_slices_do_not_depend_on_how_the_file_turns_its_axes():
    expected = slices_of(Volume(head(), RAS_MM), STEPS)
    image = nib.Nifti1Image(head(), RAS_MM)
    for codes in (("L", "P", "S"), ("S", "A", "R"), ("P", "I", "L")):
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(RAS_MM), nib.orientations.axcodes2ornt(codes)
        )
        turned = image.as_reoriented(turn)
        volume = Volume(np.ascontiguousarray(turned.get_fdata(dtype=np.float32)), turned.affine)
        assert torch.equal(slices_of(volume, STEPS), expected), codes


def test_slices_lie_evenly_over_the_foreground_from_end_to_end():
    voxels = np.zeros((4, 4, 60), np.float32)
    voxels[:, :, 10:51] = np.arange(1, 42)  # every slice has one value
    found = slices_of(Volume(voxels, RAS_MM), SliceSteps(size=(5, 224, 224)))
    assert found.shape == (1, 5, 224, 224)
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))


def test_fewer_slices_than_wanted_are_each_taken_once():
    assert slices_of(Volume(head(), RAS_MM), SliceSteps()).shape == (1, 7, 224, 224)


def test_fine_detail_is_averaged_when_a_slice_shrinks():
    """A third of the side: each pixel is a mean of about nine, not one of them."""
    noise = np.random.default_rng(0).uniform(1, 2, (672, 672, 1)).astype(np.float32)
    found = slices_of(Volume(noise, RAS_MM), SliceSteps())
    assert found.mean().item() == pytest.approx(0.5, abs=0.01)
    assert found.std().item() < 0.5 * (1 / 12) ** 0.5  # of a uniform number


def test_values_are_between_0_and_1_whatever_the_unit():
    found = slices_of(Volume(head(), RAS_MM), STEPS)
    other = slices_of(Volume(head() * 40, RAS_MM), STEPS)
    torch.testing.assert_close(found, other)
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_window_cuts_and_its_ends_are_0_and_1():
    voxels = np.full((4, 4, 3), -1000, np.int16)
    voxels[:, :, 1] = 112
    voxels[0, :, 2] = 2000
    found = slices_of(Volume(voxels, RAS_MM), SliceSteps(size=(9, 224, 224), window=(-79, 304)))
    assert found.shape == (1, 2, 224, 224)  # air is no foreground
    assert found[0, 0].unique().tolist() == pytest.approx([(112 + 79) / 383])
    assert found[0, 1].aminmax() == (0.0, 1.0)


def organ(shape=(9, 10, 12)):
    inside = np.zeros(shape, np.int16)
    inside[3:6, 4:8, 5:8] = 1
    inside[3, 4, 5] = 0  # the box is not the organ
    return Volume(inside, RAS_MM)


def test_a_mask_strips_and_a_box_cuts():
    voxels, volume = head(), Volume(head(), RAS_MM)
    outside = organ().voxels == 0
    stripped = np.where(outside, np.float32(0), voxels)
    strip, cut = (SliceSteps(STEPS.size, None, *use) for use in ((MaskUse.MASK,), (MaskUse.NONE, True)))
    assert torch.equal(slices_of(volume, strip, organ()), slices_of(Volume(stripped, RAS_MM), STEPS))
    box = Volume(np.ascontiguousarray(voxels[3:6, 4:8, 5:8]), RAS_MM)
    assert torch.equal(slices_of(volume, cut, organ()), slices_of(box, STEPS))
    with pytest.raises(ScanRefused, match="needs a mask"):
        slices_of(volume, strip)


@pytest.mark.parametrize(
    ("voxels", "steps", "reason"),
    [
        (np.zeros((3, 3, 3), np.int16), STEPS, ScanReason.EMPTY_VOLUME),
        (np.full((3, 3, 3), 7, np.int16), STEPS, ScanReason.CONSTANT_VOLUME),
        (np.full((3, 3, 3), np.inf, np.float32), STEPS, ScanReason.NON_FINITE_VOXELS),
        (np.float32([[[3e38]], [[-3e38]], [[3e38]]]), STEPS, ScanReason.OUTLYING_VOXELS),
        (np.full((3, 3, 3), 9, np.int16), SliceSteps(window=(50, 60)), ScanReason.EMPTY_VOLUME),
    ],
    ids=["empty", "constant", "infinite", "outlying", "below the window"],
)
def test_volumes_without_contrast_are_refused_with_the_reason(voxels, steps, reason):
    with pytest.raises(ScanRefused) as refused:
        slices_of(Volume(voxels, RAS_MM), steps)
    assert refused.value.reason is reason


def test_the_fingerprint_tells_slices_steps_and_weights(imported):
    source = EncoderSource(weights=imported)
    marks = [
        fingerprint(NAME, source, steps.fingerprint)
        for steps in (SliceSteps(), STEPS, SliceSteps(window=(-79, 304)), SliceSteps(mask=MaskUse.MASK))
    ]
    assert len(set(marks)) == 4
    assert marks[0].startswith("hypermm-vgg11/1+slices/1:32x224x224+sha256:")
    assert VolumeSteps(size=SliceSteps.size).fingerprint != SliceSteps().fingerprint


def test_another_side_is_one_sentence():
    with pytest.raises(DataError, match=r"size is \[56, 448, 448\], .* expects \[slices, 224, 224\]"):
        SliceSteps(size=(56, 448, 448))


def test_the_published_file_is_recognised_and_its_last_layers_left_out(imported):
    found = load_weights(imported, NAME)
    assert found.keys() == state_shapes().keys() == {name for name in published() if "features" in name}
    assert all(torch.equal(value, published()[name]) for name, value in found.items())


def vgg13(state):
    """Torchvision's configuration B has two layers more, so other numbers."""
    import torchvision

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in torchvision.models.vgg13().state_dict().items()}
    return {name: torch.zeros(shape) for name, shape in shapes.items() if name.startswith("features.")} | {
        name: value for name, value in state.items() if name.startswith("classifier.")
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(lambda w: {k: w[k] for k in w if k != "features.18.bias"}, "lacks 1 tensor", id="lacks"),
        pytest.param(
            lambda w: w | {"features.0.weight": torch.zeros(64, 1, 3, 3)}, r"\(64, 1, 3, 3\)", id="shape"
        ),
        pytest.param(vgg13, r"lacks .*features\.", id="vgg13"),
        pytest.param(lambda w: w | {"features.0.bias": torch.full((64,), torch.nan)}, "NaN", id="nan"),
    ],
)
def test_a_wrong_checkpoint_is_one_sentence(tmp_path, change, told):
    torch.save(change(dict(published())), tmp_path / "vgg.pth")
    with pytest.raises(InputError, match=told) as refused:
        import_weights(tmp_path / "vgg.pth", tmp_path / "weights")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "weights" / f"{NAME}.safetensors").exists()


def test_missing_weights_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="import the weights first"):
        fingerprint(NAME, EncoderSource(weights=tmp_path))


def a_site(folder, weights, scans):
    """A site of one patient per scan, with the weights that were imported before."""
    for number, voxels in enumerate(scans):
        nib.save(nib.Nifti1Image(voxels, RAS_MM), folder / f"{number}.nii")
    rows = [f"p{number},a,train,{number}.nii" for number in range(len(scans))]
    (folder / "patients.csv").write_text("\n".join(["patient_id,label,split,scan", *rows]) + "\n")
    (folder / "site.toml").write_text(
        '[site]\nid = "elm"\n[data]\nmanifest = "patients.csv"\n[modality.t1]\ncolumn = "scan"\n'
        f'[compute]\ndevice = "cpu"\nweights = "{weights}"\n'
    )
    return load_site(folder / "site.toml")


@pytest.mark.slow
def test_a_site_embeds_once_and_trains_on_what_is_in_the_cache(tmp_path, imported, monkeypatch):
    monkeypatch.setattr("client.encoders.registry.fast_type", lambda _: None)
    site = a_site(tmp_path, imported, [head(), head(seed=1), np.zeros((4, 4, 4), np.float32)])
    modality = ModalitySpec("t1", Kind.VOLUME, vgg11.WIDTH, NAME, scaling=Scaling.NONE, size=STEPS.size)
    study = Study("s", ("a", "b"), (modality,))
    report = embed_site(site, study)
    assert (report.encoded, report.cached, [refusal.row for refusal in report.refused]) == (2, 0, [2])
    again = embed_site(site, study)
    assert (again.encoded, again.cached) == (0, 2)
    files = sorted((site.cache / "embeddings").rglob("*.npy"))
    assert [file.stat().st_size for file in files] == [4 * 25088 + 128] * 2  # numbers, and numpy's header
    (site.folder / "patients.csv").write_text(
        "patient_id,label,split,scan\np0,a,train,0.nii\np1,a,train,1.nii\n"
    )
    data = load_data(site, study)
    torch.testing.assert_close(data.embedding[0][0], straightforward(head()).flatten(), rtol=1e-4, atol=1e-4)
    assert data.encoders["t1"].startswith("hypermm-vgg11/1+slices/1:2x224x224+sha256:")


def test_a_study_that_gives_no_size_gets_the_encoders_own(tmp_path, imported):
    from client.data.scan_list import scan_fingerprint

    site = a_site(tmp_path, imported, [head()])
    own = scan_fingerprint(site, ModalitySpec("t1", Kind.VOLUME, vgg11.WIDTH, NAME))
    assert "+slices/1:32x224x224+" in own
    other = ModalitySpec("t1", Kind.VOLUME, vgg11.WIDTH, NAME, size=(8, 32, 32))
    with pytest.raises(DataError, match=r"expects \[slices, 224, 224\]"):
        scan_fingerprint(site, other)


@pytest.mark.gpu
def test_gpu_agrees_with_the_processor(imported, encoder):
    pictures = slices_of(Volume(head(), RAS_MM), STEPS)[None]
    on_gpu = ENCODERS[NAME].open_volume(EncoderSource(weights=imported, device=torch.device("cuda")))
    torch.testing.assert_close(
        on_gpu.encode(pictures), encoder.encode(pictures), rtol=1e-2, atol=1e-2
    )  # TF32


def test_names_and_shapes_are_those_of_torchvision():
    import torchvision

    with torch.device("meta"):
        state = torchvision.models.vgg11().features.state_dict()
    assert state_shapes() == {f"features.{name}": tuple(value.shape) for name, value in state.items()}
    assert isinstance(Vgg11Features().features[-1], torch.nn.MaxPool2d)
