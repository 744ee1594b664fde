"""One-slice-per-file series of all makers: order, affine, values, repeats, splits."""

import base64
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own manual's name
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless

from client.ingest.reasons import Correction, ScanReason
from client.ingest.report import Outcome
from tests.client.ingest.helpers import convert, only, read_back
from tests.client.ingest.phantoms import (
    AXIAL,
    CORONAL,
    MR,
    OBLIQUE,
    SAGITTAL,
    expected_affine,
    picture,
    save,
    stack,
    values,
)

ORIGIN = (-10.0, 20.0, 30.0)
AFFINE_MM = 1e-4  # float32 of the file


@pytest.mark.parametrize(
    "orientation",
    [
        pytest.param(AXIAL, id="axial"),
        pytest.param(SAGITTAL, id="sagittal"),
        pytest.param(CORONAL, id="coronal"),
        pytest.param(OBLIQUE, id="oblique"),
    ],
)
def test_voxels_and_affine_follow_the_standard_and_simpleitk(tmp_path, orientation):
    pixels = values(5)
    save(stack(pixels, orientation=orientation), tmp_path / "in")
    entry = only(convert(tmp_path))
    voxels, affine = read_back(tmp_path, entry)
    assert voxels.dtype == np.int16
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0))
    np.testing.assert_allclose(affine, expected_affine(orientation, ORIGIN, 2.0), atol=AFFINE_MM)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
    sitk.WriteImage(reader.Execute(), str(tmp_path / "itk.nii.gz"))
    theirs = nib.as_closest_canonical(nib.load(tmp_path / "itk.nii.gz"))
    ours = nib.as_closest_canonical(nib.load(tmp_path / "out" / entry.output))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=AFFINE_MM)


@pytest.mark.parametrize(
    ("orientation", "plane", "code"),
    [(AXIAL, "axial", "LPS"), (SAGITTAL, "sagittal", "PIL"), (CORONAL, "coronal", "LIP")],
)
def test_report_names_plane_and_orientation(tmp_path, orientation, plane, code):
    save(stack(values(4), orientation=orientation), tmp_path / "in")
    entry = only(convert(tmp_path))
    normal = {"axial": "S", "sagittal": "R", "coronal": "P"}[plane]
    assert (entry.plane, entry.orientation[:2]) == (plane, code[:2])
    assert entry.orientation[2] in (normal, code[2])
    assert entry.size == (8, 6, 4)
    assert entry.spacing_mm == pytest.approx((0.9, 0.7, 2.0))


def test_instance_numbers_and_names_are_not_believed(tmp_path):
    pixels = values(6)
    files = stack(pixels, each=lambda index: {"InstanceNumber": 6 - index})
    save(files, tmp_path / "in", names=lambda index: f"IM{(index * 5) % 6}")  # no extension, shuffled
    voxels, _ = read_back(tmp_path, only(convert(tmp_path)))
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("pixels", "slope", "intercept", "expected"),
    [
        pytest.param(values(3), 1, -1024, "int16", id="ct-unsigned"),
        pytest.param(values(3).astype(np.int16) - 1000, 1, 0, "int16", id="signed"),
        pytest.param(values(3, top=65535), 1, 0, "float32", id="unsigned-beyond-int16"),
        pytest.param(values(3, top=65535), 1, -32768, "int16", id="unsigned-shifted"),
        pytest.param(values(3), 0.5, 2.25, "float32", id="fraction"),
    ],
)
def test_rescale_and_type(tmp_path, pixels, slope, intercept, expected):
    save(stack(pixels, RescaleSlope=slope, RescaleIntercept=intercept), tmp_path / "in")
    voxels, _ = read_back(tmp_path, only(convert(tmp_path)))
    assert voxels.dtype == expected
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0).astype(np.float64) * slope + intercept)


def test_pet_slope_differs_by_slice(tmp_path):
    pixels = values(4)
    slopes = [0.1, 0.25, 1.5, 2.0]
    save(
        stack(
            pixels, Modality="PT", each=lambda index: {"RescaleSlope": slopes[index], "RescaleIntercept": 0}
        ),
        tmp_path / "in",
    )
    voxels, _ = read_back(tmp_path, only(convert(tmp_path)))
    expected = (pixels.astype(np.float64) * np.array(slopes)[:, None, None]).transpose(2, 1, 0)
    np.testing.assert_allclose(voxels, expected, rtol=1e-6)


def test_philips_private_scale_gives_the_scanners_own_values(tmp_path):
    pixels = values(4)
    files = stack(
        pixels,
        SOPClassUID=MR,
        Modality="MR",
        Manufacturer="Philips Medical Systems",
        RescaleSlope=2.5,
        RescaleIntercept=10,
    )
    for file in files:
        file.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 0.02)
    save(files, tmp_path / "in")
    entry = only(convert(tmp_path))
    voxels, _ = read_back(tmp_path, entry)
    expected = (pixels.transpose(2, 1, 0) * 2.5 + 10) / (2.5 * np.float64(np.float32(0.02)))
    np.testing.assert_allclose(voxels, expected, rtol=1e-6)
    assert Correction.PHILIPS_SCALING in entry.corrections


def test_monochrome1_and_padding_are_left_as_measured(tmp_path):
    pixels = values(3).astype(np.int16)
    pixels[:, 0] = -2000
    save(stack(pixels, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-2000), tmp_path / "in")
    entry = only(convert(tmp_path))
    voxels, _ = read_back(tmp_path, entry)
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0))
    assert entry.corrections == (Correction.MONOCHROME1,)


@pytest.mark.parametrize("jitter_mm", [1e-3, 5e-3])
def test_jitter_of_positions_is_no_unevenness(tmp_path, jitter_mm):
    """Canon and Toshiba write positions that wander by micrometres, in and across the plane."""
    pixels = values(8)
    rng = np.random.default_rng(1)
    files = stack(pixels, gap_mm=1.0)
    for file in files:
        file.ImagePositionPatient = (
            np.array(file.ImagePositionPatient) + rng.uniform(-jitter_mm, jitter_mm, 3)
        ).tolist()
    save(files, tmp_path / "in")
    entry = only(convert(tmp_path))
    voxels, affine = read_back(tmp_path, entry)
    assert entry.corrections == ()
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0))
    np.testing.assert_allclose(affine, expected_affine(AXIAL, ORIGIN, 1.0), atol=2 * jitter_mm)


def test_positions_rounded_to_a_tenth_are_even(tmp_path):
    pixels = values(9)
    save(stack(pixels, places=[round(index * 0.625, 1) for index in range(9)]), tmp_path / "in")
    entry = only(convert(tmp_path))
    assert (entry.outcome, entry.corrections) == (Outcome.CONVERTED, ())
    assert entry.size == (8, 6, 9)


@pytest.mark.parametrize(("missing", "double"), [((4,), 4.0), ((4, 5), 6.0)])
def test_missing_slices_are_refused(tmp_path, missing, double):
    places = [index * 2.0 for index in range(10) if index not in missing]
    save(stack(values(len(places)), places=places), tmp_path / "in")
    entry = only(convert(tmp_path))
    assert entry.reasons == (ScanReason.MISSING_SLICES,)
    assert f"{double:.2f} mm" in entry.detail
    assert entry.output is None


def test_one_gap_that_is_no_multiple_but_too_wide_is_refused(tmp_path):
    save(stack(values(6), places=[0, 2, 4, 6, 8, 13.0]), tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.GAP_TOO_WIDE,)


@pytest.mark.parametrize(
    "places",
    [
        pytest.param([0, 2, 4, 6, 9, 12, 15], id="two-zones"),
        pytest.param([0, 4, 8, 12, 20, 28, 36], id="thicker-zone"),
    ],
)
def test_uneven_gaps_become_even(tmp_path, places):
    ramp = np.broadcast_to(np.array(places, np.uint16)[:, None, None] * 100, (7, 6, 8))
    thickness = np.diff(places, append=places[-1] + places[-1] - places[-2]).tolist()
    save(
        stack(np.ascontiguousarray(ramp), places=places, each=lambda i: {"SliceThickness": thickness[i]}),
        tmp_path / "in",
    )
    entry = only(convert(tmp_path))
    voxels, affine = read_back(tmp_path, entry)
    assert entry.corrections == (Correction.UNEVEN_GAPS,)
    heights = affine[2, 3] - ORIGIN[2] + affine[2, 2] * np.arange(voxels.shape[2])
    assert heights[-1] == pytest.approx(places[-1], abs=1e-3)
    np.testing.assert_allclose(voxels[3, 3], heights * 100, atol=0.51)  # a linear picture stays one


@pytest.mark.parametrize("tilt_deg", [12.0, -12.0])
@pytest.mark.parametrize("maker", ["GE MEDICAL SYSTEMS", "SIEMENS", "Philips", "TOSHIBA"])
def test_tilt_puts_every_voxel_where_it_was_measured(tmp_path, tilt_deg, maker):
    """A scene that is linear in the world is the same scene after the shear, whoever made the scanner."""
    angle = np.deg2rad(tilt_deg)
    orientation = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    files = []
    for index in range(7):
        origin = np.array([-10.0, -20.0, 30.0 + 3.0 * index])  # the table moves along z, the plane is tilted
        rows, columns = np.mgrid[:24, :20]
        world = (
            origin
            + columns[..., None] * 0.9 * np.array(orientation[:3])
            + rows[..., None] * 0.7 * np.array(orientation[3:])
        )
        scene = np.rint(5000 + world @ np.array([20.0, 30.0, 40.0])).astype(np.int16)
        files.append(
            picture(
                scene,
                index=index,
                ImageOrientationPatient=list(orientation),
                ImagePositionPatient=origin.tolist(),
                GantryDetectorTilt=tilt_deg,
                Manufacturer=maker,
                PixelPaddingValue=-3000,
            )
        )
    save(files, tmp_path / "in")
    entry = only(convert(tmp_path))
    voxels, affine = read_back(tmp_path, entry)
    assert entry.corrections == (Correction.TILT,)
    inside = np.argwhere(voxels != -3000)
    world_ras = nib.affines.apply_affine(affine, inside)
    expected = 5000 + (world_ras * [-1, -1, 1]) @ np.array([20.0, 30.0, 40.0])
    off = np.abs(voxels[tuple(inside.T)] - expected)
    assert np.quantile(off, 0.9) < 1.5  # rounding of two integers
    assert off.max() < 40 * 0.7  # the outermost row reaches out by less than a pixel, as in dcm2niix
    np.testing.assert_allclose(
        affine[:3, :3].T @ affine[:3, :3], np.diag(np.square([0.9, 0.7, 3 * np.cos(angle)])), atol=1e-4
    )


def test_tilt_that_only_the_tag_claims_is_noted(tmp_path):
    save(stack(values(4), GantryDetectorTilt=15.0), tmp_path / "in")
    entry = only(convert(tmp_path))
    assert (entry.outcome, entry.corrections) == (Outcome.CONVERTED, (Correction.TILT_TAG_IGNORED,))


def test_slices_that_do_not_line_up_are_refused(tmp_path):
    files = stack(values(6))
    files[3].ImagePositionPatient = [40.0, 20.0, 36.0]
    save(files, tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.SCATTERED_SLICES,)


def test_copies_of_slices_are_dropped(tmp_path):
    pixels = values(5)
    files = stack(pixels)
    save(files, tmp_path / "in")
    save(files[1:3], tmp_path / "in" / "again")  # the same files once more
    resent = picture(
        pixels[3], index=99, ImagePositionPatient=list(files[3].ImagePositionPatient)
    )  # with a new UID
    save([resent], tmp_path / "in" / "resent")
    entry = only(convert(tmp_path))
    voxels, _ = read_back(tmp_path, entry)
    assert (entry.corrections, entry.n_duplicates) == ((Correction.DUPLICATE_SLICES,), 3)
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0))


def test_broken_copy_of_an_intact_slice_is_dropped(tmp_path):
    pixels = values(4)
    files = stack(pixels)
    save(files, tmp_path / "in")
    whole = (tmp_path / "in" / "002.dcm").read_bytes()
    (tmp_path / "in" / "copy.dcm").write_bytes(whole[:-30])
    voxels, _ = read_back(tmp_path, only(convert(tmp_path)))
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0))


def test_repeated_positions_are_four_dimensional(tmp_path):
    save(stack(values(4)), tmp_path / "in")
    save(stack(values(4, seed=1), each=lambda _: {"salt": 1}), tmp_path / "in" / "later")
    assert only(convert(tmp_path)).reasons == (ScanReason.FOUR_DIMENSIONAL,)


def test_blank_slices_of_a_film_do_not_hide_that_it_is_one(tmp_path):
    for time in range(3):
        pixels = values(5, seed=time)
        pixels[0] = 0
        save(stack(pixels, each=lambda _, time=time: {"salt": time}), tmp_path / "in" / str(time))
    assert only(convert(tmp_path)).reasons == (ScanReason.FOUR_DIMENSIONAL,)


def test_one_position_with_two_pictures_is_refused(tmp_path):
    files = stack(values(5))
    other = picture(values(1, seed=9)[0], index=77, ImagePositionPatient=list(files[2].ImagePositionPatient))
    save([*files, other], tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.CONFLICTING_SLICES,)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"EchoTime": 4.9}, {"EchoTime": 7.4}, id="echoes"),
        pytest.param(
            {"ImageType": ["ORIGINAL", "PRIMARY", "M"]},
            {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
            id="image-type",
        ),
        pytest.param({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, id="acquisitions"),
        pytest.param({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}, id="kernels"),
        pytest.param({"InversionTime": 700}, {"InversionTime": 2500}, id="inversion-times"),
    ],
)
def test_one_uid_with_two_volumes_at_the_same_place_is_split(tmp_path, one, other):
    first, second = values(4), values(4, seed=1)
    save(
        stack(first, SOPClassUID=MR, Modality="MR", each=lambda _: {"salt": 1}, **one), tmp_path / "in" / "a"
    )
    save(
        stack(second, SOPClassUID=MR, Modality="MR", each=lambda _: {"salt": 2}, **other),
        tmp_path / "in" / "b",
    )
    report = convert(tmp_path)
    assert [entry.corrections for entry in report.series] == [(Correction.SERIES_SPLIT,)] * 2
    assert [entry.output for entry in report.series] == ["5_phantom-3d.nii.gz", "5_phantom-3d_2.nii.gz"]
    for entry, pixels in zip(report.series, (first, second), strict=True):
        np.testing.assert_array_equal(read_back(tmp_path, entry)[0], pixels.transpose(2, 1, 0))


def test_thick_and_thin_slices_among_one_another_are_split(tmp_path):
    thin, thick = values(9), values(4, seed=1)
    save(stack(thin, gap_mm=1.0, SliceThickness=1.0, each=lambda _: {"salt": 1}), tmp_path / "in" / "a")
    save(
        stack(thick, places=[0.5, 3.5, 6.5, 9.5], SliceThickness=3.0, each=lambda _: {"salt": 2}),
        tmp_path / "in" / "b",
    )
    report = convert(tmp_path)
    assert [(entry.size[2], entry.spacing_mm[2]) for entry in report.series] == [(9, 1.0), (4, 3.0)]


def test_ge_tells_magnitude_from_phase_in_a_private_element(tmp_path):
    for component in (0, 1):
        files = stack(
            values(4, seed=component),
            Manufacturer="GE MEDICAL SYSTEMS",
            each=lambda _, c=component: {"salt": c},
        )
        for file in files:
            file.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", component)
        save(files, tmp_path / "in" / str(component))
    assert len(convert(tmp_path).converted) == 2


@pytest.mark.parametrize(("modality", "n_times"), [("CT", 5), ("MR", 3)])
def test_many_acquisitions_at_one_place_are_a_film(tmp_path, modality, n_times):
    for time in range(n_times):
        files = stack(values(4, seed=time), AcquisitionNumber=time + 1, Modality=modality)
        save(files, tmp_path / "in" / str(time))
    assert only(convert(tmp_path)).reasons == (ScanReason.FOUR_DIMENSIONAL,)


def test_three_contrast_phases_of_ct_are_three_volumes(tmp_path):
    for phase in range(3):
        save(stack(values(4, seed=phase), AcquisitionNumber=phase + 1), tmp_path / "in" / str(phase))
    assert len(convert(tmp_path).converted) == 3


def test_spacing_and_cosines_rounded_differently_are_one_stack(tmp_path):
    spacings = [["0.4882812", "0.4882812"], ["0.488281", "0.488281"], ["0.48828125", "0.48828125"]]
    cosines = [list(AXIAL), [0.99999, 0.0001, 0.0, 0.0, 1.0, 0.0]]
    save(
        stack(
            values(6),
            each=lambda index: {
                "PixelSpacing": spacings[index % 3],
                "ImageOrientationPatient": cosines[index % 2],
            },
        ),
        tmp_path / "in",
    )
    assert only(convert(tmp_path)).size == (8, 6, 6)


@pytest.mark.parametrize("slope", [2.0, 0.25], ids=["as displayed", "of its own"])
@pytest.mark.parametrize("private", [0.004, None])
def test_philips_real_world_values_are_not_applied(tmp_path, slope, private):
    """As in dcm2niix 1.0.20260724: the private scale slope, else the scale of the display."""
    files = stack(
        values(4), SOPClassUID=MR, Modality="MR", Manufacturer="Philips", RescaleSlope=2, RescaleIntercept=0
    )
    for file in files:
        mapping = Dataset()
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = slope, 0.0
        file.RealWorldValueMappingSequence = [mapping]
        if private:
            file.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", private)
    save(files, tmp_path / "in")
    entry = only(convert(tmp_path))
    assert (Correction.PHILIPS_SCALING in entry.corrections) is bool(private)
    voxels, _ = read_back(tmp_path, entry)
    np.testing.assert_allclose(
        voxels, values(4).transpose(2, 1, 0) * (1 / private if private else 2), rtol=1e-5
    )


@pytest.mark.parametrize("signed", [False, True])
def test_overlay_hidden_in_the_upper_bits_is_cleared(tmp_path, signed):
    clean = values(3).astype(np.int16) - (1000 if signed else 0)
    hidden = ((clean.astype(np.int32) & 0x0FFF) | 0x1000).astype(np.uint16)
    files = stack(hidden, BitsStored=12, HighBit=11, PixelRepresentation=int(signed))
    for file in files:
        file.add_new((0x6000, 0x0100), "US", 16)
        file.add_new((0x6000, 0x0102), "US", 12)
    save(files, tmp_path / "in")
    voxels, _ = read_back(tmp_path, only(convert(tmp_path)))
    np.testing.assert_array_equal(voxels, clean.transpose(2, 1, 0))


def test_an_acquisition_number_per_slice_does_not_split(tmp_path):
    save(stack(values(5), each=lambda index: {"AcquisitionNumber": index + 1}), tmp_path / "in")
    assert only(convert(tmp_path)).outcome is Outcome.CONVERTED


@pytest.mark.parametrize(
    "second",
    [
        pytest.param({"orientation": CORONAL}, id="orientations"),
        pytest.param({"PixelSpacing": [1.0, 1.0]}, id="spacings"),
        pytest.param({"SeriesNumber": 6}, id="series-numbers"),
    ],
)
def test_one_uid_with_two_geometries_is_split(tmp_path, second):
    save(stack(values(4), each=lambda _: {"salt": 1}), tmp_path / "in" / "a")
    save(stack(values(5, seed=1), each=lambda _: {"salt": 2}, **second), tmp_path / "in" / "b")
    report = convert(tmp_path)
    assert sorted(entry.size[2] for entry in report.converted) == [4, 5]
    assert not report.anything_refused


def test_sizes_are_split(tmp_path):
    save(stack(values(4), each=lambda _: {"salt": 1}), tmp_path / "in" / "a")
    save(stack(values(4, rows=10), each=lambda _: {"salt": 2}), tmp_path / "in" / "b")
    assert sorted(entry.size[1] for entry in convert(tmp_path).converted) == [6, 10]


def test_stacks_side_by_side_are_split(tmp_path):
    """Whole-body stations, or both breasts: the same heights along the normal, elsewhere in the plane."""
    save(stack(values(4), each=lambda _: {"salt": 1}), tmp_path / "in" / "a")
    save(
        stack(values(4, seed=1), origin=(90.0, 20.0, 30.0), each=lambda _: {"salt": 2}), tmp_path / "in" / "b"
    )
    assert len(convert(tmp_path).converted) == 2


def test_three_planes_of_single_pictures_are_refused(tmp_path):
    for name, orientation in (("a", AXIAL), ("b", CORONAL), ("c", SAGITTAL)):
        save(
            stack(values(1), orientation=orientation, each=lambda _, n=name: {"salt": n}),
            tmp_path / "in" / name,
        )
    assert only(convert(tmp_path)).reasons == (ScanReason.MIXED_ORIENTATION,)


def test_two_slices_are_too_few(tmp_path):
    save(stack(values(2)), tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.TOO_FEW_SLICES,)


def test_report_holds_neither_name_nor_birth_date(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    save(stack(values(3), name="other", PatientID="P-2"), tmp_path / "in" / "other")
    report = convert(tmp_path)
    text = (tmp_path / "out" / "report.json").read_text()
    assert "Never" not in text
    assert "19700101" not in text
    assert "P-1" not in text
    assert {entry.patient for entry in report.series} == {1, 2}
    assert json.loads(text)["finished"] is True


def test_high_throughput_jpeg_2000_is_decoded(tmp_path):
    """A lossless stream of the values ``31 k``, as OpenJPH 0.26.3 writes it."""
    stream = base64.b64decode(
        "/0//UQApQAAAAAAIAAAABgAAAAAAAAAAAAAACAAAAAYAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
        "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAFYAAf+TwAAmcfsFB3QAAADAABLAABMAGgGH"
        "dAA6+AMHdADAABNAABKACsUBAnQAfQACNADAACogABVAnPOgAjACdgDu3bt3wDGBvrYA/9k="
    )
    files = stack(values(3))
    for file in files:
        file.PixelData = encapsulate([stream])
        file["PixelData"].is_undefined_length = True
        file.file_meta.TransferSyntaxUID = HTJ2KLossless
    save(files, tmp_path / "in")
    voxels, _ = read_back(tmp_path, only(convert(tmp_path)))
    np.testing.assert_array_equal(voxels, np.tile(31 * np.arange(48).reshape(6, 8).T[..., None], (1, 1, 3)))
