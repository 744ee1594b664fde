"""The steps, beside those of MONAI and transformers that the encoders' authors used."""

import numpy as np
import pytest
import torch

from client.encoders.files.contract import Crop, Fit, InputKind, InputSpec, Interpolation
from client.encoders.files.steps import FileSteps, pictures_of, prepared
from client.encoders.preprocess import MaskUse
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.volume import Volume

CT_FM = InputSpec(InputKind.VOLUME, orientation="SPL", window=(-1024, 2048), crop=Crop.FOREGROUND)


def volume(shape=(14, 16, 10), spacing=(2.0, 1.0, 5.0)):
    voxels = np.full(shape, -1024.0, np.float32)
    voxels[3:12, 2:15, 1:8] = np.random.default_rng(0).uniform(-900, 2500, (9, 13, 7))
    affine = np.diag([*spacing, 1.0])
    affine[0, 0] *= -1  # columns run to the left
    return Volume(voxels, affine)


def test_the_steps_of_ct_fm_are_those_of_its_authors():
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms import CropForeground, Orientation, ScaleIntensityRange

    given = volume()
    scan = MetaTensor(torch.from_numpy(given.voxels)[None], affine=torch.from_numpy(given.affine_mm))
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    scan = ScaleIntensityRange(-1024, 2048, 0, 1, clip=True)(Orientation("SPL", labels=labels)(scan))
    expected = CropForeground(allow_smaller=True)(scan).as_tensor()
    found = prepared(given, FileSteps(CT_FM))
    assert found.shape == expected.shape == (1, 7, 13, 9)
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=0)


def test_spacing_comes_before_size_and_the_middle_stays():
    import scipy.ndimage

    spec = InputSpec(InputKind.VOLUME, orientation="RAS", window=(-1024, 2048), spacing_mm=(1, 1, 2.5))
    whole = prepared(volume(), FileSteps(spec))
    assert whole.shape == (1, 28, 16, 20)
    from dataclasses import replace

    cut = prepared(volume(), FileSteps(replace(spec, size=(12, 20, 20))))
    torch.testing.assert_close(cut[:, :, 2:18], whole[:, 8:20])
    assert (cut[:, :, :2] == 0).all()
    scaled = (np.clip(volume().voxels[::-1], -1024, 2048) + 1024) / 3072  # axes to the right
    expected = scipy.ndimage.zoom(scaled, (2, 1, 2), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(whole[0].numpy(), expected, atol=1e-5)


def test_a_picture_is_that_of_rad_dinos_processor():
    from transformers import BitImageProcessor

    tile = np.kron(np.random.default_rng(0).integers(0, 256, (6, 9, 3)), np.ones((10, 10, 1))).astype(
        np.uint8
    )
    processor = BitImageProcessor(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        resample=3,
        image_mean=[0.5307] * 3,
        image_std=[0.2583] * 3,
    )
    expected = torch.as_tensor(np.asarray(processor(tile, return_tensors="np")["pixel_values"]))
    spec = InputSpec(
        InputKind.TILES,
        size=(28, 28),
        fit=Fit.CROP,
        interpolation=Interpolation.CUBIC,
        mean=(0.5307,),
        std=(0.2583,),
    )
    found = pictures_of(torch.from_numpy(tile)[None], spec)
    torch.testing.assert_close(
        found, expected, atol=0.15, rtol=0
    )  # Pillow rounds and clips between two passes
    assert float((found - expected).abs().mean()) < 0.02


def test_slices_lie_evenly_over_the_first_axis():
    spec = InputSpec(
        InputKind.SLICES, orientation="SAR", size=(8, 6), slices=4, channels=3, mean=(0.5,), std=(0.25,)
    )
    found = prepared(volume(), FileSteps(spec))
    assert found.shape == (4, 3, 8, 6)
    assert torch.equal(found[:, 0], found[:, 2])
    assert prepared(volume(), FileSteps(InputSpec(InputKind.SLICES, size=(8, 6)))).shape[0] == 10


def test_a_mask_strips_and_crops_before_the_foreground():
    inside = np.zeros((14, 16, 10), np.int16)
    inside[4:10, 5:12, 2:6] = 1
    mask = Volume(inside, volume().affine_mm)
    cropped = prepared(volume(), FileSteps(CT_FM, MaskUse.MASK, crop_to_mask=True), mask)
    assert cropped.shape == (1, 4, 7, 6)
    stripped = prepared(volume(), FileSteps(CT_FM, MaskUse.MASK), mask)
    torch.testing.assert_close(cropped, stripped)
    with pytest.raises(ScanRefused) as caught:
        prepared(volume(), FileSteps(CT_FM, MaskUse.MASK))
    assert caught.value.reason is ScanReason.NO_MASK


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (np.full((4, 4, 4), 7.0), ScanReason.CONSTANT_VOLUME),
        (np.where(np.eye(4)[None].repeat(4, 0) > 0, np.nan, 1.0), ScanReason.NON_FINITE_VOXELS),
        (np.linspace(-5000, -3000, 64).reshape(4, 4, 4), ScanReason.EMPTY_VOLUME),
    ],
)
def test_what_cannot_be_used_has_its_reason(voxels, reason):
    with pytest.raises(ScanRefused) as caught:
        prepared(Volume(voxels.astype(np.float32), np.eye(4)), FileSteps(CT_FM))
    assert caught.value.reason is reason


def test_the_probe_of_a_volume_tells_axes_apart(sealed):
    import nibabel as nib

    scan = nib.load(sealed("onnx_volume") / "probe.nii.gz")
    assert len(set(scan.shape)) == 3
    voxels = np.asarray(scan.dataobj)
    assert not any(np.array_equal(voxels, np.flip(voxels, axis)) for axis in range(3))
