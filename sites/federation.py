"""Federation folders: ``study.toml`` and one sub-folder per site, found and written."""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w

from mmare.errors import DataError
from mmare.host.files import slug
from mmare.study.specs import ModalitySpec
from mmare.study.study import STUDY_FILE, Study
from mmare.wire.messages import Split
from sites.config import SiteConfig, load_site
from sites.features import Vectors, write_features
from sites.manifest import ID, LABEL, SPLIT

__all__ = [
    "AMPUTATION_FILE",
    "SCANS_FOLDER",
    "SYNTHETIC_FILE",
    "Prepared",
    "SiteCounts",
    "SiteTables",
    "check_target",
    "having",
    "site_folders",
    "site_id",
    "write_federation",
]

SITE_FILE, MANIFEST_FILE = "site.toml", "patients.csv"

# What was taken away on purpose lies beside the study, where sites do not see it.
AMPUTATION_FILE = "amputation.json"

# Scans that we drew ourselves may lie in a federation folder and be replaced with it. The file says that they
# are ours: a folder of scans without it is somebody's own.
SCANS_FOLDER, SYNTHETIC_FILE = "scans", "SYNTHETIC.txt"


@dataclass(frozen=True)
class SiteTables:
    """What one site shall hold.

    Args:
        name: As people call it; its `site_id` is the folder's name and the site's id.
        manifest: One row per patient: ``patient_id``, ``label`` (a class name), ``split``, and the columns
            that ``columns`` names; missing cells are ``None`` or NaN.
        features: By modality, vectors by patient id; without a vector the patient lacks the modality. A
            modality in none of ``features``, ``columns`` and ``scans``, or without any vector, is one that
            the site never has.
        columns: By modality, the manifest columns that a prompt uses.
        scans: By modality, the manifest column with the path of a scan, absolute or relative to the site's
            folder. A modality without any path is one that the site never has.
    """

    name: str
    manifest: pd.DataFrame
    features: Mapping[str, Vectors] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scans: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteCounts:
    """What was written for one site.

    Args:
        id: Of the site.
        patients: Number by split and class name.
        present: Number of patients that have a modality, by its name.
    """

    id: str
    patients: Mapping[tuple[Split, str], int]
    present: Mapping[str, int]

    @property
    def n_patients(self) -> int:
        """All patients of the site."""
        return sum(self.patients.values())


@dataclass(frozen=True)
class Prepared:
    """A federation folder that was written, with the counts that a person wants to see.

    Args:
        folder: Where it is.
        study: As in its ``study.toml``.
        sites: In id order.
        notes: Sentences about what was left out or replaced on the way.
        amputation: As in its ``amputation.json``; none where nothing was taken away.
    """

    folder: Path
    study: Study
    sites: tuple[SiteCounts, ...]
    notes: tuple[str, ...] = ()
    amputation: Mapping[str, Any] | None = None


def site_id(name: str) -> str:
    """A site's name as a folder name and id: lower case letters, digits and dashes.

    Raises:
        DataError: If nothing of the name is left.

    Example:
        >>> site_id("Hôpital St. Anne / Nord")
        'hopital-st-anne-nord'
    """
    identity = slug(name)
    if not identity:
        raise DataError(f"site {name!r}: a name needs at least one letter or digit of the Latin alphabet")
    return identity


def site_folders(federation: Path) -> tuple[SiteConfig, ...]:
    """The sites of a federation folder, sorted by id.

    Args:
        federation: Folder with ``study.toml`` and one sub-folder with ``site.toml`` per site; other
            sub-folders are passed over.

    Raises:
        DataError: If it is no folder, has no ``study.toml`` or no site, a ``site.toml`` cannot be used, or
            two sites have one id.
    """
    if not federation.is_dir():
        raise DataError(f"{federation}: no such folder, expected a federation folder")
    if not (federation / STUDY_FILE).is_file():
        raise DataError(f"{federation}: no {STUDY_FILE} in it, expected a federation folder")
    files = sorted(federation.glob(f"*/{SITE_FILE}"))
    if not files:
        raise DataError(f"{federation}: no site, expected at least one sub-folder with a {SITE_FILE}")
    sites: dict[str, SiteConfig] = {}
    for file in files:
        site = load_site(file)
        if site.id in sites:
            raise DataError(
                f"{file}: site id {site.id!r} is already that of {sites[site.id].folder}, "
                "expected one id per site"
            )
        sites[site.id] = site
    return tuple(sites[identity] for identity in sorted(sites))


def write_federation(
    out: Path,
    study: Study,
    sites: Sequence[SiteTables],
    overwrite: bool = False,
    synthetic_scans: Path | None = None,
    amputation: Mapping[str, Any] | None = None,
) -> Prepared:
    """Write a federation folder, whole or not at all.

    The folder grows beside ``out`` under another name and is renamed when it is complete.

    Args:
        out: The folder to write; parents are made.
        study: Written as ``study.toml``, with ``federation.min_sites`` at most the number of sites.
        sites: At least one; same tables, same bytes.
        overwrite: Replace a federation folder that is there already; nothing else is ever replaced.
        synthetic_scans: A folder with the file `SYNTHETIC_FILE` that moves into the federation folder as
            ``scans``, so that manifests may name ``../scans/…``; beside ``out``, on one file system.
        amputation: Written as ``amputation.json`` where something was taken away.

    Raises:
        DataError: If ``out`` is in the way, there is no site or no train row, two sites have one id, or a
            site has no patient, a patient twice, a patient without any modality, or a class that the study
            does not know.
    """
    check_target(out, overwrite=overwrite)
    if not sites:
        raise DataError(f"{out}: no site is left, expected at least one with patients")
    tables: dict[str, SiteTables] = {}
    for site in sites:
        identity = site_id(site.name)
        if identity in tables:
            raise DataError(
                f"sites {tables[identity].name!r} and {site.name!r} would both have the id {identity!r}, "
                "expected one id per site"
            )
        tables[identity] = site
    fewest = min(study.federation.min_sites, len(sites))  # one site alone is a federation too
    study = replace(study, federation=replace(study.federation, min_sites=fewest))
    counts = tuple(_count(identity, tables[identity], study) for identity in sorted(tables))
    n_train = sum(n for site in counts for (split, _), n in site.patients.items() if split is Split.TRAIN)
    if not n_train:
        raise DataError(f"{out}: no patient of any site is in the split {Split.TRAIN}, expected at least one")
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        _write_toml(partial / STUDY_FILE, study.to_dict())
        for identity, site in tables.items():
            _write_site(partial / identity, identity, site)
        if amputation is not None:
            content = json.dumps(amputation, indent=2, ensure_ascii=False, allow_nan=False)
            (partial / AMPUTATION_FILE).write_text(content + "\n", encoding="utf-8")
        if synthetic_scans is not None:
            synthetic_scans.rename(partial / SCANS_FOLDER)
        _replace(partial, out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or type(error).__name__})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Prepared(out, study, counts, amputation=amputation)


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse to write where something else is; cheap, so that a long preparation can ask first.

    Raises:
        DataError: If ``out`` is a file, or a folder that is not empty, unless it is a federation folder with
            nothing else in it and ``overwrite`` is set.
    """
    if not out.name:
        raise DataError(f"{out}: expected the path of a new folder")
    if not (out.exists() or out.is_symlink()):
        return
    if not out.is_dir() or out.is_symlink():
        raise DataError(f"{out}: this is not a folder, expected a new or an empty one")
    entries = sorted(out.iterdir())
    if not entries:
        return
    if not overwrite:
        raise DataError(f"{out}: the folder is not empty; choose another one or add --overwrite")
    foreign = [entry.name for entry in entries if not _is_ours(entry)]
    if foreign or not (out / STUDY_FILE).is_file():
        found = f"it holds {foreign[0]!r}" if foreign else f"it has no {STUDY_FILE}"
        raise DataError(f"{out}: only a federation folder is overwritten, and this is none: {found}")


def _is_ours(entry: Path) -> bool:
    """Whether something in a federation folder was made by `write_federation`."""
    drawn = entry.name == SCANS_FOLDER and (entry / SYNTHETIC_FILE).is_file()
    return drawn or entry.name in {STUDY_FILE, AMPUTATION_FILE} or (entry / SITE_FILE).is_file()


def _count(identity: str, site: SiteTables, study: Study) -> SiteCounts:
    """Check the tables of one site and count what is in them."""
    rows = site.manifest
    ids = [str(value) for value in rows[ID]]
    if not ids:
        raise DataError(f"site {identity}: no patient, expected at least one")
    repeated = [value for value, times in Counter(ids).items() if times > 1]
    if repeated:
        raise DataError(
            f"site {identity}: patient {repeated[0]!r} occurs twice, expected one row per patient"
        )
    unknown = [str(value) for value in rows[LABEL] if value not in study.classes]
    if unknown:
        raise DataError(
            f"site {identity}: label {unknown[0]!r} is no class of the study, expected one of "
            f"{', '.join(study.classes)}"
        )
    present = {entry.name: having(ids, site, entry) for entry in study.modalities}
    anything = set().union(*present.values())
    for row, patient in enumerate(ids, start=1):
        if patient not in anything:
            raise DataError(
                f"site {identity}, row {row}: patient {patient!r} has no modality, expected at least one of "
                f"{', '.join(present)}"
            )
    cells = zip(rows[SPLIT], rows[LABEL], strict=True)
    patients = Counter((Split(str(split)), str(label)) for split, label in cells)
    every = {(split, name): patients[split, name] for split in Split for name in study.classes}
    return SiteCounts(identity, every, {name: len(having) for name, having in present.items()})


def having(ids: Sequence[str], site: SiteTables, modality: ModalitySpec) -> set[str]:
    """The patients of a site that have a modality, its vectors checked against the study.

    Args:
        ids: Of the manifest, row by row.
        site: Its tables.
        modality: Of the study.

    Raises:
        DataError: If a vector has another shape than the study's.
    """
    scan = (site.scans[modality.name],) if modality.name in site.scans else ()
    if columns := scan or site.columns.get(modality.name, ()):
        cells = site.manifest[list(columns)].notna().any(axis=1)
        return {patient for patient, has in zip(ids, cells, strict=True) if has}
    vectors = site.features.get(modality.name, {})
    for patient, vector in vectors.items():
        if vector.shape != (modality.width,):
            raise DataError(
                f"site {site_id(site.name)}, patient {patient!r}: {modality.name} has shape {vector.shape}, "
                f"expected ({modality.width},)"
            )
    return set(ids) & set(vectors)


def _write_site(folder: Path, identity: str, site: SiteTables) -> None:
    folder.mkdir()
    site.manifest.to_csv(folder / MANIFEST_FILE, index=False, lineterminator="\n")
    ids = [str(value) for value in site.manifest[ID]]
    sources: dict[str, dict[str, Any]] = {}
    for name, vectors in site.features.items():
        held = {patient: vectors[patient] for patient in ids if patient in vectors}
        if held:
            sources[name] = {"file": write_features(folder, name, held)}
    sources |= {name: {"columns": list(columns)} for name, columns in site.columns.items()}
    held_scans = {name: column for name, column in site.scans.items() if site.manifest[column].notna().any()}
    sources |= {name: {"column": column} for name, column in held_scans.items()}
    content = {
        "site": {"id": identity},
        "data": {"manifest": MANIFEST_FILE},
        "modality": sources,
        "policy": {"min_count": 0},  # one person's own simulation has nobody to hide small groups from
    }
    _write_toml(folder / SITE_FILE, content)


def _write_toml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_bytes(tomli_w.dumps(content).encode())


def _replace(new: Path, out: Path) -> None:
    """Put ``new`` where ``out`` is; should that fail, ``out`` is as it was."""
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".replaced")
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
