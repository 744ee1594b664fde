"""Slides opened, and every file that is none."""

import os
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.slides import opening
from client.ingest.slides.wsi import plan_of, tiles_of
from tests.client.ingest.slides.pyramids import (
    BLOCK,
    canvas,
    drawn,
    halved,
    reason_of,
    shrunk,
    write_dicom_level,
    write_pyramid,
)
from tests.data_folder import data_folder


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", ScanReason.EMPTY_FILE, id="empty"),
        pytest.param(b"no slide at all", ScanReason.NOT_A_SLIDE, id="text"),
        pytest.param(b"II*\0\x08\0\0\0", ScanReason.NOT_A_SLIDE, id="head-of-a-tiff"),
        pytest.param(b"II*\0\x08\0\0\0\xff\xff" + b"\x7f" * 90, ScanReason.NOT_A_SLIDE, id="broken-tiff"),
    ],
)
def test_what_is_no_slide_is_refused(tmp_path, content, reason):
    path = tmp_path / "secret-name.svs"
    path.write_bytes(content)
    assert reason_of(path) is reason


def test_missing_file_folder_and_pipe_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    for name in ("nothing.svs", "pipe.svs"):
        assert reason_of(tmp_path / name) is ScanReason.UNREADABLE_FILE
    (tmp_path / "folder.svs").mkdir()
    assert reason_of(tmp_path / "folder.svs") is ScanReason.UNREADABLE_FILE


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "denied"), ScanReason.PERMISSION_DENIED),
        (OSError(5, "input/output error"), ScanReason.UNREADABLE_FILE),
    ],
    ids=["permission", "disk"],
)
def test_what_the_disk_does_not_give_is_refused(tmp_path, monkeypatch, error, reason):
    path = write_pyramid(tmp_path / "a.svs", [canvas(600, 600, (0, 0, 300, 300))], 0.5)

    def refuse(_path, _mode):
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    assert reason_of(path) is reason


def test_slide_whose_pixels_fail_to_decode_is_refused(tmp_path):
    """The level that the plan needs is whole; the tiles lie behind the end of the file."""
    picture = canvas(1024, 1024, (0, 0, 1024, 512))
    path = write_pyramid(tmp_path / "a.svs", [picture, halved(picture, 8)], 0.5)
    content = bytearray(path.read_bytes())
    first = content.index(struct.pack("<HHI", 324, 4, 16))  # where the 16 blocks of level 0 start
    (table,) = struct.unpack_from("<I", content, first + 8)
    struct.pack_into("<16I", content, table, *[len(content) + 1000] * 16)
    path.write_bytes(content)
    with pytest.raises(ScanRefused, match="cut short"):
        plan_of(path)
    assert reason_of(path) is ScanReason.DAMAGED_PIXEL_DATA


def test_impossible_sizes_are_refused_before_memory_is_asked_for(tmp_path, monkeypatch):
    """OpenSlide would end the whole process: it cannot get two terabytes for one stored tile."""
    picture = canvas(512, 512, (0, 0, 512, 200))
    path = write_pyramid(tmp_path / "a.svs", [picture, halved(picture, 2)], 0.5)
    content = path.read_bytes()
    width = struct.pack("<HHII", 322, 4, 1, BLOCK)
    assert content.count(width) == 2
    wide = struct.pack("<HHII", 322, 4, 1, 1_979_711_744)
    (tmp_path / "b.svs").write_bytes(content.replace(width, wide, 1))
    assert reason_of(tmp_path / "b.svs") is ScanReason.DAMAGED_PIXEL_DATA
    for limit in ("LONGEST_SIDE_PX", "LARGEST_LOWEST_LEVEL_PX"):
        with monkeypatch.context() as patch:
            patch.setattr(opening, limit, 500 if limit == "LONGEST_SIDE_PX" else 1000)
            assert reason_of(path) is ScanReason.DAMAGED_PIXEL_DATA


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_slide_that_is_cut_short_is_refused(tmp_path, part):
    path = write_pyramid(tmp_path / "a.svs", [canvas(1024, 1024, (0, 0, 1024, 512))], 0.5)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert reason_of(path) in (ScanReason.NOT_A_SLIDE, ScanReason.DAMAGED_PIXEL_DATA)


def test_plain_tiff_is_a_slide_of_one_level(tmp_path):
    picture = canvas(700, 600, (256, 256, 256, 256))
    Image.fromarray(picture).save(tmp_path / "a.tif")
    slide = tiles_of(tmp_path / "a.tif", fallback_um_px=0.5)
    assert slide.places == ((1, 1),)
    np.testing.assert_array_equal(slide.pixels[0], picture[256:512, 256:512])
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(content[: len(content) // 2])
    assert reason_of(tmp_path / "b.tif", fallback_um_px=0.5) in (
        ScanReason.NOT_A_SLIDE,
        ScanReason.DAMAGED_PIXEL_DATA,
    )


def test_pictures_of_other_kinds_are_no_slides(tmp_path):
    picture = Image.fromarray(canvas(700, 600, (256, 256, 256, 256)))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.jpg")
    picture.convert("L").save(tmp_path / "grey.tif")
    picture.save(tmp_path / "stack.tif", save_all=True, append_images=[picture])
    for name in ("a.png", "a.jpg", "grey.tif", "stack.tif"):
        assert reason_of(tmp_path / name, fallback_um_px=0.5) is ScanReason.NOT_A_SLIDE


def test_oversized_plain_tiff_is_refused(tmp_path, monkeypatch):
    Image.fromarray(canvas(700, 600)).save(tmp_path / "a.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert reason_of(tmp_path / "a.tif", fallback_um_px=0.5) is ScanReason.NOT_A_SLIDE


def test_folder_with_files_is_no_slide(tmp_path):
    (tmp_path / "exam-7").mkdir()
    (tmp_path / "exam-7" / "1.dcm").write_bytes(b"a file")
    assert reason_of(tmp_path / "exam-7") is ScanReason.NOT_A_SLIDE
    with pytest.raises(ScanRefused, match="a folder without a DICOM slide"):
        plan_of(tmp_path / "exam-7")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEG2000])
def test_the_folder_of_a_dicom_slide_is_opened(tmp_path, syntax):
    """Its levels, in any order of names, beside its label and a file that is none of it."""
    fine, folder = drawn(1, 1100, 800), tmp_path / "exam-7"
    write_dicom_level(folder / "a.dcm", fine[:256, :256], 3, (4.0, 4.0), kind="LABEL")
    write_dicom_level(folder / "b.dcm", shrunk(fine, 4), 2, (2.0, 2.0), syntax)
    write_dicom_level(folder / "c.dcm", fine, 1, (0.5, 0.5), syntax)
    (folder / "notes.txt").write_text("no slide")
    slide = tiles_of(folder)
    assert (slide.plan.level, slide.plan.um_px) == (0, (0.5, 0.5))
    for tile, (x, y) in zip(slide, slide.places, strict=True):
        part = fine[y * 256 : y * 256 + 256, x * 256 : x * 256 + 256].astype(int)
        assert np.abs(tile[: part.shape[0], : part.shape[1]] - part).mean() < 4
    assert plan_of(folder / "b.dcm") == slide.plan
    write_dicom_level(folder / "d.dcm", shrunk(fine, 4), 1, (2.0, 2.0), syntax, series="1.2.3.5")
    with pytest.raises(ScanRefused, match="a folder with 2 DICOM slides"):
        plan_of(folder)
    (folder / "c.dcm").write_bytes((folder / "c.dcm").read_bytes()[:5000])
    (folder / "d.dcm").unlink()
    assert reason_of(folder) in (ScanReason.DAMAGED_PIXEL_DATA, ScanReason.NOT_A_SLIDE, ScanReason.TOO_COARSE)


def test_pixels_of_a_dicom_slide_that_are_not_square(tmp_path):
    write_dicom_level(tmp_path / "s" / "a.dcm", drawn(1, 700, 1200), 1, (0.5, 0.25))
    plan = plan_of(tmp_path / "s")
    assert (plan.um_px, plan.region_px) == ((0.5, 0.25), (256, 512))


def test_label_of_a_dicom_slide_is_named_as_such(tmp_path):
    label = pydicom.Dataset()
    label.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    label.SOPInstanceUID = label.SeriesInstanceUID = "1.2.3"
    label.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    label.ensure_file_meta()
    label.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    label.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert reason_of(tmp_path / "a.dcm") is ScanReason.NOT_A_SLIDE
    with pytest.raises(ScanRefused, match="label, overview or thumbnail"):
        plan_of(tmp_path / "a.dcm")


@pytest.mark.data
def test_real_damaged_slide_is_refused():
    assert reason_of(data_folder("wsi") / "broken.svs") is ScanReason.NOT_A_SLIDE
