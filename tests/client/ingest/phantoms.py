"""DICOM files made in code: a random volume cut into slices the way scanners of different makers would."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

__all__ = [
    "AXIAL",
    "CORONAL",
    "CT",
    "MR",
    "OBLIQUE",
    "SAGITTAL",
    "csa_header",
    "enhanced",
    "expected_affine",
    "mosaic",
    "picture",
    "save",
    "stack",
    "uid",
    "values",
]

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = {"CT": "1.2.840.10008.5.1.4.1.1.2.1", "MR": "1.2.840.10008.5.1.4.1.1.4.1"}

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)
SPACING = (0.7, 0.9)  # between rows, between columns


def uid(*entropy: object) -> str:
    """A UID that is the same in every run."""
    return str(generate_uid(entropy_srcs=[str(part) for part in entropy] or ["phantom"]))


def values(
    n_slices: int, rows: int = 6, columns: int = 8, seed: int = 0, top: int = 2000
) -> NDArray[np.uint16]:
    """``(slices, rows, columns)``: every slice different from every other."""
    return np.random.default_rng(seed).integers(0, top, (n_slices, rows, columns), dtype=np.uint16)


def expected_affine(
    orientation: Sequence[float], origin: Sequence[float], gap_mm: float, spacing: Sequence[float] = SPACING
) -> NDArray[np.float64]:
    """DICOM PS3.3 equation C.7.6.2.1-1 written out, in RAS."""
    affine = np.eye(4)
    for i in range(3):
        affine[i, 0] = orientation[i] * spacing[1]
        affine[i, 1] = orientation[3 + i] * spacing[0]
        j, k = (i + 1) % 3, (i + 2) % 3
        affine[i, 2] = gap_mm * (orientation[j] * orientation[3 + k] - orientation[k] * orientation[3 + j])
        affine[i, 3] = origin[i]
    affine[:2] *= -1
    return affine


def _file(dataset: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = uid("implementation")
    file = FileDataset("", dataset, file_meta=meta, preamble=b"\0" * 128)
    file.file_meta = meta
    return file


def picture(pixels: NDArray[Any], name: str = "series", index: int = 0, **more: object) -> FileDataset:
    """One classic CT or MR slice; any attribute can be set or, with None, taken away."""
    dataset = Dataset()
    fields: dict[str, Any] = {
        "SOPClassUID": CT,
        "SOPInstanceUID": uid(
            name, index, more.get("EchoTime"), more.get("AcquisitionNumber"), more.get("salt")
        ),
        "StudyInstanceUID": uid("study"),
        "SeriesInstanceUID": uid(name),
        "SeriesNumber": 5,
        "SeriesDescription": "Phantom 3D",
        "InstanceNumber": index + 1,
        "Modality": "CT",
        "PatientName": "Never^Written",
        "PatientID": "P-1",
        "PatientBirthDate": "19700101",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelSpacing": list(SPACING),
        "ImageOrientationPatient": list(AXIAL),
        "ImagePositionPatient": [0.0, 0.0, 0.0],
        "SliceThickness": 2.0,
    }
    fields.update(more)
    fields.pop("salt", None)
    for keyword, value in fields.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.add_new("PixelData", "OW", pixels.tobytes())
    return _file(dataset)


def stack(
    pixels: NDArray[Any],
    name: str = "series",
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-10.0, 20.0, 30.0),
    places: Iterable[float] | None = None,
    gap_mm: float = 2.0,
    each: Callable[[int], dict[str, Any]] | None = None,
    **more: object,
) -> list[FileDataset]:
    """Slices at ``places`` along the normal (evenly where not given)."""
    normal = np.cross(orientation[:3], orientation[3:])
    along = list(places) if places is not None else [index * gap_mm for index in range(len(pixels))]
    return [
        picture(
            one,
            name,
            index,
            **{
                "ImageOrientationPatient": list(orientation),
                "ImagePositionPatient": (np.array(origin) + normal * along[index]).tolist(),
                **more,
                **(each(index) if each else {}),
            },
        )
        for index, one in enumerate(pixels)
    ]


def save(
    files: Iterable[FileDataset], folder: Path, names: Callable[[int], str] = "{:03d}.dcm".format
) -> None:
    """Write files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, file in enumerate(files):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some files are wrong on purpose
            file.save_as(folder / names(index), enforce_file_format=False)


def _item(**fields: object) -> Items:
    item = Dataset()
    for keyword, value in fields.items():
        setattr(item, keyword, value)
    return Items([item])


def enhanced(
    pixels: NDArray[np.uint16],
    frames: Sequence[dict[str, Any]],
    modality: str = "MR",
    shared: dict[str, Any] | None = None,
    **more: object,
) -> FileDataset:
    """An enhanced multi-frame file.

    Args:
        pixels: ``(frames, rows, columns)``.
        frames: For each: ``position``, and any of ``orientation``, ``stack``, ``time``, ``echo``, ``slope``,
            ``intercept``, ``kind`` (frame type), ``b``.
        modality: CT or MR.
        shared: The same, for all frames.
        more: Attributes of the file.
    """
    file = picture(pixels[0], index=0, SOPClassUID=ENHANCED[modality], Modality=modality, **more)
    for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"):
        delattr(file, keyword)
    file.NumberOfFrames = len(pixels)
    file.PixelData = pixels.tobytes()
    file.SharedFunctionalGroupsSequence = Items([_group(modality, {"spacing": SPACING, **(shared or {})})])
    file.PerFrameFunctionalGroupsSequence = Items([_group(modality, frame) for frame in frames])
    return file


def _group(modality: str, facts: dict[str, Any]) -> Dataset:
    group = Dataset()
    if "spacing" in facts:
        group.PixelMeasuresSequence = _item(PixelSpacing=list(facts["spacing"]), SliceThickness=2.0)
    if "position" in facts:
        group.PlanePositionSequence = _item(ImagePositionPatient=[float(part) for part in facts["position"]])
    if "orientation" in facts:
        group.PlaneOrientationSequence = _item(ImageOrientationPatient=list(facts["orientation"]))
    content = {keyword: facts[key] for key, keyword in _CONTENT.items() if key in facts}
    if content:
        group.FrameContentSequence = _item(**content)
    names = {"slope": "RescaleSlope", "intercept": "RescaleIntercept"}
    scale = {keyword: facts[key] for key, keyword in names.items() if key in facts}
    if scale:
        group.PixelValueTransformationSequence = _item(**scale, RescaleType="US")
    if "echo" in facts:
        group.MREchoSequence = _item(EffectiveEchoTime=facts["echo"])
    if "b" in facts:
        group.MRDiffusionSequence = _item(DiffusionBValue=facts["b"])
    if "kind" in facts:
        setattr(group, f"{modality}ImageFrameTypeSequence", _item(FrameType=facts["kind"]))
    return group


_CONTENT = {"stack": "StackID", "time": "TemporalPositionIndex", "acquisition": "FrameAcquisitionNumber"}


def csa_header(**elements: Sequence[str]) -> bytes:
    """A Siemens CSA header of the second version."""
    out = b"SV10\x04\x03\x02\x01" + struct.pack("<II", len(elements), 77)
    for name, items in elements.items():
        out += struct.pack("<64si4siii", name.encode(), len(items), b"FD", 4, len(items), 77)
        for item in items:
            text = item.encode() + b"\0"
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return out


def mosaic(
    volume: NDArray[np.uint16],
    origin: Sequence[float],
    normal: Sequence[float] | None,
    gap_mm: float = 3.5,
    **more: object,
) -> FileDataset:
    """A Siemens mosaic of ``(slices, rows, columns)``; ``origin`` is where its first voxel lies."""
    n_slices, rows, columns = volume.shape
    side = int(np.ceil(np.sqrt(n_slices)))
    sheet = np.zeros((side * rows, side * columns), volume.dtype)
    for index, tile in enumerate(volume):
        top, left = index // side * rows, index % side * columns
        sheet[top : top + rows, left : left + columns] = tile
    orientation = np.array(more.pop("ImageOrientationPatient", AXIAL), float)
    corner = (
        np.array(origin)
        - orientation[:3] * SPACING[1] * (sheet.shape[1] - columns) / 2
        - orientation[3:] * SPACING[0] * (sheet.shape[0] - rows) / 2
    )
    file = picture(
        sheet,
        "mosaic",
        SOPClassUID=MR,
        Modality="MR",
        Manufacturer="SIEMENS",
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        ImageOrientationPatient=orientation.tolist(),
        ImagePositionPatient=corner.tolist(),
        SpacingBetweenSlices=gap_mm,
        **more,
    )
    elements = {"NumberOfImagesInMosaic": [str(n_slices)]}
    if normal is not None:
        elements["SliceNormalVector"] = [f"{part:.8f}" for part in normal]
    block = file.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", csa_header(**elements))
    return file
