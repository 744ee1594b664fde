"""What is no volume, and files that are broken: each has its reason and none stops the others."""

import gc
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from client.ingest.dicom import pixels as pixels_module
from client.ingest.reasons import ScanReason, explain
from client.ingest.report import Outcome
from tests.client.ingest.helpers import convert, only, read_back
from tests.client.ingest.phantoms import MR, picture, save, stack, uid, values

SR = "1.2.840.10008.5.1.4.1.1.88.22"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
STORAGE = "1.2.840.10008.5.1.4.1.1."


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        pytest.param(
            {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, ScanReason.LOCALIZER, id="localizer"
        ),
        pytest.param(
            {"SeriesDescription": "3-PLANE LOC"}, ScanReason.LOCALIZER, id="localizer-by-description"
        ),
        pytest.param({"SeriesDescription": "AAHead_Scout"}, ScanReason.LOCALIZER, id="scout"),
        pytest.param({"SOPClassUID": CAPTURE}, ScanReason.SECONDARY_CAPTURE, id="capture"),
        pytest.param({"SOPClassUID": CAPTURE + ".2"}, ScanReason.SECONDARY_CAPTURE, id="capture-multi-frame"),
        pytest.param(
            {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
            ScanReason.SECONDARY_CAPTURE,
            id="ge-screen-save",
        ),
        pytest.param({"PhotometricInterpretation": "PALETTE COLOR"}, ScanReason.COLOUR, id="palette"),
        pytest.param({"ImagePositionPatient": None}, ScanReason.NO_GEOMETRY, id="no-position"),
        pytest.param({"ImageOrientationPatient": [0.0] * 6}, ScanReason.NO_GEOMETRY, id="zero-orientation"),
        pytest.param({"PixelSpacing": None}, ScanReason.NO_GEOMETRY, id="no-spacing"),
        pytest.param({"PixelSpacing": [0.0, 0.0]}, ScanReason.NO_GEOMETRY, id="zero-spacing"),
        pytest.param(
            {"SOPClassUID": STORAGE + "66.4", "Modality": "SEG"}, ScanReason.DERIVED_OBJECT, id="segmentation"
        ),
        pytest.param(
            {"SOPClassUID": STORAGE + "481.2", "Modality": "RTDOSE"}, ScanReason.DERIVED_OBJECT, id="dose"
        ),
        pytest.param(
            {"SOPClassUID": STORAGE + "11.1", "Modality": "PR"}, ScanReason.DERIVED_OBJECT, id="presentation"
        ),
    ],
)
def test_series_that_are_no_volume(tmp_path, more, reason):
    save(stack(values(4), **more), tmp_path / "in")
    entry = only(convert(tmp_path))
    assert (entry.outcome, entry.reasons[0]) == (Outcome.REFUSED, reason)
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "report.json"]


def test_colour(tmp_path):
    files = stack(
        values(4), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8
    )
    save(files, tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.COLOUR,)


def test_report_object_without_pixels(tmp_path):
    report = picture(values(1)[0], SOPClassUID=SR, Modality="SR", Rows=None, Columns=None)
    del report.PixelData
    save([report], tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.DERIVED_OBJECT,)


def test_image_object_without_pixels(tmp_path):
    files = stack(values(3))
    for file in files:
        del file.PixelData
    save(files, tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.NO_PIXELS,)


def test_captures_within_a_series_do_not_spoil_it(tmp_path):
    save(stack(values(4)), tmp_path / "in")
    page = picture(values(1, rows=20)[0], index=50, SOPClassUID=CAPTURE, ImagePositionPatient=None)
    save([page], tmp_path / "in" / "page")
    report = convert(tmp_path)
    assert [(entry.outcome, entry.reasons) for entry in report.series] == [
        (Outcome.CONVERTED, ()),
        (Outcome.REFUSED, (ScanReason.SECONDARY_CAPTURE,)),
    ]


@pytest.mark.parametrize("cut", [1, 40, 96])
def test_truncated_pixel_data(tmp_path, cut):
    save(stack(values(4)), tmp_path / "in")
    path = tmp_path / "in" / "001.dcm"
    path.write_bytes(path.read_bytes()[:-cut])
    assert only(convert(tmp_path)).reasons == (ScanReason.TRUNCATED_PIXEL_DATA,)


def test_pixel_data_shorter_than_rows_and_columns(tmp_path):
    files = stack(values(4))
    files[2].PixelData = files[2].PixelData[:50]
    save(files, tmp_path / "in")
    entry = only(convert(tmp_path))
    assert (entry.reasons, entry.detail) == ((ScanReason.TRUNCATED_PIXEL_DATA,), "50 of 96 bytes.")


@pytest.mark.parametrize("cut", [9, 30])
def test_truncated_compressed_data(tmp_path, cut):
    files = stack(values(4))
    for file in files:
        file.compress(RLELossless, generate_instance_uid=False)
    save(files, tmp_path / "in")
    path = tmp_path / "in" / "003.dcm"
    path.write_bytes(path.read_bytes()[:-cut])
    assert only(convert(tmp_path)).reasons == (ScanReason.TRUNCATED_PIXEL_DATA,)


def test_compressed_picture_that_breaks_off_inside(tmp_path):
    files = stack(values(4))
    for file in files:
        file.compress(RLELossless, generate_instance_uid=False)
    save(files, tmp_path / "in")
    for file in files:
        file.file_meta.TransferSyntaxUID = JPEGLSLossless  # these bytes are no JPEG-LS and have no end
    save(files, tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.TRUNCATED_PIXEL_DATA,)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_transfer_syntaxes_that_need_no_codec(tmp_path, syntax):
    pixels = values(3)
    for index, file in enumerate(stack(pixels)):
        if syntax == RLELossless:
            file.compress(syntax, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            file.PixelData = pixels[index].astype(">u2").tobytes()
        file.file_meta.TransferSyntaxUID = syntax
        (tmp_path / "in").mkdir(exist_ok=True)
        dcmwrite(tmp_path / "in" / str(index), file)
    voxels, _ = read_back(tmp_path, only(convert(tmp_path)))
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0))


def test_unknown_transfer_syntax(tmp_path):
    save(stack(values(4)), tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"))
    assert only(convert(tmp_path)).reasons == (ScanReason.UNKNOWN_TRANSFER_SYNTAX,)


def test_transfer_syntax_without_a_codec_is_named(tmp_path):
    files = stack(values(4))
    for file in files:
        file.compress(RLELossless, generate_instance_uid=False)
        file.file_meta.TransferSyntaxUID = MPEG2MPML
    save(files, tmp_path / "in")
    entry = only(convert(tmp_path))
    assert entry.reasons == (ScanReason.NO_DECODER,)
    assert "MPEG2" in entry.detail


def test_codec_that_is_not_installed_is_named(tmp_path, monkeypatch):
    class Absent:
        is_available = False
        missing_dependencies = ("gdcm - requires gdcm>=3.0.10",)

    monkeypatch.setattr(pixels_module, "get_decoder", lambda _uid: Absent())
    files = stack(values(4))
    for file in files:
        file.compress(RLELossless, generate_instance_uid=False)
    save(files, tmp_path / "in")
    entry = only(convert(tmp_path))
    assert entry.reasons == (ScanReason.NO_DECODER,)
    assert "gdcm" in entry.detail


def test_stray_files_are_listed_and_do_no_harm(tmp_path):
    folder = tmp_path / "in"
    save(stack(values(4)), folder / "deep" / "er")
    (folder / "empty").write_bytes(b"")
    (folder / "notes.dcm").write_text("a text that calls itself DICOM")
    (folder / "short").write_bytes(b"\x08\x00")
    (folder / "picture.jpg").write_bytes(b"\xff\xd8\xff" * 100)
    (folder / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM\x02\x00")
    (folder / "almost").write_bytes(b"\x08\x00\x05\x00" + b"nonsense" * 40)
    report = convert(tmp_path)
    reasons = {file.path: file.reason for file in report.ignored}
    assert reasons == {
        "empty": ScanReason.EMPTY_FILE,
        "notes.dcm": ScanReason.NOT_DICOM,
        "short": ScanReason.NOT_DICOM,
        "picture.jpg": ScanReason.NOT_DICOM,
        "cut.dcm": ScanReason.UNREADABLE_FILE,
        "almost": reasons["almost"],
    }
    assert reasons["almost"] in (ScanReason.NOT_DICOM, ScanReason.UNREADABLE_FILE)
    assert len(report.converted) == 1
    assert report.anything_refused  # two files may have held a scan


def test_dicomdir_is_no_scan_and_no_loss(tmp_path):
    save(
        stack(values(4), StudyDate="20200101", StudyTime="120000", StudyID="1", PatientSex="O"),
        tmp_path / "loose",
    )
    files = FileSet()
    for path in sorted((tmp_path / "loose").iterdir()):
        files.add(path)
    files.write(tmp_path / "in")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # pydicom leaves the removal of its folder to the collector
        del files
        gc.collect()
    report = convert(tmp_path)
    assert [(file.path, file.reason) for file in report.ignored] == [("DICOMDIR", ScanReason.DICOMDIR)]
    assert len(report.converted) == 1
    assert not report.anything_refused


def test_header_without_preamble_is_read(tmp_path):
    pixels = values(3)
    folder = tmp_path / "in"
    folder.mkdir()
    for index, file in enumerate(stack(pixels)):
        plain = Dataset(file)
        plain.save_as(folder / str(index), implicit_vr=True, little_endian=True, enforce_file_format=False)
        whole = (folder / str(index)).read_bytes()
        assert whole[128:132] != b"DICM"
    voxels, _ = read_back(tmp_path, only(convert(tmp_path)))
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied_by_the_system(tmp_path):
    save(stack(values(4)), tmp_path / "in")
    (tmp_path / "in" / "000.dcm").chmod(0)
    assert [file.reason for file in convert(tmp_path).ignored] == [ScanReason.PERMISSION_DENIED]


def test_permission_denied_is_listed(tmp_path, monkeypatch):
    save(stack(values(4)), tmp_path / "in")
    (tmp_path / "in" / "secret").write_bytes(b"?")
    opened = Path.open

    def refuse(path, *arguments: object, **keywords: object):
        if path.name == "secret":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", refuse)
    report = convert(tmp_path)
    assert [(file.path, file.reason) for file in report.ignored] == [("secret", ScanReason.PERMISSION_DENIED)]
    assert len(report.converted) == 1


def test_named_pipe_does_not_block(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    os.mkfifo(tmp_path / "in" / "pipe")
    assert len(convert(tmp_path).converted) == 1


def test_broken_values_in_the_header_are_absent_ones(tmp_path):
    files = stack(values(3), SOPClassUID=MR, Modality="MR", SliceThickness=2.75)
    save(files, tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(path.read_bytes().replace(b"2.75", b"abcd"))  # SliceThickness
    assert only(convert(tmp_path)).outcome is Outcome.CONVERTED


def test_series_without_number_and_description_still_have_a_name(tmp_path):
    save(stack(values(3), SeriesNumber=None, SeriesDescription=None), tmp_path / "in")
    assert only(convert(tmp_path)).output == "0_series.nii.gz"


def test_every_code_has_its_sentence():
    for reason in set(ScanReason) - {ScanReason.OTHER}:  # whose detail is the sentence
        assert explain(reason).endswith(".")
    assert uid("a") == uid("a")
