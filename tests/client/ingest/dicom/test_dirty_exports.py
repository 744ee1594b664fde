"""Exports in which identity, scale or order was lost: volumes of one scan each, or a reason.

Each row was woven into one wrong volume, scaled wrongly or refused for a reason that does not help before.
"""

import math

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from client.ingest.reasons import Correction, ScanReason
from client.ingest.report import Outcome
from tests.client.ingest.helpers import convert, read_back
from tests.client.ingest.phantoms import picture, save, stack

N = 8
BLANK = {"SeriesInstanceUID": "", "StudyInstanceUID": "", "PatientID": "", "FrameOfReferenceUID": ""}
NO_RESCALE = {"RescaleSlope": None, "RescaleIntercept": None}
CONSTANT = {"SeriesInstanceUID": "1.2.3.4.5", "StudyInstanceUID": "1.2.3.4", "PatientID": "ANON"}


def scan(level, start=0.0, salt="", gap_mm=5.0, number=N, **more):
    """Slices whose values rise gently, so that neighbours are alike: ``level + 2 z + column``."""
    places = [start + gap_mm * index for index in range(number)]
    pixels = [level + 2 * round(z) + np.arange(8) + np.zeros((6, 1)) for z in places]
    facts = {"SliceThickness": gap_mm, "salt": salt, "RescaleSlope": 1, "RescaleIntercept": -1024, **more}
    return stack(np.array(pixels, np.uint16), origin=(0.0, 0.0, 0.0), places=places, **facts)


def without(files, indices, *keywords):
    """The same files, some of them without some elements."""
    for index in indices:
        for keyword in keywords:
            delattr(files[index], keyword)
    return files


def with_values(file, **values):
    """The same file with other values of some elements."""
    for keyword, value in values.items():
        setattr(file, keyword, value)
    return file


def twice(differing, between=2.5, **common):
    """Two scans under one identity, the second half a step further."""
    return scan(0, salt="a", **common) + scan(900, between, salt="b", **common, **differing)


def with_table(files):
    for file in files:
        table = Dataset()
        table.LUTDescriptor, table.LUTData = [2, 0, 16], b"\0\0\1\0"
        file.ModalityLUTSequence = [table]
    return files


def philips(own, **more):
    files = scan(
        0, Modality="MR", Manufacturer="Philips", **{"RescaleSlope": 2, "RescaleIntercept": -10, **more}
    )
    for file in files if own else ():
        file.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", own)
    return files


def mapped(files, *slopes):
    """Files with real-world mappings."""
    for file in files:
        file.RealWorldValueMappingSequence = [Dataset() for _ in slopes]
        for item, slope in zip(file.RealWorldValueMappingSequence, slopes, strict=True):
            item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, -10.0
    return files


REFUSED = {
    "blank-uids-interleaved": (twice({}, **BLANK), [ScanReason.NO_IDENTITY]),
    "blank-uids-stacked": (twice({}, 5.0 * N, **BLANK), [ScanReason.NO_IDENTITY]),
    "a-mere-root-as-uid": (scan(0, SeriesInstanceUID="1.2.3"), [ScanReason.NO_IDENTITY]),
    "zeros-as-uid": (scan(0, SeriesInstanceUID="0.0.0.0.0"), [ScanReason.NO_IDENTITY]),
    "nothing-differs-but-the-pictures": (twice({}, **CONSTANT), [ScanReason.CONFLICTING_SLICES]),
    "nothing-differs-but-the-pictures-of-three": (
        [
            file
            for part, salt in enumerate("abc")
            for file in scan(600 * part, 2.0 * part, salt, gap_mm=6.0, **CONSTANT)
        ],
        [ScanReason.CONFLICTING_SLICES],
    ),
    "one-digit-as-uid": (scan(0, SeriesInstanceUID="9.9.9.9.9"), [ScanReason.NO_IDENTITY]),
    "a-patient-per-slice": (
        [with_values(file, PatientID=f"P{index}") for index, file in enumerate(scan(0))],
        [ScanReason.UID_PER_SLICE],
    ),
    "slices-of-two-units": (
        scan(0, number=4, RescaleType="HU") + scan(40, 20.0, "b", number=4, RescaleType="US"),
        [ScanReason.UNCLEAR_SCALING],
    ),
    "some-slices-without-a-scale": (
        without(scan(0), (2, 5), "RescaleSlope", "RescaleIntercept"),
        [ScanReason.UNCLEAR_SCALING],
    ),
    "a-slope-of-zero": (scan(0, RescaleSlope=0), [ScanReason.UNCLEAR_SCALING]),
    "a-lookup-table": (with_table(scan(0)), [ScanReason.UNCLEAR_SCALING]),
    "a-uid-per-slice": (
        [
            picture(file.pixel_array, f"own {index}", index, ImagePositionPatient=[0.0, 0.0, 5.0 * index])
            for index, file in enumerate(scan(0))
        ],
        [ScanReason.UID_PER_SLICE],
    ),
    "a-lossy-copy-of-every-slice": (
        scan(0) + scan(3, salt="copy", LossyImageCompression="01"),
        [ScanReason.CONFLICTING_SLICES],
    ),
    "a-scale-of-two-values": (scan(0, RescaleSlope=[1, 2]), [ScanReason.UNCLEAR_SCALING]),
    "a-scale-beyond-all-numbers": (scan(0, RescaleSlope="1e300"), [ScanReason.UNCLEAR_SCALING]),
    "no-slope-anywhere": (without(scan(0), range(N), "RescaleSlope"), [ScanReason.UNCLEAR_SCALING]),
    "some-slices-without-an-intercept": (
        without(scan(0), (2, 5), "RescaleIntercept"),
        [ScanReason.UNCLEAR_SCALING],
    ),
    "some-slices-without-a-slope": (without(scan(0), (2, 5), "RescaleSlope"), [ScanReason.UNCLEAR_SCALING]),
    "philips-some-slices-without-rescale": (
        without(philips(0.004), (2, 5), "RescaleSlope", "RescaleIntercept"),
        [ScanReason.UNCLEAR_SCALING],
    ),
    "philips-some-slices-without-its-own": (
        philips(0.004)[:5] + philips(None)[5:],
        [ScanReason.UNCLEAR_SCALING],
    ),
    "philips-own-slope-is-no-number": (philips(math.nan), [ScanReason.UNCLEAR_SCALING]),
    "philips-own-slope-of-two-values": (philips([0.004, 0.005]), [ScanReason.UNCLEAR_SCALING]),
    "philips-two-mappings": (mapped(philips(None, **NO_RESCALE), 2.0, 3.0), [ScanReason.UNCLEAR_SCALING]),
    "a-b0-map-and-its-magnitude": (
        [
            file
            for salt in "ab"
            for file in scan(ord(salt), salt=salt, Modality="MR", Manufacturer="GE MEDICAL")
        ],
        [ScanReason.CONFLICTING_SLICES],
    ),
    "three-planes-by-description": (
        scan(0, number=5, SeriesDescription="3-Plane Loc"),
        [ScanReason.LOCALIZER],
    ),
}
SPLIT = {
    "frame-of-reference": {"FrameOfReferenceUID": "1.2.3.5.77"},
    "study-date": {"StudyDate": "20200202"},
    "patient-name": {"PatientName": "Other"},
    "birth-date": {"PatientBirthDate": "19500505"},
    "contrast-agent": {"ContrastBolusAgent": "iodine"},
    "age": {"PatientAge": "070Y"},
    "station": {"StationName": "two"},
    "acquisition-date": {"AcquisitionDate": "20200103"},
    "acquisition": {"AcquisitionNumber": 2},
    "acquisition-time": {"AcquisitionTime": "111111.5"},
    "series-time": {"SeriesTime": "111111.5"},
    "image-type": {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]},
    "kernel": {"ConvolutionKernel": "SHARP"},
}
ON_TOP = (
    "frame-of-reference",
    "study-date",
    "patient-name",
    "birth-date",
    "age",
    "station",
    "acquisition-date",
)


@pytest.mark.parametrize(("files", "reasons"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_known_is_refused_with_one_reason(tmp_path, files, reasons):
    save(files, tmp_path / "in")
    (entry,) = convert(tmp_path).series
    assert (entry.outcome, list(entry.reasons)) == (Outcome.REFUSED, reasons)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("true", "stated"), [(RLELossless, ExplicitVRLittleEndian), (ExplicitVRLittleEndian, RLELossless)]
)
def test_a_wrong_label_of_compression_is_found(tmp_path, true, stated):
    files = scan(0)
    for file in files if true == RLELossless else ():
        file.compress(RLELossless)
    save(files, tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(path.read_bytes().replace(f"{true}\0".encode(), f"{stated}\0".encode()))
    (entry,) = convert(tmp_path).series
    assert entry.reasons == (ScanReason.WRONG_TRANSFER_SYNTAX,)


@pytest.mark.parametrize(
    ("differing", "between"),
    [
        *(pytest.param(facts, 2.5, id=f"{what}-half-a-step") for what, facts in SPLIT.items()),
        # Consecutive acquisitions of one patient are one scan; consecutive patients are not.
        *(pytest.param(SPLIT[what], 5.0 * N, id=f"{what}-on-top") for what in ON_TOP),
    ],
)
def test_two_scans_under_one_identity_become_two_volumes(tmp_path, differing, between):
    common = {
        **CONSTANT,
        "AcquisitionNumber": 1,
        "AcquisitionDate": "20200101",
        "AcquisitionTime": "101010",
        "SeriesTime": "101010",
    }
    files = scan(0, salt="a", **common) + scan(900, between, salt="b", **{**common, **differing})
    save(files, tmp_path / "in")
    entries = convert(tmp_path).series
    assert [entry.outcome for entry in entries] == [Outcome.CONVERTED] * 2
    assert {entry.corrections for entry in entries} == {(Correction.SERIES_SPLIT,)}
    firsts = sorted(int(read_back(tmp_path, entry)[0][0, 0, 0]) for entry in entries)
    assert firsts == [-1024, -1024 + 900 + 2 * round(between)]
    assert {entry.size for entry in entries} == {(8, 6, N)}


def test_a_scan_across_midnight_stays_one(tmp_path):
    days = [
        {"AcquisitionDate": "20200101", "AcquisitionTime": "235959"},
        {"AcquisitionDate": "20200102", "AcquisitionTime": "000001"},
    ]
    save(scan(0, **days[0]) + scan(2 * 5 * N, 5.0 * N, **days[1]), tmp_path / "in")
    (entry,) = convert(tmp_path).series
    assert entry.size == (8, 6, 2 * N)


def test_two_passes_that_fill_each_others_gaps_stay_one_scan(tmp_path):
    thin = {"gap_mm": 10.0, "SliceThickness": 4.5}
    passes = [{"AcquisitionNumber": n, "AcquisitionTime": f"10101{n}"} for n in (1, 2)]
    files = scan(0, **passes[0], **thin) + scan(0, 5.0, **passes[1], **thin)
    save(files, tmp_path / "in")
    (entry,) = convert(tmp_path).series
    assert entry.size == (8, 6, 2 * N)


@pytest.mark.parametrize(
    ("written", "first"),
    [("7,25", 7.25 * 2), ("1,024", None), ("abcd", None), ("7,2,", None), ("NaN ", None)],
    ids=["decimal-comma", "thousands", "word", "two-commas", "not-a-number"],
)
def test_a_scale_is_read_where_it_means_one_number_only(tmp_path, written, first):
    save(scan(2, RescaleSlope="7.250"[: len(written)], RescaleIntercept=0), tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(path.read_bytes().replace(b"7.250"[: len(written)], written.encode()))
    (entry,) = convert(tmp_path).series
    if first is None:
        assert entry.reasons == (ScanReason.UNCLEAR_SCALING,)
    else:
        assert float(read_back(tmp_path, entry)[0][0, 0, 0]) == first


@pytest.mark.parametrize(
    ("files", "first"),
    [
        (philips(0.004), -10 / (2 * 0.004)),
        (mapped(philips(None), 3.0), -10),
        (mapped(philips(None, **NO_RESCALE), 3.0, 3.0), -10),
        (mapped(philips(0.004, **NO_RESCALE), 3.0), -10 / (3 * 0.004)),
        (mapped(scan(7, Manufacturer="SIEMENS", **NO_RESCALE), 3.0), 7),
        (philips(0.0), -10),
    ],
    ids=[
        "own-slope",
        "rescale",
        "mapping-alone",
        "own-slope-and-mapping",
        "not-philips",
        "own-slope-of-zero",
    ],
)
def test_the_scale_is_that_of_dcm2niix(tmp_path, files, first):
    """Values of dcm2niix 1.0.20260724 for the same files."""
    save(files, tmp_path / "in")
    (entry,) = convert(tmp_path).series
    assert read_back(tmp_path, entry)[0][0, 0, 0] == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("description", ["Survey of the liver", "LOC T1", "plan scan", "scout"])
def test_words_do_not_outweigh_a_volume(tmp_path, description):
    save(scan(0, number=19, SeriesDescription=description), tmp_path / "in")
    (entry,) = convert(tmp_path).series
    assert entry.outcome is Outcome.CONVERTED
