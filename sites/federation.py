"""Read and write federation folders: ``study.toml`` and one sub-folder per site."""

from __future__ import annotations

import hashlib
import json
import shutil
import unicodedata
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
from mmare.study.choices import ExtraAnswer, Scans, TaskName
from mmare.study.encoding import ENCODING_FILE, Encoding
from mmare.study.outcome import TASKS
from mmare.study.specs import ModalitySpec, PrivacySpec
from mmare.study.study import STUDY_FILE, Study
from mmare.wire.messages import Split
from sites.config import SiteConfig, load_site
from sites.features import Vectors, write_features
from sites.manifest import ID, SPLIT
from sites.outcomes import strata_of

__all__ = [
    "AMPUTATION_FILE",
    "NO_VALIDATION",
    "SCANS_FOLDER",
    "SIMULATED",
    "SITE_FILE",
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

_EVENT = TASKS[TaskName.SURVIVAL].strata[1]
# A simulation is not shared: small groups need no protection, its model can be calibrated and explained.
SIMULATED = PrivacySpec(min_count=0, extra=(ExtraAnswer.CALIBRATION, ExtraAnswer.SHAPLEY))

SITE_FILE, MANIFEST_FILE = "site.toml", "patients.csv"

NO_VALIDATION = (
    f"no patient is in the split {Split.VAL}: a run cannot select its best round and keeps the last one"
)

AMPUTATION_FILE = "amputation.json"  # beside the study, where sites do not see it

# Synthetic scans lie in the federation folder and are replaced with it. The file marks them as ours: a folder
# of scans without it belongs to the user.
SCANS_FOLDER, SYNTHETIC_FILE = "scans", "SYNTHETIC.txt"


@dataclass(frozen=True)
class SiteTables:
    """The content of one site's folder.

    Args:
        name: As people call it; its `site_id` is the folder's name and the site's id.
        manifest: One row per patient: ``patient_id``, ``label`` (a class name), or ``time`` and ``event`` of
            task survival, ``split``, and the columns
            that ``columns`` names; missing cells are ``None`` or NaN.
        features: By modality, vectors by patient id; a patient without a vector lacks the modality, as does a
            site without any.
        columns: By modality, the manifest columns that a prompt uses.
        scans: By modality, the manifest column with the path of a scan, absolute or relative to the site's
            folder; without any path the site does not have the modality.
    """

    name: str
    manifest: pd.DataFrame
    features: Mapping[str, Vectors] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scans: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteCounts:
    """Numbers of patients written for one site."""

    id: str
    patients: Mapping[tuple[Split, str], int]  # by split and class name
    present: Mapping[str, int]  # patients who have a modality, by its name

    @property
    def n_patients(self) -> int:
        """All patients of the site."""
        return sum(self.patients.values())


@dataclass(frozen=True)
class Prepared:
    """A federation folder just written, and its summary."""

    folder: Path
    study: Study
    sites: tuple[SiteCounts, ...]  # in id order
    notes: tuple[str, ...] = ()  # sentences about what was excluded or replaced
    amputation: Mapping[str, Any] | None = None  # as in ``amputation.json``; none if nothing was removed


def site_id(name: str) -> str:
    """A site's name as a folder name and id: lower case letters, digits and dashes.

    A name with letters of another alphabet ends in a mark of the whole name, so that two of them differ.

    Raises:
        DataError: If the name has no letter and no digit.

    Example:
        >>> site_id("Hôpital St. Anne / Nord"), site_id("北京 2")
        ('hopital-st-anne-nord', '2-70c1d2')
    """
    plain = unicodedata.normalize("NFKC", name).strip()
    if not any(character.isalnum() for character in plain):
        raise DataError(f"site {name!r}: a name needs at least one letter or digit")
    if not _in_other_script(plain):
        return slug(name)
    return f"{slug(name) or 'site'}-{hashlib.sha256(plain.encode()).hexdigest()[:6]}"


def _in_other_script(name: str) -> bool:
    """Whether an id of Latin letters and digits would lose a part of the name."""
    return not slug(name) or any(
        character.isalnum()
        and not slug(character)
        and not unicodedata.name(character, "").startswith("LATIN")
        for character in unicodedata.normalize("NFKD", name)
    )


def site_folders(federation: Path) -> tuple[SiteConfig, ...]:
    """The sites of a federation folder, sorted by id; sub-folders without ``site.toml`` are ignored.

    Raises:
        DataError: If it is not a folder, has no ``study.toml`` or no site, a ``site.toml`` is invalid, or two
            sites have the same id.
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
                f"{file}: site id {site.id!r} is already used by {sites[site.id].folder}, expected unique ids"
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
    encoding: Encoding | None = None,
) -> Prepared:
    """Write a federation folder atomically: same tables, same bytes.

    Args:
        out: The folder to write; parents are created.
        study: Written as ``study.toml``, with ``federation.min_sites`` at most the number of sites.
        overwrite: Replace an existing federation folder; nothing else is ever replaced.
        synthetic_scans: A folder with the file `SYNTHETIC_FILE`, on the same file system, that is moved to
            ``out/scans``, so that manifests may name ``../scans/…``.
        amputation: Written as ``amputation.json``.
        encoding: Of the modalities that were columns of a table; written beside the study and at each site.

    Raises:
        DataError: If ``out`` cannot be replaced, there is no site or no train row, two sites have the same
            id, or a site has no patient, a repeated patient, one without any modality, or an unknown class.
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
    if study.survival is not None and not any(site.patients[Split.TRAIN, _EVENT] for site in counts):
        raise DataError(f"{out}: no patient of the split {Split.TRAIN} has the event, expected at least one")
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        _write_toml(partial / STUDY_FILE, study.to_dict())
        _write_beside(partial, amputation, encoding)
        for identity, site in tables.items():
            _write_site(partial / identity, identity, site, encoding)
        if synthetic_scans is not None:
            synthetic_scans.rename(partial / SCANS_FOLDER)
        _replace(partial, out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or type(error).__name__})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    notes = [
        f"site {site.name} has the id {identity}"
        for identity, site in sorted(tables.items())
        if _in_other_script(site.name)
    ]
    if not any(n for site in counts for (split, _), n in site.patients.items() if split is Split.VAL):
        notes.append(NO_VALIDATION)
    notes += _without_events(counts, study)
    return Prepared(out, study, counts, tuple(notes), amputation=amputation)


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse to write over anything else; cheap, to be called before a long preparation.

    Raises:
        DataError: If ``out`` is a file or a non-empty folder, unless ``overwrite`` is set and it contains a
            federation and nothing else.
    """
    if not out.name:
        raise DataError(f"{out}: expected the path of a new folder")
    if not (out.exists() or out.is_symlink()):
        return
    if not out.is_dir() or out.is_symlink():
        raise DataError(f"{out}: not a folder, expected a new or an empty one")
    entries = sorted(out.iterdir())
    if not entries:
        return
    if not overwrite:
        raise DataError(f"{out}: the folder is not empty; choose another one or add --overwrite")
    foreign = [entry.name for entry in entries if not _is_ours(entry)]
    if foreign or not (out / STUDY_FILE).is_file():
        found = f"it holds {foreign[0]!r}" if foreign else f"it has no {STUDY_FILE}"
        raise DataError(f"{out}: expected a federation folder, which alone is overwritten: {found}")


def _is_ours(entry: Path) -> bool:
    """Whether an entry of a federation folder was made by `write_federation`."""
    synthetic = entry.name == SCANS_FOLDER and (entry / SYNTHETIC_FILE).is_file()
    return (
        synthetic
        or entry.name in {STUDY_FILE, AMPUTATION_FILE, ENCODING_FILE}
        or (entry / SITE_FILE).is_file()
    )


def _count(identity: str, site: SiteTables, study: Study) -> SiteCounts:
    """Validate the tables of one site and count its patients."""
    rows = site.manifest
    ids = [str(value) for value in rows[ID]]
    if not ids:
        raise DataError(f"site {identity}: no patient, expected at least one")
    repeated = [value for value, times in Counter(ids).items() if times > 1]
    if repeated:
        raise DataError(
            f"site {identity}: patient {repeated[0]!r} occurs twice, expected one row per patient"
        )
    strata = strata_of(rows, study)
    unknown = [value for value in strata if value not in study.classes]
    if unknown:
        raise DataError(
            f"site {identity}: label {unknown[0]!r} is not a class of the study, expected one of "
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
    cells = zip(rows[SPLIT], strata, strict=True)
    patients = Counter((Split(str(split)), str(label)) for split, label in cells)
    every = {(split, name): patients[split, name] for split in Split for name in study.classes}
    return SiteCounts(identity, every, {name: len(having) for name, having in present.items()})


def having(ids: Sequence[str], site: SiteTables, modality: ModalitySpec) -> set[str]:
    """Those of the manifest's ``ids`` who have a modality.

    Raises:
        DataError: If a vector has another shape than the study's.
    """
    scan = (site.scans[modality.name],) if modality.name in site.scans else ()
    if columns := scan or site.columns.get(modality.name, ()):
        cells = site.manifest[list(columns)].notna().any(axis=1)
        return {patient for patient, has in zip(ids, cells, strict=True) if has}
    vectors = site.features.get(modality.name, {})
    for patient, vector in vectors.items():
        several = modality.scans is not Scans.ONE and vector.ndim > 1 and len(vector)
        bag = vector[0] if several else vector
        if bag.shape != (modality.width,):
            raise DataError(
                f"site {site_id(site.name)}, patient {patient!r}: {modality.name} has shape {vector.shape}, "
                f"expected ({modality.width},)"
            )
    return set(ids) & set(vectors)


def _without_events(counts: Sequence[SiteCounts], study: Study) -> list[str]:
    """Sentences about splits and sites in which nobody has the event of task survival."""
    if study.survival is None:
        return []
    splits = [split for split in Split if not any(site.patients[split, _EVENT] for site in counts)]
    sites = [site.id for site in counts if not any(site.patients[split, _EVENT] for split in Split)]
    return [
        *(f"nobody of the split {split} has the event: its concordance is not defined" for split in splits),
        *(f"nobody of site {site} has the event; it trains all the same" for site in sites),
    ]


def _write_beside(folder: Path, amputation: Mapping[str, Any] | None, encoding: Encoding | None) -> None:
    """Write what lies beside the study."""
    if amputation is not None:
        content = json.dumps(amputation, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / AMPUTATION_FILE).write_text(content + "\n", encoding="utf-8")
    if encoding is not None:
        (folder / ENCODING_FILE).write_text(encoding.text(), encoding="utf-8")


def _write_site(folder: Path, identity: str, site: SiteTables, encoding: Encoding | None) -> None:
    folder.mkdir()
    site.manifest.to_csv(folder / MANIFEST_FILE, index=False, lineterminator="\n")
    ids = [str(value) for value in site.manifest[ID]]
    sources: dict[str, dict[str, Any]] = {}
    for name, vectors in site.features.items():
        held = {patient: vectors[patient] for patient in ids if patient in vectors}
        if held:
            sources[name] = {"file": write_features(folder, name, held)}
            if encoding is not None and name in encoding.modalities:
                sources[name]["encoding"] = ENCODING_FILE
    if encoding is not None and any("encoding" in source for source in sources.values()):
        shutil.copyfile(folder.parent / ENCODING_FILE, folder / ENCODING_FILE)
    sources |= {name: {"columns": list(columns)} for name, columns in site.columns.items()}
    held_scans = {name: column for name, column in site.scans.items() if site.manifest[column].notna().any()}
    sources |= {name: {"column": column} for name, column in held_scans.items()}
    named = {"display_name": site.name} if _in_other_script(site.name) else {}
    content = {
        "site": {"id": identity, **named},
        "data": {"manifest": MANIFEST_FILE},
        "modality": sources,
        "policy": {"min_count": 0},  # a simulation is not shared, so small groups need no protection
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
