"""NIfTI files that hospitals have, and broken ones."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest

from client.ingest.nifti import read_nifti
from client.ingest.reasons import ScanReason, ScanRefused

SFORM = np.array([[0.0, -1.2, 0.1, 5.0], [0.9, 0.0, 0.0, -7.0], [0.0, 0.2, 3.0, 2.0], [0.0, 0.0, 0.0, 1.0]])
QFORM = np.diag([2.0, 2.0, 4.0, 1.0])


def _image(voxels, sform_code=1, qform_code=1):
    image = nib.Nifti1Image(voxels, None)
    image.header.set_sform(SFORM, sform_code)
    image.header.set_qform(QFORM, qform_code)
    image.header.set_xyzt_units("mm")
    return image


def _voxels(*shape: int, dtype=np.int16):
    return np.random.default_rng(0).integers(0, 200, shape or (4, 5, 6)).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_sform_is_believed_before_qform(tmp_path, suffix):
    voxels = _voxels()
    _save(_image(voxels), tmp_path / f"a{suffix}")
    volume = read_nifti(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine_mm, SFORM, atol=1e-6)
    assert volume.spacing_mm == pytest.approx((0.9, np.hypot(1.2, 0.2), np.hypot(3.0, 0.1)), abs=1e-6)


def _save(image, path):
    codes = int(image.header["sform_code"]), int(image.header["qform_code"])
    nib.save(image, path)
    header = nib.load(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == codes


def test_qform_where_there_is_no_sform(tmp_path):
    _save(_image(_voxels(), sform_code=0), tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii.gz").affine_mm, QFORM, atol=1e-6)


def test_neither_is_refused(tmp_path):
    _save(_image(_voxels(), 0, 0), tmp_path / "a.nii.gz")
    _refused(tmp_path / "a.nii.gz", ScanReason.BAD_AFFINE)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_affine_that_is_none_is_refused(tmp_path, value):
    image = _image(_voxels())
    for row in ("srow_x", "srow_y", "srow_z"):
        image.header[row] = value
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + b"\0" * 4 + _voxels().tobytes("F"))
    _refused(tmp_path / "a.nii", ScanReason.BAD_AFFINE)


def test_scaled_integers_are_computed(tmp_path):
    image = _image(_voxels(dtype=np.uint8))
    image.header.set_slope_inter(0.5, -3.0)
    nib.save(image, tmp_path / "a.nii.gz")
    stored = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    volume = read_nifti(tmp_path / "a.nii.gz")
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, stored, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "kept"), [("u1", "int16"), ("i2", "int16"), ("u2", "int16"), ("i4", "int16"), ("f8", "float32")]
)
def test_types(tmp_path, dtype, kept):
    voxels = _voxels(dtype=dtype)
    nib.save(_image(voxels), tmp_path / "a.nii.gz")
    volume = read_nifti(tmp_path / "a.nii.gz")
    assert volume.voxels.dtype == kept
    np.testing.assert_array_equal(volume.voxels, voxels)


def test_a_fourth_axis_of_one_is_dropped(tmp_path):
    nib.save(_image(_voxels(4, 5, 6, 1)), tmp_path / "a.nii.gz")
    assert read_nifti(tmp_path / "a.nii.gz").voxels.shape == (4, 5, 6)


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        pytest.param(_voxels(4, 5, 6, 2), ScanReason.FOUR_DIMENSIONAL, id="4-d"),
        pytest.param(_voxels(4, 5, 6, 1, 3), ScanReason.FOUR_DIMENSIONAL, id="5-d"),
        pytest.param(_voxels(4, 5), ScanReason.TOO_FEW_SLICES, id="2-d"),
        pytest.param(
            np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), ScanReason.COLOUR, id="rgb"
        ),
        pytest.param(_voxels().astype(np.complex64), ScanReason.NOT_NIFTI, id="complex"),
    ],
)
def test_refused_contents(tmp_path, voxels, reason):
    nib.save(_image(voxels), tmp_path / "a.nii.gz")
    _refused(tmp_path / "a.nii.gz", reason)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated(tmp_path, share, suffix):
    path = tmp_path / f"a{suffix}"
    nib.save(_image(_voxels(20, 20, 20)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    _refused(path, ScanReason.TRUNCATED_PIXEL_DATA)


def test_damaged_gzip(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(_image(_voxels(30, 30, 30)), path)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(bytes(whole))
    with pytest.raises(ScanRefused) as refused:
        read_nifti(path)
    assert refused.value.reason in (ScanReason.DAMAGED_PIXEL_DATA, ScanReason.TRUNCATED_PIXEL_DATA)


@pytest.mark.parametrize(
    "content", [b"", b"hello", gzip.compress(b"hello" * 200)], ids=["empty", "text", "gzip"]
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.txt"])
def test_files_that_are_no_nifti(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanRefused) as refused:
        read_nifti(tmp_path / name)
    assert str(tmp_path) not in str(refused.value)


def test_analyze_is_no_nifti(tmp_path):
    nib.save(nib.AnalyzeImage(_voxels(), np.eye(4)), tmp_path / "a.img")
    _refused(tmp_path / "a.img", ScanReason.NOT_NIFTI)


def test_absent_file(tmp_path):
    _refused(tmp_path / "nothing.nii.gz", ScanReason.UNREADABLE_FILE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    nib.save(_image(_voxels()), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").chmod(0)
    _refused(tmp_path / "a.nii.gz", ScanReason.PERMISSION_DENIED)


def _refused(path, reason):
    with pytest.raises(ScanRefused) as refused:
        read_nifti(path)
    assert refused.value.reason is reason


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)])
def test_units_are_converted_to_millimetres(tmp_path, unit, factor):
    image = _image(_voxels())
    for form in (image.header.set_sform, image.header.set_qform):
        form(np.diag([factor, factor, factor, 1.0]) @ SFORM, 1)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii.gz").affine_mm, SFORM, atol=1e-5)


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_units_that_make_no_sense_are_refused(tmp_path, unit):
    image = _image(_voxels())
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    _refused(tmp_path / "a.nii.gz", ScanReason.BAD_AFFINE)


@pytest.mark.parametrize("signs", [(-1, 1, 1), (1, 1, -1), (-1, -1, 1)], ids=["mirror", "upside-down", "lps"])
def test_forms_that_point_opposite_ways_are_refused(tmp_path, signs):
    image = _image(_voxels())
    image.header.set_sform(np.diag([*signs, 1.0]) @ QFORM, 2)
    nib.save(image, tmp_path / "a.nii.gz")
    _refused(tmp_path / "a.nii.gz", ScanReason.CONFLICTING_AFFINES)


def test_forms_of_two_units_are_refused(tmp_path):
    image = _image(_voxels())
    image.header.set_sform(np.diag([0.1, 0.1, 0.1, 1.0]) @ image.header.get_qform(), 2)
    _save(image, tmp_path / "a.nii.gz")
    with pytest.raises(ScanRefused, match="differ in size") as error:
        read_nifti(tmp_path / "a.nii.gz")
    assert error.value.reason is ScanReason.BAD_AFFINE


def test_identity_sform_is_a_placeholder_beside_a_qform(tmp_path):
    image = _image(_voxels())
    image.header.set_sform(np.eye(4), 2)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii.gz").affine_mm, QFORM, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5, 2), (4, 5, 1), (1, 5, 6)])
def test_fewer_than_three_slices_are_no_volume(tmp_path, shape):
    nib.save(_image(_voxels(*shape)), tmp_path / "a.nii.gz")
    _refused(tmp_path / "a.nii.gz", ScanReason.TOO_FEW_SLICES)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "A.NII.GZ"])
@pytest.mark.parametrize("zipped", [True, False])
def test_compression_is_told_by_content(tmp_path, kind, name, zipped):
    voxels = _voxels()
    content = kind.from_image(_image(voxels)).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    volume = read_nifti(tmp_path / name)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine_mm, SFORM, atol=1e-6)


def _with_scale(path, slope, intercept, kind=nib.Nifti1Image):
    header = kind.from_image(_image(_voxels())).header
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header.set_data_offset(header.single_vox_offset)
    gap = b"\0" * (header.single_vox_offset - len(header.binaryblock))
    path.write_bytes(header.binaryblock + gap + _voxels().tobytes("F"))
    return path


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    ("slope", "intercept", "first"),
    [
        # SimpleITK agrees but for an intercept without a slope, which it adds against the standard.
        pytest.param(0, 0, 0, id="no-scale"),
        pytest.param(0, -10, 0, id="no-slope"),
        pytest.param(NAN, 0, 0, id="nan-slope"),
        pytest.param(NAN, NAN, 0, id="nan"),
        pytest.param(1, -10, -10, id="scaled"),
        pytest.param(-1, 5, 5, id="negative"),
        # nibabel takes the first four for 1 and 0, SimpleITK all but one; nibabel stops at the last three.
        pytest.param(INF, 0, None, id="infinite-slope"),
        pytest.param(-INF, 0, None, id="minus-infinite-slope"),
        pytest.param(INF, NAN, None, id="infinite-and-nan"),
        pytest.param(NAN, -10, None, id="nan-slope-and-intercept"),
        pytest.param(1, NAN, None, id="nan-intercept"),
        pytest.param(2, NAN, None, id="slope-and-nan-intercept"),
        pytest.param(2, INF, None, id="infinite-intercept"),
    ],
)
def test_a_scale_that_is_no_number_is_refused(tmp_path, kind, slope, intercept, first):
    path = _with_scale(tmp_path / "a.nii", slope, intercept, kind)
    if first is None:
        _refused(path, ScanReason.UNCLEAR_SCALING)
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
        _refused(tmp_path / "a.nii.gz", ScanReason.UNCLEAR_SCALING)
    else:
        expected = _voxels() * (slope if slope in (1, -1) else 1) + first
        np.testing.assert_array_equal(read_nifti(path).voxels, expected)


def test_the_scale_of_a_pair_is_checked_too(tmp_path):
    nib.save(nib.Nifti1Pair.from_image(_image(_voxels())), tmp_path / "a.img")
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.img").voxels, _voxels())
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    header[112:116] = np.float32(np.inf).tobytes()
    (tmp_path / "a.hdr").write_bytes(header)
    _refused(tmp_path / "a.img", ScanReason.UNCLEAR_SCALING)
