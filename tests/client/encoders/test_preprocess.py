import itertools
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.encoders.preprocess import (
    MaskUse,
    VolumeSteps,
    nearest_indices,
    noise_seed,
    preprocess,
    run_mask_command,
)
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.volume import Volume
from mmare.errors import InputError
from tests.data_folder import data_folder

SIZE = (6, 9, 10)
STEPS = VolumeSteps(size=SIZE)
RAS_MM = np.diag([1.0, 2.0, 3.0, 1.0])


def head(shape=(12, 11, 8)):
    """Nothing alike along any axis: values rise along all three, around it background 0."""
    voxels = np.zeros(shape, np.float32)
    x, y, z = np.indices(shape)
    inner = (slice(2, -2),) * 3
    voxels[inner] = (1 + x + 20 * y + 300 * z)[inner]
    return voxels


def medicalnet(voxels, size):
    """Foreground as ``brains18.py`` computes it, from an array of slices, rows and columns."""
    resized = scipy.ndimage.zoom(
        voxels, [n / length for n, length in zip(size, voxels.shape, strict=True)], order=0
    )
    pixels = resized[resized > 0].astype(np.float64)
    return (resized - pixels.mean()) / pixels.std(), resized == 0


@pytest.mark.slow
def test_equals_medicalnet_up_to_the_noise():
    found = preprocess(Volume(head(), RAS_MM), STEPS, seed=1)
    expected, background = medicalnet(head().transpose(2, 1, 0), SIZE)
    assert found.shape == (1, *SIZE)
    assert found.dtype == torch.float32
    assert type(found) is torch.Tensor
    np.testing.assert_allclose(found[0].numpy()[~background], expected[~background], rtol=0, atol=1e-6)
    noise = found[0].numpy()[background]
    assert len(np.unique(noise)) == len(noise)
    assert abs(noise.mean()) < 0.3
    assert abs(noise.std() - 1) < 0.3


@given(length=st.integers(1, 300), wanted=st.integers(1, 300))
def test_picks_the_voxels_that_scipy_picks(length, wanted):
    line = np.arange(1, length + 1)
    # grid_mode=False is what MedicalNet ran; "nearest" keeps scipy from cutting off the last voxel when its
    # place is rounded up by 1e-16.
    expected = scipy.ndimage.zoom(
        line, wanted / length, order=0, mode="nearest", output=np.zeros(wanted, int)
    )
    assert (nearest_indices(length, wanted) + 1).tolist() == expected.tolist()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_affine_says_where_the_axes_run_not_the_array(order):
    expected = preprocess(Volume(head(), RAS_MM), STEPS, seed=1)
    image = nib.Nifti1Image(head(), RAS_MM)
    for signs in itertools.product((1, -1), repeat=3):
        turned = image.as_reoriented(np.array(list(zip(order, signs, strict=True))))
        volume = Volume(np.asarray(turned.dataobj), np.asarray(turned.affine, np.float64))
        assert torch.equal(preprocess(volume, STEPS, seed=1), expected)


def test_slices_rise_to_the_head_rows_to_the_front_columns_to_the_right():
    found = preprocess(Volume(head(), RAS_MM), STEPS, seed=1)[0]
    middle = tuple((length - 1) // 2 for length in SIZE)
    for axis in range(3):
        place = [*middle]
        place[axis] += 1
        assert found[tuple(place)] > found[middle]


def test_integers_and_floats_of_the_same_values_are_the_same():
    volumes = [Volume(head().astype(kind), RAS_MM) for kind in (np.int16, np.float32)]
    assert torch.equal(*(preprocess(volume, STEPS, seed=1) for volume in volumes))


def test_the_noise_comes_from_the_seed_alone():
    volume = Volume(head(), RAS_MM)
    first, again, other = (preprocess(volume, STEPS, seed) for seed in (1, 1, 2))
    foreground = torch.from_numpy(~medicalnet(head().transpose(2, 1, 0), SIZE)[1])
    assert torch.equal(first, again)
    assert torch.equal(first[0][foreground], other[0][foreground])
    assert not bool((first[0][~foreground] == other[0][~foreground]).any())


def test_the_noise_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    preprocess(Volume(head(), RAS_MM), STEPS, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_differ_by_every_name():
    names = [
        ("ixi", "1", "t1"),
        ("ixi", "2", "t1"),
        ("ixi", "1", "t2"),
        ("mmist", "1", "t1"),
        ("ixi1", "", "t1"),
    ]
    seeds = {noise_seed(*parts) for parts in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_scaling_the_intensities_changes_nothing():
    plain = preprocess(Volume(head(), RAS_MM), STEPS, seed=1)
    scaled = preprocess(Volume(head() * np.float32(4), RAS_MM), STEPS, seed=1)
    torch.testing.assert_close(plain, scaled, rtol=0, atol=1e-6)


def test_a_window_moves_air_to_the_background_and_keeps_water_out_of_it():
    hounsfield = np.full((8, 8, 8), -1000, np.int16)
    hounsfield[2:6, 2:6, 2:6] = 40
    hounsfield[3, 3, 3] = 3000
    hounsfield[4, 4, 4] = 0
    steps = VolumeSteps(size=(8, 8, 8), window=(-79, 304))
    found = preprocess(Volume(hounsfield, np.eye(4)), steps, seed=1)[0]
    other = preprocess(Volume(hounsfield, np.eye(4)), steps, seed=2)[0]
    noisy = (found != other).numpy()
    assert np.array_equal(noisy, hounsfield == -1000)
    shifted = np.clip(hounsfield.astype(np.float64), -79, 304) + 79
    expected, _ = medicalnet(shifted, (8, 8, 8))
    np.testing.assert_allclose(found.numpy()[~noisy], expected.transpose(2, 1, 0)[~noisy], rtol=0, atol=1e-5)


def test_windowing_before_resizing_gives_the_same_bits():
    hounsfield = (head() - 700).astype(np.float32)
    windowed = np.clip(hounsfield, -400, 600) + np.float32(400)
    after = preprocess(Volume(hounsfield, RAS_MM), VolumeSteps(size=SIZE, window=(-400, 600)), seed=1)
    assert torch.equal(after, preprocess(Volume(windowed, RAS_MM), STEPS, seed=1))


def organ(shape=(12, 11, 8)):
    mask = np.zeros(shape, np.int16)
    mask[3:7, 4:8, 2:6] = 1
    mask[4, 5, 3] = 0
    return mask


def test_outside_the_mask_is_background():
    stripped = head() * organ()
    found = preprocess(
        Volume(head() + 5, RAS_MM), VolumeSteps(SIZE, mask=MaskUse.MASK), 1, Volume(organ(), RAS_MM)
    )
    expected = preprocess(Volume(np.where(stripped > 0, stripped + 5, 0), RAS_MM), STEPS, 1)
    assert torch.equal(found, expected)


def test_a_crop_keeps_the_surroundings_in_the_box():
    steps = VolumeSteps(size=SIZE, crop_to_mask=True)
    found = preprocess(Volume(head(), RAS_MM), steps, 1, Volume(organ(), RAS_MM))
    assert torch.equal(found, preprocess(Volume(head()[3:7, 4:8, 2:6].copy(), RAS_MM), STEPS, 1))


def test_a_crop_and_a_mask_go_together():
    steps = VolumeSteps(size=SIZE, crop_to_mask=True, mask=MaskUse.MASK)
    found = preprocess(Volume(head(), RAS_MM), steps, 1, Volume(organ(), RAS_MM))
    box = (head() * organ())[3:7, 4:8, 2:6].copy()
    assert torch.equal(found, preprocess(Volume(box, RAS_MM), STEPS, 1))


def test_a_mask_may_lie_in_the_file_another_way():
    steps = VolumeSteps(size=SIZE, crop_to_mask=True, mask=MaskUse.MASK)
    image = nib.Nifti1Image(organ(), RAS_MM).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    turned = Volume(np.asarray(image.dataobj), np.asarray(image.affine, np.float64))
    expected = preprocess(Volume(head(), RAS_MM), steps, 1, Volume(organ(), RAS_MM))
    assert torch.equal(preprocess(Volume(head(), RAS_MM), steps, 1, turned), expected)


def test_a_mask_that_no_step_needs_changes_nothing():
    volume = Volume(head(), RAS_MM)
    assert torch.equal(preprocess(volume, STEPS, 1, Volume(organ(), RAS_MM)), preprocess(volume, STEPS, 1))


def test_nan_outside_the_mask_does_no_harm():
    voxels = np.where(organ() > 0, head(), np.float32("nan")).astype(np.float32)
    steps = VolumeSteps(size=SIZE, mask=MaskUse.MASK)
    found = preprocess(Volume(voxels, RAS_MM), steps, 1, Volume(organ(), RAS_MM))
    assert bool(torch.isfinite(found).all())


def filled(value, dtype=np.float32):
    return Volume(np.full((5, 6, 7), value, dtype), RAS_MM)


STRIP = VolumeSteps(size=SIZE, mask=MaskUse.MASK)


@pytest.mark.parametrize(
    ("volume", "steps", "mask", "reason"),
    [
        pytest.param(filled(0), STEPS, None, ScanReason.EMPTY_VOLUME, id="all zero"),
        pytest.param(filled(-1000, np.int16), STEPS, None, ScanReason.EMPTY_VOLUME, id="all below zero"),
        pytest.param(filled(7), STEPS, None, ScanReason.CONSTANT_VOLUME, id="constant"),
        pytest.param(
            Volume(organ(), RAS_MM), STEPS, None, ScanReason.CONSTANT_VOLUME, id="a mask in place of the scan"
        ),
        pytest.param(
            filled(50),
            VolumeSteps(SIZE, window=(60, 90)),
            None,
            ScanReason.EMPTY_VOLUME,
            id="below the window",
        ),
        pytest.param(
            Volume(head() + 100, RAS_MM),
            VolumeSteps(SIZE, window=(0, 1)),
            None,
            ScanReason.CONSTANT_VOLUME,
            id="above the window",
        ),
        pytest.param(filled(np.nan), STEPS, None, ScanReason.NON_FINITE_VOXELS, id="NaN"),
        pytest.param(filled(np.inf), STEPS, None, ScanReason.NON_FINITE_VOXELS, id="infinite"),
        pytest.param(
            Volume(np.where(head() > 0, np.float32("inf"), -np.float32("inf")), RAS_MM),
            STEPS,
            None,
            ScanReason.NON_FINITE_VOXELS,
            id="infinite on both sides",
        ),
        pytest.param(
            Volume(np.where(head() > 0, head(), np.float32(-3e38)), RAS_MM),
            STEPS,
            None,
            ScanReason.OUTLYING_VOXELS,
            id="a fill value",
        ),
        pytest.param(Volume(head(), RAS_MM), STRIP, None, ScanReason.NO_MASK, id="no mask"),
        pytest.param(Volume(head(), RAS_MM), STRIP, filled(1), ScanReason.MASK_GRID, id="another shape"),
        pytest.param(
            Volume(head(), RAS_MM),
            STRIP,
            Volume(organ(), RAS_MM @ np.diag([1, 1, 1.05, 1])),
            ScanReason.MASK_GRID,
            id="another spacing",
        ),
        pytest.param(
            Volume(head(), RAS_MM),
            VolumeSteps(SIZE, crop_to_mask=True),
            Volume(0 * organ(), RAS_MM),
            ScanReason.EMPTY_MASK,
            id="empty mask",
        ),
    ],
)
def test_refused(volume, steps, mask, reason):
    with pytest.raises(ScanRefused) as caught:
        preprocess(volume, steps, 1, mask)
    assert caught.value.reason is reason
    assert str(caught.value)


def test_fingerprints_differ_where_the_steps_do():
    variants = [
        VolumeSteps(),
        VolumeSteps(size=(32, 64, 64)),
        VolumeSteps(window=(-79, 304)),
        VolumeSteps(window=(-1000, 1000)),
        VolumeSteps(mask=MaskUse.MASK),
        VolumeSteps(crop_to_mask=True),
        VolumeSteps(mask=MaskUse.MASK, crop_to_mask=True),
    ]
    assert len({steps.fingerprint for steps in variants}) == len(variants)
    assert VolumeSteps(window=(-79, 304)).fingerprint == VolumeSteps(window=(-79.0, 304.0)).fingerprint
    assert VolumeSteps().size == (56, 448, 448)


@pytest.mark.data
def test_a_real_head():
    from client.ingest.nifti import read_nifti

    file = min((data_folder("ixi") / "t1_2mm").glob("*.nii*"))
    found = preprocess(read_nifti(file), VolumeSteps(size=(28, 64, 64)), noise_seed("ixi", "1", "t1"))
    assert found.shape == (1, 28, 64, 64)
    assert bool(torch.isfinite(found).all())
    assert abs(float(found.mean())) < 1
    assert 0.5 < float(found.std()) < 2


# ---- the mask command


def script(tmp_path, text):
    """A template that runs a few lines of Python, with both paths as arguments."""
    file = tmp_path / "tool with space.py"
    file.write_text("import sys\nsource, target = sys.argv[1:]\n" + text)
    return f"{sys.executable} '{file}' {{input}} {{output}}"


def test_a_mask_command_writes_the_mask(tmp_path):
    source, target = tmp_path / "a scan; touch x.nii.gz", tmp_path / "masks" / "mask.nii.gz"
    source.write_text("scan")
    copy = "assert target.endswith('.nii.gz')\nopen(target, 'w').write(open(source).read() + ' mask')"
    run_mask_command(script(tmp_path, copy), source, target, timeout_s=30)
    assert target.read_text() == "scan mask"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("sys.exit('no brain found')", "ended with 1: no brain found", id="fails"),
        pytest.param("sys.exit(3)", "ended with 3: nothing on stderr", id="fails without a word"),
        pytest.param("", "wrote no mask", id="writes nothing"),
        pytest.param("open(target, 'w')", "wrote no mask", id="writes an empty file"),
        pytest.param("open(target, 'w').write('half')\nsys.exit('x')", "ended with 1: x", id="half a mask"),
    ],
)
def test_a_mask_command_that_fails_leaves_nothing(tmp_path, text, sentence):
    target = tmp_path / "out" / "mask.nii"
    with pytest.raises(ScanRefused, match=sentence) as caught:
        run_mask_command(script(tmp_path, text), tmp_path / "scan.nii", target, timeout_s=30)
    assert caught.value.reason is ScanReason.MASK_COMMAND
    assert list(target.parent.iterdir()) == []


@pytest.mark.slow
def test_a_mask_command_that_hangs_is_stopped_with_its_children(tmp_path):
    beat = tmp_path / "beat"
    child = f"import time\nwhile True:\n open({str(beat)!r}, 'a').write('.')\n time.sleep(0.02)"
    text = (
        f"import subprocess, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"import pathlib\nwhile not pathlib.Path({str(beat)!r}).exists(): time.sleep(0.02)\ntime.sleep(60)"
    )
    with pytest.raises(ScanRefused, match=r"was stopped after 1\.5 s"):
        run_mask_command(script(tmp_path, text), tmp_path / "scan.nii", tmp_path / "mask.nii", timeout_s=1.5)
    time.sleep(0.1)
    size = beat.stat().st_size
    time.sleep(0.2)
    assert beat.stat().st_size == size


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        pytest.param("synthstrip -i {input}", "lacks {output}", id="no output"),
        pytest.param("synthstrip", "lacks {input} and {output}", id="neither"),
        pytest.param("", "lacks {input} and {output}", id="empty"),
        pytest.param("tool '{input} {output}", "No closing quotation", id="quotes"),
        pytest.param("no-such-program {input} {output}", "cannot start 'no-such-program'", id="no program"),
    ],
)
def test_a_mask_command_that_is_none(tmp_path, template, sentence):
    with pytest.raises(InputError, match=sentence):
        run_mask_command(template, tmp_path / "scan.nii", tmp_path / "mask.nii", timeout_s=5)
