"""Read the header of one DICOM file into a `FileHeader` and its `Frame`s, without the pixel data."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from client.ingest.dicom.csa import read_csa
from client.ingest.dicom.header import FileHeader, Frame, Key, MosaicLayout, PlainPixels
from client.ingest.dicom.plain import find_plain_pixels
from client.ingest.dicom.scaling import read_scaling
from client.ingest.dicom.values import FrameSources, first_item, items, number, private_value, text, texts
from client.ingest.files import looks_like_dicom
from client.ingest.reasons import ScanReason, ScanRefused

__all__ = ["read_frames", "transfer_syntax_of"]

_ECHO_DECIMALS = 3  # ms
_MOSAIC = "MOSAIC"
_GE = "ge "
_GE_PARAMETERS = "GEMS_PARM_01"
_SIEMENS_CSA = "SIEMENS CSA HEADER"
_SIEMENS_MR = "SIEMENS MR HEADER"
_LOOSE = 0.05  # admits cosines rounded to two digits, not the zeros that some anonymisers write
_N_POSITION, _N_ORIENTATION, _N_SPACING = 3, 6, 2

# Per key: its keyword in a classic file, and in the functional groups of an enhanced one.
_NUMERIC_KEYS = {
    Key.ECHO: ("EchoTime", "EffectiveEchoTime"),
    Key.ECHO_NUMBER: ("EchoNumbers", ""),
    Key.INVERSION: ("InversionTime", "InversionTimes"),
    Key.FLIP: ("FlipAngle", "FlipAngle"),
    Key.ENERGY: ("KVP", "KVP"),
    Key.THICKNESS: ("SliceThickness", "SliceThickness"),
    # A classic time series is one measurement: it stays together and is refused as four-dimensional.
    Key.TEMPORAL: ("", "TemporalPositionIndex"),
    Key.B_VALUE: ("DiffusionBValue", "DiffusionBValue"),
    Key.ACQUISITION: ("AcquisitionNumber", "FrameAcquisitionNumber"),
}
_TEXT_KEYS = {
    Key.STACK: ("", "StackID"),
    Key.KERNEL: ("ConvolutionKernel", "ConvolutionKernel"),
    Key.CONTRAST: ("ContrastBolusAgent", ""),
    Key.UNIT: ("RescaleType", "RescaleType"),
}
# Constant in a series by the standard (modules of patient, study, series, frame of reference, equipment).
_ORIGIN = (
    *("PatientName", "PatientBirthDate", "PatientSex", "OtherPatientIDs"),
    *("PatientAge", "PatientWeight", "PatientSize"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription"),
    *("SeriesDate", "SeriesDescription", "ProtocolName", "Modality", "PatientPosition", "Units"),
    *("FrameOfReferenceUID", "DeviceSerialNumber"),
    *("Manufacturer", "ManufacturerModelName", "StationName", "InstitutionName"),
)
_TIMES = (("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime"))
_TIME = re.compile(r"(?:(\d{4})(\d\d)(\d\d))?(?:(\d\d)(\d\d)(\d\d(?:\.\d+)?))?")


def transfer_syntax_of(dataset: pydicom.FileDataset) -> str:
    """UID of the transfer syntax; if not stated, the uncompressed one of the header's encoding."""
    stated = text(getattr(dataset, "file_meta", Dataset()), "TransferSyntaxUID")
    if stated:
        return stated
    implicit, little = dataset.original_encoding
    if implicit:
        return str(pydicom.uid.ImplicitVRLittleEndian)
    return str(pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian)


def read_frames(path: Path) -> list[Frame]:
    """Read the images that a file describes.

    Returns:
        One frame per image, at least one: an object without images gets one too, to be refused as such.

    Raises:
        ScanRefused: If the file is empty, not DICOM, a DICOMDIR or unreadable.
        OSError: If the operating system refuses access.
    """
    part_10 = looks_like_dicom(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about every invalid value; those that matter are checked
        try:
            dataset, has_pixels, plain = _read_header(path, force=not part_10)
            file = _file_header(path, dataset, plain, has_pixels=has_pixels)
            return list(_frames(file, dataset))
        except (OSError, ScanRefused):
            raise
        except Exception as error:  # a damaged header makes pydicom raise almost anything
            raise ScanRefused(ScanReason.UNREADABLE_FILE) from error


def _read_header(path: Path, *, force: bool) -> tuple[pydicom.FileDataset, bool, PlainPixels | None]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        try:
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=force)
        except EOFError as error:
            raise ScanRefused(ScanReason.UNREADABLE_FILE) from error
        followed = stream.tell() < size
        syntax = transfer_syntax_of(dataset)
        plain = find_plain_pixels(stream, dataset, syntax, size)
    meta_class = text(dataset.file_meta, "MediaStorageSOPClassUID")
    if (
        MediaStorageDirectoryStorage in (meta_class, text(dataset, "SOPClassUID"))
        or "DirectoryRecordSequence" in dataset
    ):
        raise ScanRefused(ScanReason.DICOMDIR)
    if not len(dataset):
        raise ScanRefused(ScanReason.UNREADABLE_FILE if not force else ScanReason.NOT_DICOM)
    if force and not (text(dataset, "SOPClassUID") or text(dataset, "Modality")):
        raise ScanRefused(ScanReason.NOT_DICOM)
    deflated = syntax == DeflatedExplicitVRLittleEndian  # tell() says nothing here
    return dataset, followed or (deflated and "Rows" in dataset), plain


def _file_header(
    path: Path, dataset: pydicom.FileDataset, plain: PlainPixels | None, *, has_pixels: bool
) -> FileHeader:
    meta = dataset.file_meta
    image_type = texts(dataset, "ImageType")
    return FileHeader(
        path=path,
        patient=text(dataset, "PatientID"),
        study_uid=text(dataset, "StudyInstanceUID"),
        series_uid=text(dataset, "SeriesInstanceUID"),
        origin=_once(tuple(text(dataset, keyword) for keyword in _ORIGIN)),
        series_time=text(dataset, "SeriesTime"),
        times_s=_times(dataset),
        series_number=int(number(dataset, "SeriesNumber") or 0),
        sop_class_uid=text(dataset, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID"),
        sop_uid=text(dataset, "SOPInstanceUID") or text(meta, "MediaStorageSOPInstanceUID"),
        transfer_syntax=transfer_syntax_of(dataset),
        description=text(dataset, "SeriesDescription") or text(dataset, "ProtocolName"),
        modality=text(dataset, "Modality"),
        manufacturer=text(dataset, "Manufacturer").lower(),
        shape=(int(number(dataset, "Rows") or 0), int(number(dataset, "Columns") or 0)),
        n_samples=int(number(dataset, "SamplesPerPixel") or 1),
        photometric=text(dataset, "PhotometricInterpretation"),
        n_frames=max(1, int(number(dataset, "NumberOfFrames") or 1)),
        has_pixels=has_pixels,
        enhanced="PerFrameFunctionalGroupsSequence" in dataset,
        padding=number(dataset, "PixelPaddingValue"),
        is_lossy=text(dataset, "LossyImageCompression") == "01",
        tilt_deg=number(dataset, "GantryDetectorTilt") or 0.0,
        mosaic=_mosaic(dataset) if _MOSAIC in image_type else None,
        plain=_once(plain),
    )


def _times(dataset: Dataset) -> tuple[float | None, ...]:
    stated = text(dataset, "AcquisitionDateTime")
    moments = ["".join(text(dataset, keyword) for keyword in pair) for pair in _TIMES]
    return tuple(_seconds(moment) for moment in (moments[0] or stated, moments[1]))


@functools.lru_cache(1 << 12)
def _seconds(moment: str) -> float | None:
    """Seconds to a date, a time or both, as DICOM writes them; none if there is neither."""
    found = _TIME.match(moment)
    year, month, day, *clock = found.groups() if found else (None,) * 6
    try:
        days = date(int(year), int(month or 0), int(day or 0)).toordinal() if year else 0
    except ValueError:
        return None
    if not (year or clock[0]):
        return None
    hours, minutes, seconds = (float(part or 0) for part in clock)
    return 86_400.0 * days + 3600 * hours + 60 * minutes + seconds


def _mosaic(dataset: Dataset) -> MosaicLayout:
    csa = private_value(dataset, 0x0029, _SIEMENS_CSA, 0x10)
    elements = read_csa(csa) if isinstance(csa, bytes) else {}
    stated = private_value(dataset, 0x0019, _SIEMENS_MR, 0x0A)
    if isinstance(stated, bytes):  # implicit VR has no type; it is an unsigned short
        stated = int.from_bytes(stated[:2], "little")
    try:
        n_tiles = int(stated or (elements.get("NumberOfImagesInMosaic") or ("0",))[0])
        normal = tuple(float(part) for part in elements.get("SliceNormalVector", ()))
    except (TypeError, ValueError):
        return MosaicLayout(0, None)
    return MosaicLayout(n_tiles, (normal[0], normal[1], normal[2]) if len(normal) == _N_POSITION else None)


def _frames(file: FileHeader, dataset: Dataset) -> Iterator[Frame]:
    if not file.enhanced:
        yield _frame(file, 0, FrameSources((dataset,)), dataset)
        return
    shared = _macros(first_item(dataset, "SharedFunctionalGroupsSequence"))
    for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        yield _frame(file, index, FrameSources((*_macros(group), *shared, dataset)), group)


def _macros(group: Dataset | None) -> tuple[Dataset, ...]:
    """The items of every standard macro in a functional group, mostly one each."""
    if group is None:
        return ()
    return tuple(item for tag in sorted(group.keys()) if not tag.is_private for item in items(group, tag))


def _frame(file: FileHeader, index: int, facts: FrameSources, group: Dataset) -> Frame:
    type_keyword = "FrameType" if file.enhanced else "ImageType"
    image_type = texts(facts.holder(type_keyword), type_keyword)
    return Frame(
        file=file,
        index=index,
        position_mm=facts.numbers("ImagePositionPatient", _N_POSITION),
        orientation=_once(_orientation(facts.numbers("ImageOrientationPatient", _N_ORIENTATION))),
        spacing_mm=_once(_positive(facts.numbers("PixelSpacing", _N_SPACING))),
        thickness_mm=facts.number("SliceThickness"),
        slice_step_mm=facts.number("SpacingBetweenSlices"),
        image_type=_once(image_type or texts(facts.places[-1], "ImageType")),
        scaling=_once(read_scaling(file, facts, group)),
        keys=_once(tuple(_keys(file, facts, image_type))),
    )


@functools.lru_cache(1 << 12)
def _once(value: Any) -> Any:  # noqa: ANN401  whatever many frames have in common
    """One object for all equal ones: a folder may hold a hundred thousand files."""
    return value


def _orientation(cosines: Sequence[float] | None) -> tuple[float, ...] | None:
    """The cosines, unless they are not two roughly orthogonal unit vectors."""
    if cosines is None:
        return None
    row, column = cosines[:3], cosines[3:]
    length = [sum(part * part for part in axis) for axis in (row, column)]
    across = sum(a * b for a, b in zip(row, column, strict=True))
    orthonormal = all(abs(squared - 1) < _LOOSE for squared in length) and abs(across) < _LOOSE
    return tuple(cosines) if orthonormal else None


def _positive(spacing: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return spacing if spacing is not None and min(spacing) > 0 else None


def _keys(file: FileHeader, facts: FrameSources, image_type: tuple[str, ...]) -> Iterator[tuple[Key, str]]:
    place = 1 if file.enhanced else 0
    component = facts.text("ComplexImageComponent") if file.enhanced else ""
    yield Key.IMAGE_TYPE, "\\".join((*image_type, component)).rstrip("\\")
    if file.manufacturer.startswith(_GE):  # ImageType does not separate magnitude, phase, real, imaginary
        yield Key.COMPONENT, str(private_value(facts.places[-1], 0x0043, _GE_PARAMETERS, 0x2F))
    for key, keywords in _TEXT_KEYS.items():
        if keywords[place]:
            yield key, facts.text(keywords[place])
    for key, keywords in _NUMERIC_KEYS.items():
        value = facts.number(keywords[place]) if keywords[place] else None
        if value is not None:
            yield key, f"{round(value, _ECHO_DECIMALS):012.3f}"
