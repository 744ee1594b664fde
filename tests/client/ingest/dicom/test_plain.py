"""Pixels read from their place in the file are those that pydicom reads; it reads what is unusual."""

from dataclasses import replace

import numpy as np
import pytest
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from client.ingest.dicom.pixels import stored_values
from client.ingest.dicom.reader import read_frames
from client.ingest.reasons import ScanReason, ScanRefused
from tests.client.ingest.phantoms import enhanced, picture, save, values


def _written(file, folder):
    save([file], folder)
    return read_frames(folder / "000.dcm")


def _kind(kind, stored=None):
    """A picture with values of all sizes of a type."""
    ends = np.iinfo(kind)
    pixels = np.random.default_rng(0).integers(ends.min, ends.max, (6, 8), dtype=kind, endpoint=True)
    bits = pixels.itemsize * 8
    return picture(pixels, BitsAllocated=bits, BitsStored=stored or bits, HighBit=(stored or bits) - 1)


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("u1", None), ("i1", None), ("u2", None), ("u2", 12), ("i2", 12), ("i2", None), ("u4", None)],
)
@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
def test_plain_pixels_are_those_of_pydicom(tmp_path, kind, stored, implicit):
    file = _kind(kind, stored)
    if implicit:
        file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    (frame,) = _written(file, tmp_path)
    assert frame.file.plain is not None
    slow = replace(frame, file=replace(frame.file, plain=None))
    ((_, ours),) = stored_values([frame])
    ((_, theirs),) = stored_values([slow])
    assert ours.dtype == theirs.dtype == np.dtype(kind)
    np.testing.assert_array_equal(ours, theirs)


def test_each_frame_of_a_file_is_read_from_its_place(tmp_path):
    pixels = values(5)
    frames = _written(enhanced(pixels, [{"position": np.array([0.0, 0.0, k])} for k in range(5)]), tmp_path)
    assert frames[0].file.plain is not None
    chosen = [frames[3], frames[0]]
    for place, found in stored_values(chosen):
        np.testing.assert_array_equal(found, pixels[chosen[place].index])


def _compressed(file):
    file.compress(RLELossless)


def _set(**fields):
    def change(file):
        for keyword, value in fields.items():
            setattr(file, keyword, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _compressed,
        _set(PhotometricInterpretation="PALETTE COLOR"),
        _set(Rows=7),  # more than there are
        _set(BitsStored=17),
        _set(PixelRepresentation=2),
    ],
)
def test_what_is_unusual_is_left_to_pydicom(tmp_path, change):
    file = picture(values(1)[0])
    change(file)
    (frame,) = _written(file, tmp_path)
    assert frame.file.plain is None


def test_a_file_that_was_cut_after_the_scan_is_refused(tmp_path):
    (frame,) = _written(picture(values(1)[0]), tmp_path)
    frame.file.path.write_bytes(frame.file.path.read_bytes()[:-1])
    with pytest.raises(ScanRefused) as refused:
        list(stored_values([frame]))
    assert refused.value.reason is ScanReason.TRUNCATED_PIXEL_DATA


def test_a_file_that_went_after_the_scan_is_refused(tmp_path):
    (frame,) = _written(picture(values(1)[0]), tmp_path)
    frame.file.path.unlink()
    with pytest.raises(ScanRefused):
        list(stored_values([frame]))
