"""Head phantoms in a folder shaped like IXI, and the federation that `sites.datasets.ixi` makes of it.

A head is nested ellipsoids: scalp, CSF, grey matter, white matter, ventricles, and a few arteries that are
bright in MRA only. The anatomy depends on sex and age::

    size of the head         1.06 (male) or 0.94 (female), times 1 + 0.035 N(0, 1)
    cortex, share of radius  0.200 at 20 years, less 0.0012 per year
    ventricles, likewise     0.16 at 20 years, plus 0.0022 per year
    CSF around the brain     0.03 at 20 years, plus 0.0006 per year

So a head's volume alone predicts sex with an AUC of about 0.99 (`expected_volume_auc`) in any contrast, and
the size of the ventricles predicts age, best in T1 and T2. (The sexes differ about twice as much as in
people.) Hospitals differ in gain, bias field, noise and storage order (`SCANNERS`), and each takes only two
of the four contrasts (`MISSING`), all independent of sex and age. Untrained features carry the size among
much else: one hospital has too few rows to learn it, three together have enough.
"""

from __future__ import annotations

import csv
import gzip
import math
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from numpy.typing import NDArray

from mmare.errors import DataError, StudyError
from mmare.study.specs import TrainingSpec
from sites.datasets.ixi import IxiOptions, ixi_federation, ixi_study
from sites.datasets.ixi_cohort import CONTRASTS, IXI_COLUMNS
from sites.federation import SCANS_FOLDER, SYNTHETIC_FILE, Prepared, check_target, write_federation
from sites.missing.masks import mcar
from sites.options import IxiTask

__all__ = ["Person", "Scanner", "draw_head", "draw_people", "expected_volume_auc", "prepare_synthetic_scans"]

Array = NDArray[np.float64]

SIZE = (16, 32, 32)  # slices, rows, columns
SPACING_MM = (6.75, 6.75, 11.25)  # of x, y, z
SUBJECTS = 130  # per hospital; three in ten are test rows
ENCODER = "med3d-resnet18-random"  # untrained, needs no download

_RADII_MM = (72.0, 90.0, 66.0)  # half axes of a head of size 1, left-right, back-front, foot-head
_SIZE = {"male": 1.06, "female": 0.94}
_SIZE_SD = 0.035
_AXIS_SD = 0.015  # of each half axis on its own
_SKULL = 0.88  # inner radius of the scalp and skull, in units of the head
_EDGE = 0.03  # softness of boundaries, likewise
_VENTRICLE_AT = ((-0.16, -0.05, 0.08), (0.16, -0.05, 0.08))  # centres, likewise
_VENTRICLE_SHAPE = (0.55, 1.4, 0.8)
_ARTERY_MM = 5.0
_ARTERIES = (  # from, to, in units of the head: carotids, basilar, middle and anterior cerebral
    ((-0.2, 0.1, -0.9), (-0.15, 0.1, -0.2)),
    ((0.2, 0.1, -0.9), (0.15, 0.1, -0.2)),
    ((0.0, -0.2, -0.8), (0.0, -0.1, -0.2)),
    ((-0.15, 0.1, -0.2), (-0.6, 0.05, 0.0)),
    ((0.15, 0.1, -0.2), (0.6, 0.05, 0.0)),
    ((0.0, 0.1, -0.2), (0.0, 0.5, 0.2)),
)
_SHIFT_MM = 3.0  # standard deviation of a head's position in the scanner

# Brightness of scalp, CSF, grey matter, white matter, arteries.
_BRIGHTNESS: Mapping[str, tuple[float, float, float, float, float]] = {
    "t1": (0.70, 0.20, 0.60, 0.85, 0.35),
    "t2": (0.45, 1.00, 0.65, 0.45, 0.10),
    "pd": (0.55, 0.75, 0.85, 0.60, 0.15),
    "mra": (0.35, 0.12, 0.32, 0.27, 1.00),
}
_WHITE = 200.0  # stored value of brightness 1 at gain 1; 255 is the largest

_STREAM = 3_207  # separates these draws from others with the same seed
_FEWEST = 10


@dataclass(frozen=True)
class Scanner:
    """How a hospital's scanner distorts images."""

    gain: float
    bias: tuple[float, float, float]  # relative intensity change from centre to edge, along x, y, z
    noise: float  # standard deviation, in units of brightness
    axes: str  # storage order of the voxels, as nibabel's axis codes


@dataclass(frozen=True)
class Person:
    """One subject."""

    number: int  # IXI number
    hospital: str  # a key of SCANNERS
    sex: str  # male or female
    age: float  # years
    contrasts: tuple[str, ...]  # present volumes
    seed: tuple[int, ...]  # of anatomy and scans
    codes: tuple[int, ...]  # cells of the demographic table between sex and age, in the order of IXI_COLUMNS


SCANNERS: Mapping[str, Scanner] = {
    "Guys": Scanner(gain=0.8, bias=(0.15, 0.00, -0.10), noise=0.05, axes="RAS"),
    "HH": Scanner(gain=1.0, bias=(-0.10, 0.20, 0.10), noise=0.03, axes="LPS"),
    "IOP": Scanner(gain=0.7, bias=(0.00, -0.15, 0.20), noise=0.07, axes="ASR"),
}

# Probability that a subject lacks the contrast; 1: the hospital never takes it.
MISSING: Mapping[str, Mapping[str, float]] = {
    "Guys": {"t1": 0.1, "t2": 0.2, "pd": 1.0, "mra": 1.0},
    "HH": {"t1": 1.0, "t2": 1.0, "pd": 0.1, "mra": 0.2},
    "IOP": {"t1": 1.0, "t2": 0.1, "pd": 0.2, "mra": 1.0},
}


def prepare_synthetic_scans(
    out: Path, subjects: int = SUBJECTS, seed: int = 0, overwrite: bool = False
) -> Prepared:
    """Write phantoms and a federation folder around them, for the task sex.

    The IXI-shaped folder is ``scans`` in the federation folder; `sites.datasets.ixi.prepare_ixi` with
    ``complete=False`` can read it for the other task.

    Args:
        out: Federation folder to write.
        subjects: Per hospital (of three), at least 10.
        seed: Of subjects, split and study. Same seed, same bytes.
        overwrite: Replace an existing federation folder.

    Raises:
        StudyError: If an option is out of range.
        DataError: If ``out`` is in the way or cannot be written.
    """
    if subjects < _FEWEST:
        raise StudyError(f"--patients is {subjects}, expected at least {_FEWEST} per hospital")
    options = IxiOptions(IxiTask.SEX, with_clinical=True, seed=seed, complete=False)
    study = ixi_study(options, ENCODER, SIZE)
    training = TrainingSpec(rounds=25, learning_rate=1e-3, patience=15)
    study = replace(study, name="synthetic-scans", training=training)
    check_target(out, overwrite=overwrite)
    drawn = out.parent / f".{out.name}.{uuid.uuid4().hex}.scans"
    try:
        _write_folder(drawn, draw_people(subjects, seed))
        sites, notes = ixi_federation(
            drawn, options, lambda path: f"../{SCANS_FOLDER}/{path.relative_to(drawn).as_posix()}"
        )
        prepared = write_federation(out, study, sites, overwrite, synthetic_scans=drawn)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or type(error).__name__})") from None
    finally:
        shutil.rmtree(drawn, ignore_errors=True)
    return replace(prepared, notes=notes)


def draw_people(subjects: int, seed: int) -> list[Person]:
    """Draw the subjects of all hospitals, ``subjects`` each, numbered in turn."""
    if seed < 0:
        raise StudyError(f"--seed is {seed}, expected a whole number from 0 up")
    generator = np.random.default_rng([seed, _STREAM])
    hospitals = [hospital for _ in range(subjects) for hospital in SCANNERS]
    rates = np.array([[MISSING[hospital][name] for name in CONTRASTS] for hospital in hospitals])  # (N, 4)
    present = mcar(rates < 1, rates, generator)
    sexes = generator.permutation(np.arange(len(hospitals)) % 2)  # half and half
    ages = generator.uniform(20, 85, len(hospitals))
    return [
        Person(
            number=number,
            hospital=hospital,
            sex=("male", "female")[int(sexes[number - 1])],
            age=round(float(ages[number - 1]), 2),
            contrasts=tuple(name for name, has in zip(CONTRASTS, present[number - 1], strict=True) if has),
            seed=(seed, _STREAM, number),
            codes=_codes(bool(sexes[number - 1]), float(ages[number - 1]), generator),
        )
        for number, hospital in enumerate(hospitals, start=1)
    ]


def draw_head(person: Person) -> dict[str, NDArray[np.uint8]]:
    """The volumes of one subject, deterministic, background exactly 0.

    Returns:
        By contrast, ``(32, 32, 16)`` uint8 in RAS orientation.
    """
    generator = np.random.default_rng(person.seed)
    scale = _SIZE[person.sex] * (1 + _SIZE_SD * generator.standard_normal())
    radii = scale * np.array(_RADII_MM) * (1 + _AXIS_SD * generator.standard_normal(3))
    years = person.age - 20
    gap = 0.03 + 0.0006 * years
    cortex = 0.200 - 0.0012 * years + 0.006 * generator.standard_normal()
    ventricle = 0.16 + 0.0022 * years + 0.015 * generator.standard_normal()
    grid = _grid()  # (3, X, Y, Z), mm
    shift = _SHIFT_MM * generator.standard_normal(3)
    at = (grid - shift.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)  # in units of the head
    radius = np.sqrt((at**2).sum(axis=0))  # (X, Y, Z)
    brain = _SKULL - gap
    white = _inside(brain - cortex - radius)
    for centre in _VENTRICLE_AT:
        white = white * (1 - _inside(ventricle - _distance(at, centre, _VENTRICLE_SHAPE)))
    grey = _inside(brain - radius) * _inside(radius - brain + cortex)
    artery = np.max(
        [_inside(_ARTERY_MM / radii.mean() - _to_segment(at, *ends)) for ends in _ARTERIES], axis=0
    )
    inner = _inside(_SKULL - radius)
    scanner = SCANNERS[person.hospital]
    field = 1 + np.tensordot(scanner.bias, grid / np.abs(grid).max(axis=(1, 2, 3), keepdims=True), axes=1)
    head = radius < 1
    volumes = {}
    for name in CONTRASTS:  # draw all, so that a missing one changes no other
        scalp, csf, grey_matter, white_matter, blood = _BRIGHTNESS[name]
        soft = csf + (grey_matter - csf) * grey + (white_matter - csf) * white
        image = scalp + (soft - scalp) * inner
        image = image + (blood - image) * artery
        image = image * field + scanner.noise * generator.standard_normal(image.shape)
        stored = np.clip(np.rint(_WHITE * scanner.gain * image), 1, 255)  # 0 is background
        volumes[name] = np.where(head, stored, 0).astype(np.uint8)
    return {name: volumes[name] for name in person.contrasts}


def expected_volume_auc() -> float:
    """AUC of head volume for sex: two normal distributions of the log volume."""
    apart = 3 * math.log(_SIZE["male"] / _SIZE["female"])
    sd = math.sqrt((3 * _SIZE_SD) ** 2 + 3 * _AXIS_SD**2)
    return 0.5 * (1 + math.erf(apart / (2 * sd)))


def _inside(depth: Array) -> Array:
    """1 below a surface (positive depth), 0 above it, with a soft edge."""
    return np.asarray(0.5 * (1 + np.tanh(depth / _EDGE)), dtype=np.float64)


def _distance(at: Array, centre: tuple[float, ...], shape: tuple[float, ...]) -> Array:
    """Distance from a centre, scaled by the half axes of an ellipsoid."""
    offset = at - np.array(centre).reshape(3, 1, 1, 1)
    return np.asarray(np.sqrt(((offset / np.array(shape).reshape(3, 1, 1, 1)) ** 2).sum(axis=0)))


def _to_segment(at: Array, start: tuple[float, ...], end: tuple[float, ...]) -> Array:
    """Distance to the line from start to end."""
    first = np.array(start).reshape(3, 1, 1, 1)
    line = np.array(end).reshape(3, 1, 1, 1) - first
    along = np.clip(((at - first) * line).sum(axis=0) / (line**2).sum(), 0, 1)  # (X, Y, Z)
    return np.asarray(np.sqrt(((at - first - along * line) ** 2).sum(axis=0)))


def _grid() -> Array:
    """``(3, X, Y, Z)``: voxel positions in mm from the centre of the field."""
    axes = [
        spacing * (np.arange(length) - (length - 1) / 2)
        for spacing, length in zip(SPACING_MM, reversed(SIZE), strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _codes(female: bool, age: float, generator: np.random.Generator) -> tuple[int, ...]:
    """Height, weight, ethnicity, marital status, occupation and qualification; 0 is missing."""
    height, weight = (164, 66) if female else (177, 80)
    cells = [
        round(height + 7 * generator.standard_normal()),
        round(weight + 10 * generator.standard_normal()),
        int(generator.choice([1, 3, 4, 5, 6], p=[0.8, 0.08, 0.05, 0.03, 0.04])),
        int(generator.integers(1, 6)),
        5 if age > 65 else int(generator.choice([1, 2, 3, 4, 6, 7, 8])),  # noqa: PLR2004 - most are retired
        int(generator.integers(1, 6)),
    ]
    unknown = generator.random(len(cells)) < 0.1  # noqa: PLR2004 - arbitrary
    return tuple(0 if gone else cell for cell, gone in zip(cells, unknown.tolist(), strict=True))


def _write_folder(folder: Path, people: list[Person]) -> None:
    """Write an IXI-shaped folder: one subfolder per contrast, and the table."""
    folder.mkdir(parents=True)
    (folder / SYNTHETIC_FILE).write_text(
        "Head phantoms drawn by `mmare-sim prepare synthetic --kind scans`: no person's data.\n"
        "This folder is replaced with the federation folder around it.\n",
        encoding="utf-8",
    )
    for name in CONTRASTS:
        (folder / f"IXI-{name.upper()}").mkdir()
    with (folder / "IXI.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(IXI_COLUMNS)
        for person in people:
            writer.writerow([person.number, 1 + (person.sex == "female"), *person.codes, person.age])
            for name, voxels in draw_head(person).items():
                contrast = name.upper()
                file = f"IXI{person.number:03d}-{person.hospital}-{1000 + person.number}-{contrast}.nii.gz"
                (folder / f"IXI-{contrast}" / file).write_bytes(
                    _nifti(voxels, SCANNERS[person.hospital].axes)
                )


def _nifti(voxels: NDArray[np.uint8], axes: str) -> bytes:
    """A compressed NIfTI file with the voxels in a scanner's storage order."""
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = [
        -spacing * (length - 1) / 2 for spacing, length in zip(SPACING_MM, voxels.shape, strict=True)
    ]
    image = nib.Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]  # nibabel has no types here
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]  # nibabel has no types here
    order = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))  # type: ignore[no-untyped-call]  # nibabel has no types here
    stored = image.as_reoriented(order)  # type: ignore[no-untyped-call]  # nibabel has no types here
    return gzip.compress(stored.to_bytes(), compresslevel=6, mtime=0)  # mtime=0: same seed, same bytes
