"""Read NIfTI images into volumes."""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from client.ingest.files import os_error_reason
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.volume import MIN_SLICES, SMALLEST_CELL_MM3, Volume

__all__ = ["read_nifti"]

_N_AXES = 3
_GZIP_MAGIC = b"\x1f\x8b"
_NIFTI2_SIZES = (540, int.from_bytes((540).to_bytes(4, "big"), "little"))  # of the header, either order
_SIZES = (348, 540)
_UNIT_MM = {1: 1e3, 3: 1e-3}  # metre, micron; millimetres where nothing is said
_UNIT_BITS = 0x07  # of xyzt_units; the others are those of time
_PLAUSIBLE_VOXEL_MM = (0.01, 100.0)  # beyond, the units are wrong
_OPPOSITE = -0.7  # cosine: 135 degrees, more than a registration turns
_MOST_STRETCHED = 8.0  # twice as long on each axis: no registration to a template does that
_CHUNK_BYTES = 1 << 20
_INT16 = np.iinfo(np.int16)


def read_nifti(path: Path) -> Volume:
    """Read a ``.nii`` or ``.nii.gz`` file: int16 if the values are whole and fit, else float32.

    The affine is the sform if its code is above 0, else the qform likewise, in the header's units; a file
    with neither has no position in the patient and is refused. An identity sform is a placeholder where a
    qform is set. Scaling is applied, and refused where it is no number; trailing axes of length 1 are
    dropped. Content, not the name, tells whether the file is compressed.

    Raises:
        ScanRefused: With the reason; the message holds no path.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            affine_mm, voxels = _read(path)
    except (EOFError, zlib.error) as error:
        raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA) from error
    except gzip.BadGzipFile as error:
        raise ScanRefused(ScanReason.DAMAGED_PIXEL_DATA) from error
    except (ImageFileError, HeaderDataError, WrapStructError) as error:
        raise ScanRefused(ScanReason.NOT_NIFTI) from error
    except OSError as error:
        if error.errno is None:  # raised by nibabel: fewer bytes than promised
            raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA) from error
        raise ScanRefused(os_error_reason(error)) from error
    except ValueError as error:  # fewer bytes than the header promises
        raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA) from error
    return Volume(voxels, affine_mm)


def _read(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int16] | NDArray[np.float32]]:
    header = path.with_suffix(".hdr") if path.suffix.lower() == ".img" else path
    if header != path and header.is_file():
        with header.open("rb") as stream:
            _check_scale(stream)
    with path.open("rb") as stream:  # gives the system's own error
        zipped = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        stream.seek(0)
        if zipped:
            _check_whole(stream)
        with gzip.open(stream) if zipped else stream as content:
            if header == path:
                _check_scale(content)
            # The name may say otherwise than the content.
            as_named = zipped == (path.suffix.lower() == ".gz")
            image = _checked(nib.load(path) if as_named else _kind(content).from_stream(content))
            return _affine(image), _voxels(image)


def _check_whole(stream: BinaryIO) -> None:
    """Read a compressed file to its checksum; nibabel stops at the last voxel."""
    with gzip.open(stream) as content:
        while content.read(_CHUNK_BYTES):
            pass
    stream.seek(0)


def _kind(stream: BinaryIO | gzip.GzipFile) -> Any:  # noqa: ANN401  nibabel has no types here
    two = int.from_bytes(stream.read(4), "little") in _NIFTI2_SIZES
    stream.seek(0)
    return nib.nifti2.Nifti2Image if two else nib.nifti1.Nifti1Image


def _check_scale(stream: BinaryIO | gzip.GzipFile) -> None:
    """Refuse a scale that is no number; readers take it for 1, or for 0, or stop.

    By the standard a slope of 0 means that values are not scaled; writers use NaN alike.
    """
    header = _kind(stream).header_class.from_fileobj(stream, check=False)
    stream.seek(0)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    unscaled = slope == 0 or (np.isnan(slope) and (np.isnan(intercept) or intercept == 0))
    if header["sizeof_hdr"] in _SIZES and not (unscaled or np.isfinite((slope, intercept)).all()):
        raise ScanRefused(
            ScanReason.UNCLEAR_SCALING, f"The header has scl_slope {slope:g} and scl_inter {intercept:g}."
        )


def _checked(image: object) -> nib.nifti1.Nifti1Pair:
    if not isinstance(image, nib.nifti1.Nifti1Pair):  # Nifti2 derives from it; Analyze and others do not
        raise ScanRefused(ScanReason.NOT_NIFTI)
    return image


def _affine(image: nib.nifti1.Nifti1Pair) -> NDArray[np.float64]:
    header = image.header
    sform = header.get_sform(coded=True)[0]  # type: ignore[no-untyped-call]  # nibabel has no types here
    qform = header.get_qform(coded=True)[0]  # type: ignore[no-untyped-call]  # as above
    if sform is None and qform is None:
        raise ScanRefused(ScanReason.BAD_AFFINE, "Neither sform nor qform is set.")
    if sform is None or (qform is not None and np.array_equal(sform, np.eye(4))):
        affine_mm = np.array(qform, np.float64)
    else:
        affine_mm = np.array(sform, np.float64)
        if qform is not None and _opposed(affine_mm[:3, :3], np.asarray(qform)[:3, :3]):
            raise ScanRefused(ScanReason.CONFLICTING_AFFINES)
        if qform is not None and _scaled(affine_mm[:3, :3], np.asarray(qform)[:3, :3]):
            raise ScanRefused(ScanReason.BAD_AFFINE, "Voxels of its sform and qform differ in size.")
    affine_mm[:3] *= _UNIT_MM.get(int(header["xyzt_units"]) & _UNIT_BITS, 1.0)
    if not np.isfinite(affine_mm).all() or abs(np.linalg.det(affine_mm[:3, :3])) < SMALLEST_CELL_MM3:
        raise ScanRefused(ScanReason.BAD_AFFINE, "It is singular or not finite.")
    sides_mm = np.linalg.norm(affine_mm[:3, :3], axis=0)
    if sides_mm.min() < _PLAUSIBLE_VOXEL_MM[0] or sides_mm.max() > _PLAUSIBLE_VOXEL_MM[1]:
        raise ScanRefused(ScanReason.BAD_AFFINE, f"Voxels would be {sides_mm.max():.3g} mm long.")
    return affine_mm


def _opposed(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two ``(3, 3)`` matrices differ in handedness or by a half turn of an axis."""
    lengths = np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0)
    cosines = np.einsum("ij,ij->j", one, other)
    return bool(np.linalg.det(one) * np.linalg.det(other) < 0 or (cosines < _OPPOSITE * lengths).any())


def _scaled(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether voxels of two ``(3, 3)`` matrices differ in size, as in two units."""
    volumes = abs(np.linalg.det(one)), abs(np.linalg.det(other))
    return bool(max(volumes) > _MOST_STRETCHED * min(volumes))


def _voxels(image: nib.nifti1.Nifti1Pair) -> NDArray[np.int16] | NDArray[np.float32]:
    shape = image.shape
    if len(shape) > _N_AXES and any(length != 1 for length in shape[_N_AXES:]):
        raise ScanRefused(ScanReason.FOUR_DIMENSIONAL, f"The shape is {' x '.join(map(str, shape))}.")
    if len(shape) < _N_AXES or min(shape[:_N_AXES]) < MIN_SLICES:
        raise ScanRefused(ScanReason.TOO_FEW_SLICES, f"The shape is {' x '.join(map(str, shape))}.")
    stored = image.get_data_dtype()  # type: ignore[no-untyped-call]  # as above
    if stored.fields is not None:
        raise ScanRefused(ScanReason.COLOUR)
    if stored.kind not in "iuf":
        raise ScanRefused(ScanReason.NOT_NIFTI, f"Voxels are {stored}.")
    values = np.asarray(image.dataobj).reshape(shape[:_N_AXES])
    if values.dtype.kind in "iu" and values.min() >= _INT16.min and values.max() <= _INT16.max:
        return values.astype(np.int16)
    return values.astype(np.float32)
