"""Read NIfTI images into volumes."""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from client.ingest.files import os_error_reason
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.volume import SMALLEST_CELL_MM3, Volume

__all__ = ["read_nifti"]

_N_AXES = 3
_CHUNK_BYTES = 1 << 20
_INT16 = np.iinfo(np.int16)


def read_nifti(path: Path) -> Volume:
    """Read a ``.nii`` or ``.nii.gz`` file: int16 if the values are whole and fit, else float32.

    The affine is the sform if its code is above 0, else the qform likewise; a file with neither has no
    position in the patient and is refused. Scaling is applied; trailing axes of length 1 are dropped.

    Raises:
        ScanRefused: With the reason; the message holds no path.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_whole(path)
            image = _open(path)
            affine_mm = _affine(image)
            voxels = _voxels(image)
    except (EOFError, zlib.error) as error:
        raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA) from error
    except gzip.BadGzipFile as error:
        raise ScanRefused(ScanReason.DAMAGED_PIXEL_DATA) from error
    except (ImageFileError, HeaderDataError) as error:
        raise ScanRefused(ScanReason.NOT_NIFTI) from error
    except OSError as error:
        if error.errno is None:  # raised by nibabel: fewer bytes than promised
            raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA) from error
        raise ScanRefused(os_error_reason(error)) from error
    except ValueError as error:  # fewer bytes than the header promises
        raise ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA) from error
    return Volume(voxels, affine_mm)


def _check_whole(path: Path) -> None:
    """Read a compressed file to its checksum; nibabel stops at the last voxel."""
    with path.open("rb") as stream:  # gives the system's own error
        if path.suffix == ".gz":
            with gzip.open(stream) as content:
                while content.read(_CHUNK_BYTES):
                    pass


def _open(path: Path) -> nib.nifti1.Nifti1Pair:
    image = nib.load(path)
    if not isinstance(image, nib.nifti1.Nifti1Pair):  # Nifti2 derives from it; Analyze and others do not
        raise ScanRefused(ScanReason.NOT_NIFTI)
    return image


def _affine(image: nib.nifti1.Nifti1Pair) -> NDArray[np.float64]:
    header = image.header
    if int(header["sform_code"]) > 0:
        affine_mm = header.get_sform()  # type: ignore[no-untyped-call]  # nibabel has no types here
    elif int(header["qform_code"]) > 0:
        affine_mm = header.get_qform()  # type: ignore[no-untyped-call]  # as above
    else:
        raise ScanRefused(ScanReason.BAD_AFFINE, "Neither sform nor qform is set.")
    affine_mm = np.asarray(affine_mm, np.float64)
    if not np.isfinite(affine_mm).all() or abs(np.linalg.det(affine_mm[:3, :3])) < SMALLEST_CELL_MM3:
        raise ScanRefused(ScanReason.BAD_AFFINE, "It is singular or not finite.")
    return affine_mm


def _voxels(image: nib.nifti1.Nifti1Pair) -> NDArray[np.int16] | NDArray[np.float32]:
    shape = image.shape
    if len(shape) > _N_AXES and any(length != 1 for length in shape[_N_AXES:]):
        raise ScanRefused(ScanReason.FOUR_DIMENSIONAL, f"The shape is {' x '.join(map(str, shape))}.")
    if len(shape) < _N_AXES or min(shape) < 1:
        raise ScanRefused(ScanReason.TOO_FEW_SLICES)
    stored = image.get_data_dtype()  # type: ignore[no-untyped-call]  # as above
    if stored.fields is not None:
        raise ScanRefused(ScanReason.COLOUR)
    if stored.kind not in "iuf":
        raise ScanRefused(ScanReason.NOT_NIFTI, f"Voxels are {stored}.")
    values = np.asarray(image.dataobj).reshape(shape[:_N_AXES])
    if values.dtype.kind in "iu" and values.min() >= _INT16.min and values.max() <= _INT16.max:
        return values.astype(np.int16)
    return values.astype(np.float32)
