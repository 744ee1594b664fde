"""Enhanced multi-frame CT and MR, and Siemens mosaics."""

import struct

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from client.ingest.dicom.csa import read_csa
from client.ingest.reasons import Correction, ScanReason
from tests.client.ingest.helpers import convert, only, read_back
from tests.client.ingest.phantoms import (
    AXIAL,
    CORONAL,
    MR,
    OBLIQUE,
    csa_header,
    enhanced,
    expected_affine,
    mosaic,
    save,
    stack,
    uid,
    values,
)

ORIGIN = (-10.0, 20.0, 30.0)


def _at(index, gap_mm=2.0, orientation=AXIAL):
    return np.array(ORIGIN) + np.cross(orientation[:3], orientation[3:]) * index * gap_mm


def test_enhanced_ct_with_per_frame_rescale_and_frames_out_of_order(tmp_path):
    pixels = values(5)
    order = [3, 0, 4, 1, 2]
    slopes = [1.0, 2.0, 0.5, 4.0, 1.5]
    frames = [
        {"position": _at(place), "slope": slopes[place], "intercept": -1000.0 + place} for place in order
    ]
    save([enhanced(pixels[order], frames, "CT", {"orientation": AXIAL})], tmp_path / "in")
    voxels, affine = read_back(tmp_path, only(convert(tmp_path)))
    expected = pixels * np.array(slopes)[:, None, None] + (np.arange(5) - 1000)[:, None, None]
    np.testing.assert_allclose(voxels, expected.transpose(2, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(affine, expected_affine(AXIAL, ORIGIN, 2.0), atol=1e-4)


def test_enhanced_mr_oblique_with_shared_rescale(tmp_path):
    pixels = values(4)
    frames = [{"position": _at(index, 2.0, OBLIQUE), "orientation": OBLIQUE} for index in range(4)]
    save([enhanced(pixels, frames, "MR", {"slope": 2.0, "intercept": 1.0})], tmp_path / "in")
    voxels, affine = read_back(tmp_path, only(convert(tmp_path)))
    assert voxels.dtype == np.int16
    np.testing.assert_array_equal(voxels, pixels.transpose(2, 1, 0) * 2 + 1)
    np.testing.assert_allclose(affine, expected_affine(OBLIQUE, ORIGIN, 2.0), atol=1e-4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"stack": "1"}, {"stack": "2"}, id="stacks"),
        pytest.param({"time": 1}, {"time": 2}, id="times"),
        pytest.param({"echo": 2.3}, {"echo": 4.6}, id="echoes"),
        pytest.param({"b": 0.0}, {"b": 1000.0}, id="b-values"),
        pytest.param(
            {"kind": ["ORIGINAL", "PRIMARY", "M", "NONE"]},
            {"kind": ["ORIGINAL", "PRIMARY", "P", "NONE"]},
            id="frame-types",
        ),
    ],
)
def test_enhanced_frames_at_one_place_are_put_apart(tmp_path, one, other):
    pixels = values(8)
    frames = [{"position": _at(index // 2), **(one, other)[index % 2]} for index in range(8)]  # interleaved
    save([enhanced(pixels, frames, "MR", {"orientation": AXIAL})], tmp_path / "in")
    report = convert(tmp_path)
    assert [entry.corrections for entry in report.series] == [(Correction.ENHANCED_SPLIT,)] * 2
    for entry, part in zip(report.series, (pixels[::2], pixels[1::2]), strict=True):
        np.testing.assert_array_equal(read_back(tmp_path, entry)[0], part.transpose(2, 1, 0))


def test_enhanced_stacks_of_two_orientations(tmp_path):
    pixels = values(7)
    frames = [{"position": _at(i), "orientation": AXIAL, "stack": "1"} for i in range(4)]
    frames += [{"position": _at(i, 3.0, CORONAL), "orientation": CORONAL, "stack": "2"} for i in range(3)]
    save([enhanced(pixels, frames)], tmp_path / "in")
    planes = {entry.plane: entry for entry in convert(tmp_path).converted}
    assert set(planes) == {"axial", "coronal"}
    np.testing.assert_array_equal(read_back(tmp_path, planes["coronal"])[0], pixels[4:].transpose(2, 1, 0))


def test_enhanced_film_is_four_dimensional(tmp_path):
    pixels = values(30)
    frames = [{"position": _at(index % 3), "time": index // 3 + 1} for index in range(30)]
    save([enhanced(pixels, frames, "MR", {"orientation": AXIAL})], tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.FOUR_DIMENSIONAL,)


@pytest.mark.parametrize(("compressed", "times"), [(False, 1), (True, 2)])
def test_a_file_of_many_frames_is_parsed_no_oftener_than_one_of_few(tmp_path, monkeypatch, compressed, times):
    opened = []
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **more: opened.append(1) or read(*args, **more))
    counts = []
    for n_repeats in (2, 20):
        frames = [{"position": _at(index)} for index in range(3) for _ in range(n_repeats)]
        folder = tmp_path / str(n_repeats)
        file = enhanced(values(len(frames)), frames, "MR", {"orientation": AXIAL})
        if compressed:
            file.compress(RLELossless)
        save([file], folder / "in")
        opened.clear()
        assert only(convert(folder)).reasons == (ScanReason.FOUR_DIMENSIONAL,)
        counts.append(len(opened))
    assert counts == [times, times]  # for the header, and to tell copies apart if they must be decoded


def test_enhanced_volume_in_several_files(tmp_path):
    pixels = values(6)
    for half in range(2):
        frames = [{"position": _at(3 * half + index)} for index in range(3)]
        file = enhanced(pixels[3 * half : 3 * half + 3], frames, "CT", {"orientation": AXIAL})
        file.SOPInstanceUID = uid(half)
        save([file], tmp_path / "in" / str(half))
    entry = only(convert(tmp_path))
    assert (entry.n_files, entry.n_frames) == (2, 6)
    np.testing.assert_array_equal(read_back(tmp_path, entry)[0], pixels.transpose(2, 1, 0))


def test_enhanced_without_geometry_is_refused(tmp_path):
    save([enhanced(values(3), [{}, {}, {}])], tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.NO_GEOMETRY,)


@pytest.mark.parametrize(("sign", "orientation"), [(1, AXIAL), (-1, AXIAL), (1, OBLIQUE)])
def test_mosaic_becomes_the_volume_it_shows(tmp_path, sign, orientation):
    volume = values(7)  # nine places, two of them empty
    normal = sign * np.cross(orientation[:3], orientation[3:])
    save([mosaic(volume, ORIGIN, normal, ImageOrientationPatient=orientation)], tmp_path / "in")
    entry = only(convert(tmp_path))
    voxels, affine = read_back(tmp_path, entry)
    assert entry.corrections == (Correction.MOSAIC,)
    np.testing.assert_array_equal(voxels, volume.transpose(2, 1, 0))
    np.testing.assert_allclose(affine, expected_affine(orientation, ORIGIN, sign * 3.5), atol=1e-4)


def test_mosaic_without_direction_is_refused(tmp_path):
    save([mosaic(values(7), ORIGIN, None)], tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.MOSAIC_WITHOUT_LAYOUT,)


def test_mosaic_without_gap_is_refused(tmp_path):
    save([mosaic(values(7), ORIGIN, (0, 0, 1), gap_mm=None)], tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.MOSAIC_WITHOUT_LAYOUT,)


def test_mosaics_in_time_are_four_dimensional(tmp_path):
    files = [mosaic(values(4, seed=time), ORIGIN, (0, 0, 1), AcquisitionNumber=time + 1) for time in range(2)]
    save(files, tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.FOUR_DIMENSIONAL,)


def test_csa_header_is_read_and_rubbish_is_not():
    header = csa_header(NumberOfImagesInMosaic=["35"], SliceNormalVector=["0.0", "0.6", "0.8"])
    assert read_csa(header) == {"NumberOfImagesInMosaic": ("35",), "SliceNormalVector": ("0.0", "0.6", "0.8")}
    assert read_csa(header[:-60]) == {}
    assert read_csa(b"SV10\x04\x03\x02\x01\xff\xff\xff\xff") == {}


def test_csa_header_of_the_first_version_is_read():
    """Its lengths count from the number of items of the first element; it does not begin with SV10."""
    elements = {"EchoLinePosition": ["1", "22", "333"], "NumberOfImagesInMosaic": ["35"], "B_value": []}
    header = struct.pack("<II", len(elements), 77)
    for name, items in elements.items():
        header += struct.pack("<64si4siii", name.encode(), 0, b"IS", 6, len(items), 77)
        for item in items:
            length = len(item) + 1
            header += struct.pack("<4i", length + 3, length, 77, length)
            header += item.encode().ljust(-(-length // 4) * 4, b"\0")
    assert read_csa(header) == {name: tuple(items) for name, items in elements.items()}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"normal": (1, 0, 0)}, ScanReason.MOSAIC_WITHOUT_LAYOUT, id="normal-in-the-plane"),
        pytest.param({"normal": (0, 0, 1), "n_tiles": "40"}, ScanReason.MOSAIC_WITHOUT_LAYOUT, id="too-many"),
        pytest.param({"normal": (0, 0, 1), "n_tiles": "?"}, ScanReason.MOSAIC_WITHOUT_LAYOUT, id="no-number"),
    ],
)
def test_mosaics_that_contradict_themselves(tmp_path, fields, reason):
    file = mosaic(values(7), ORIGIN, fields["normal"])
    if "n_tiles" in fields:
        elements = {"NumberOfImagesInMosaic": [fields["n_tiles"]], "SliceNormalVector": ["0", "0", "1"]}
        file.private_block(0x0029, "SIEMENS CSA HEADER")[0x10].value = csa_header(**elements)
    save([file], tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (reason,)


def test_echoes_of_mosaics_are_split(tmp_path):
    files = [mosaic(values(4, seed=echo), ORIGIN, (0, 0, 1), EchoTime=10 * echo) for echo in (1, 2)]
    save(files, tmp_path / "in")
    assert len(convert(tmp_path).converted) == 2


def test_a_plain_series_of_another_modality_with_geometry_is_taken(tmp_path):
    save(stack(values(4), SOPClassUID=MR, Modality="MR"), tmp_path / "in")
    assert only(convert(tmp_path)).modality == "MR"


@pytest.mark.parametrize("lost", [("slope",), ("intercept",), ("slope", "intercept")])
def test_a_frame_whose_scale_is_lost_stops_the_volume(tmp_path, lost):
    frames = [{"position": _at(place), "slope": 2.0, "intercept": -1000.0} for place in range(5)]
    for name in lost:
        del frames[3][name]
    save([enhanced(values(5), frames, "CT", {"orientation": AXIAL})], tmp_path / "in")
    assert only(convert(tmp_path)).reasons == (ScanReason.UNCLEAR_SCALING,)
