"""Every series of the shared data: what becomes of it, and how far it is from the reference conversion.

Tolerance: voxels equal and affine within 1e-3 mm, both compared in world space (each reoriented to RAS). The
tilted series is resampled: there one unit of rounding is allowed.
"""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest

from client.ingest.convert import convert_folder
from client.ingest.nifti import read_nifti
from client.ingest.reasons import Correction, ScanReason
from tests.data_folder import data_folder

pytestmark = [pytest.mark.data, pytest.mark.slow]

AFFINE_MM = 1e-3


@dataclass(frozen=True)
class Expected:
    """One line of the table."""

    folder: str
    series: int
    reasons: tuple[ScanReason, ...] = ()
    corrections: tuple[Correction, ...] = ()
    output: str = ""
    reference: str = ""
    size: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    plane: str = ""
    voxel_units: int = 0


TABLE = [
    Expected(
        folder="ct_ge_tilt_varspacing",
        series=2,
        corrections=(Correction.TILT, Correction.UNEVEN_GAPS),
        output="2_series.nii.gz",
        reference="2__Tilt_Eq_1.nii.gz",
        size=(512, 611, 56),
        spacing_mm=(0.48828, 0.48828, 2.61979),
        plane="axial",
        voxel_units=1,
    ),
    Expected(
        folder="ct_philips_axial5mm",
        series=201,
        output="201_std-brain-5mm.nii.gz",
        reference="201_STD_BRAIN_5MM.nii.gz",
        size=(512, 512, 28),
        spacing_mm=(0.45117, 0.45117, 5.0),
        plane="axial",
    ),
    Expected(folder="ct_philips_localizer", series=100, reasons=(ScanReason.LOCALIZER,)),
    Expected(
        folder="ct_philips_summary_mixed",
        series=401,
        reasons=(ScanReason.SECONDARY_CAPTURE, ScanReason.LOCALIZER, ScanReason.COLOUR),
    ),
    Expected(folder="mr_ge_fmri4d", series=4, reasons=(ScanReason.FOUR_DIMENSIONAL,)),
    Expected(
        folder="mr_siemens_mprage",
        series=19,
        output="19_t1-mpragecr-nograppa.nii.gz",
        reference="19_t1_MPRAGEcr_noGRAPPA.nii.gz",
        size=(256, 256, 176),
        spacing_mm=(1.0, 1.0, 1.0),
        plane="sagittal",
    ),
    *(
        Expected(
            folder="mr_transfer_syntaxes",
            series=number,
            corrections=(Correction.MOSAIC,),
            output=f"{number}_ax-asc-35sl.nii.gz",
            reference=f"{number}_ax_asc_35sl.nii.gz",
            size=(64, 64, 35),
            spacing_mm=(3.25, 3.25, 3.6),
            plane="axial",
        )
        for number in range(1, 10)
    ),
]


@pytest.fixture(scope="module")
def conversion(tmp_path_factory):
    """Convert each folder once."""
    reports = {}

    def convert_once(folder):
        if folder not in reports:
            out = tmp_path_factory.mktemp(folder)
            reports[folder] = (convert_folder(data_folder("dicom") / folder / "in", out), out)
        return reports[folder]

    return convert_once


def _canonical(path):
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj).astype(np.int32), image.affine


@pytest.mark.parametrize(
    "expected", [pytest.param(line, id=f"{line.folder}-{line.series}") for line in TABLE]
)
def test_series(conversion, expected):
    report, out = conversion(expected.folder)
    (entry,) = [entry for entry in report.series if entry.series_number == expected.series]
    assert (entry.reasons, entry.corrections) == (expected.reasons, expected.corrections)
    if expected.reasons:
        assert entry.output is None
        return
    assert (entry.output, entry.size, entry.plane) == (expected.output, expected.size, expected.plane)
    assert entry.spacing_mm == pytest.approx(expected.spacing_mm, abs=1e-4)
    ours, affine = _canonical(out / entry.output)
    theirs, reference = _canonical(
        data_folder("dicom") / expected.folder / "ref_dcm2niix" / expected.reference
    )
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= expected.voxel_units
    assert (
        np.count_nonzero(ours != theirs) <= 2e-4 * ours.size * expected.voxel_units
    )  # ties of rounding, no more
    np.testing.assert_allclose(affine, reference, rtol=0, atol=AFFINE_MM)


def test_nothing_else_is_found(conversion):
    found = [
        (folder, e.series_number)
        for folder in {e.folder for e in TABLE}
        for e in conversion(folder)[0].series
    ]
    assert sorted(found) == sorted((line.folder, line.series) for line in TABLE)


@pytest.mark.parametrize(
    ("folder", "ignored"),
    [
        ("mr_siemens_mprage", ScanReason.NOT_DICOM),
        ("mr_ge_fmri4d", ScanReason.NOT_DICOM),
        ("ct_philips_axial5mm", ScanReason.DICOMDIR),
    ],
)
def test_stray_files_are_listed(conversion, folder, ignored):
    assert [file.reason for file in conversion(folder)[0].ignored] == [ignored]


def test_philips_ct_is_in_hounsfield_units(conversion):
    report, out = conversion("ct_philips_axial5mm")
    voxels = read_nifti(out / report.converted[0].output).voxels
    assert (int(voxels.min()), int(voxels.max())) == (-1024, 782)


def test_nine_transfer_syntaxes_hold_one_picture(conversion):
    report, out = conversion("mr_transfer_syntaxes")
    assert len(report.converted) == 9
    first, *others = (read_nifti(out / entry.output) for entry in report.converted)
    for other in others:
        np.testing.assert_array_equal(first.voxels, other.voxels)
        np.testing.assert_array_equal(first.affine_mm, other.affine_mm)


@pytest.mark.parametrize("name", ["chris_t1", "chris_PD", "chris_MRA", "M2208_T2w", "T2w", "CT_pitch"])
def test_real_nifti(name):
    path = data_folder("nifti") / f"{name}.nii.gz"
    volume = read_nifti(path)
    image = nib.load(path)
    np.testing.assert_array_equal(volume.voxels, image.get_fdata())
    np.testing.assert_array_equal(volume.affine_mm, image.affine)
