"""New patients as the model takes them: the same ingest, encoders and cache as in training, or a refusal."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.data.dataset import modality_fingerprint, read_inputs, vectors_of
from client.data.embed import Progress, embed_scans
from client.data.scan_list import scans_of
from client.encoders.registry import check_encoders, encoder_notes
from client.ingest.slides.tissue import Tiling
from client.training.kept.state import StateStore
from client.training.own_scaling import take_scaling
from client.training.scans import weighed
from mmare.errors import DataError, InputError, RunError
from mmare.study.choices import Kind
from mmare.study.encoding import Encoding
from sites.encoding import encode
from sites.tabular import TextTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from client.data.scan_list import ListedScan, Scan
    from mmare.package.package import Package
    from sites.config import SiteConfig
    from sites.manifest import Patients

__all__ = ["PatientInputs", "Vectors", "encoded_columns", "site_inputs"]

Vectors = list[tuple[int, "NDArray[np.float32]"]]  # row of a patient, (W,)


@dataclass(frozen=True)
class PatientInputs:
    """N patients, of whom each has at least one modality."""

    patients: tuple[str, ...]
    embedding: tuple[Tensor, ...]  # (N, W_j) float32 per modality in slot order, zero where absent
    present: Tensor  # (N, M) bool
    remarks: Mapping[int, tuple[str, ...]]  # by row: why a scan of the patient is not used
    notes: tuple[str, ...] = ()  # about the inputs of all
    scans: tuple[Scan, ...] = ()  # whose embeddings these are


def site_inputs(
    package: Package,
    site: SiteConfig | None,
    patients: Patients,
    given: Mapping[str, Vectors] = {},
    progress: Progress = lambda _done, _total: None,
) -> PatientInputs:
    """Read the patients of a table, whose outcome need not be known, and encode what is not cached yet.

    Args:
        package: Whose model is to be used.
        site: How it holds its modalities; without one, vectors and columns of tables are all there is.
        patients: Paths in the table are relative to it; with the columns of the package's encoding in it,
            vectors are made of these, else taken from the site's features file.
        given: Vectors at hand, by modality.
        progress: Called with scans done and all.

    Raises:
        DataError: If something cannot be read, a patient has no modality or a path leads nowhere.
        InputError: If vectors would be made or scaled otherwise than in training.
        RunError: If nobody has any modality.
    """
    study = package.study
    check_encoders(study)
    take_scaling(package.model, package.weights, None if site is None else StateStore(site.cache))
    held = frozenset(() if site is None else site.modalities)
    vectors = {**encoded_columns(package.encoding, patients, held), **given}
    remarks: dict[int, list[str]] = defaultdict(list)
    scans = [] if site is None else _add_stored(package, site, patients, vectors, remarks, progress)
    embedding, present, bags = read_inputs(study, len(patients.patient_ids), vectors)
    embedding = weighed(package.model, embedding, bags)
    _check_anything(package, patients, present, remarks)
    had = {each.name for slot, each in enumerate(study.modalities) if bool(present[:, slot].any())}
    seen = package.model.scaling.visible(torch.ones(1, len(study.modalities), dtype=torch.bool))[0].tolist()
    hidden = [
        each.name for each, sees in zip(study.modalities, seen, strict=True) if each.name in had and not sees
    ]
    unknown = [name for name in had if name not in package.encoders and name not in hidden]
    notes = [
        *encoder_notes(study, had),
        *(f"No patient in training had {name}, so the model does not look at it" for name in hidden),
        *(f"No patient in training had {name}, so the model learned nothing of it" for name in unknown),
    ]
    told = {row: tuple(sentences) for row, sentences in remarks.items()}
    return PatientInputs(patients.patient_ids, embedding, present, told, tuple(notes), tuple(scans))


def _add_stored(
    package: Package,
    site: SiteConfig,
    patients: Patients,
    vectors: dict[str, Vectors],
    remarks: dict[int, list[str]],
    progress: Progress,
) -> list[Scan]:
    """Add the vectors of the modalities that a site stores; gives the scans used and remarks on others."""
    study = package.study
    stored = [each for each in study.modalities if each.name in site.modalities and each.name not in vectors]
    for modality in stored:
        fact = package.encoders.get(modality.name)
        found = modality_fingerprint(modality, site)
        if fact is not None and found != fact.fingerprint:
            raise InputError(
                f"{modality.name}: this site makes its vectors by {found}, the model was trained on "
                f"{fact.fingerprint}; predictions on other vectors mean nothing"
            )
    volumes = tuple(each for each in stored if each.kind is Kind.VOLUME)
    scans = scans_of(site, replace(study, modalities=volumes), patients) if volumes else []
    _check_paths(patients, scans)

    used: list[Scan] = []

    def keep(done: ListedScan, *, cached: bool) -> None:  # noqa: ARG001 - as `Tell`
        name, row = done.scan.modality.name, done.scan.row
        if done.vector is not None:
            used.append(done.scan)
            vectors.setdefault(name, []).append((row, done.vector))
        elif done.refused is not None:
            remarks[row].append(f"{name} is not used: {done.refused}")

    embed_scans(site, scans, progress, keep)
    for modality in stored:
        if modality.kind is not Kind.VOLUME:
            vectors[modality.name] = list(vectors_of(modality, patients, site, study))
    return used


def encoded_columns(
    encoding: Encoding | None, patients: Patients, held: frozenset[str] = frozenset()
) -> dict[str, Vectors]:
    """Vectors of the modalities whose columns the table has, by the package's encoding.

    Args:
        encoding: Of the package.
        patients: The table.
        held: Modalities of which the site has vectors; the table need not have all their columns.

    Raises:
        DataError: If columns are missing, or cells do not fit the encoding.
    """
    columns = set(patients.table.columns)
    groups = {} if encoding is None else encoding.modalities
    wanted = {
        name: group
        for name, group in groups.items()
        if (all if name in held else any)(each.name in columns for each in group)
    }
    if not wanted:
        return {}
    encoded = encode(Encoding(wanted), TextTable(patients.source, patients.table))
    return {
        name: [(row, part.matrix[row]) for row in np.flatnonzero(part.present).tolist()]
        for name, part in encoded.items()
    }


def _check_paths(patients: Patients, scans: list[Scan]) -> None:
    """Refuse a path that leads nowhere: a patient who has a scan would count as one without."""
    for scan in scans:
        if not scan.path.exists():
            what = "slide" if isinstance(scan.steps, Tiling) else "file or folder"
            raise DataError(
                f"{patients.source}: data row {scan.row + 1}: {scan.modality.name} names {scan.path}, "
                f"but there is no such {what}"
            )


def _check_anything(
    package: Package, patients: Patients, present: Tensor, remarks: Mapping[int, list[str]]
) -> None:
    bare = torch.nonzero(~present.any(dim=1)).flatten().tolist()
    expected = f"any of {', '.join(modality.name for modality in package.study.modalities)}"
    if len(bare) == len(present):
        why = "; ".join(dict.fromkeys(each for row in bare for each in remarks.get(row, ())))
        raise RunError(
            f"{patients.source}: none of {len(bare)} patients has {expected}, so there is nothing to predict "
            f"from{f' ({why})' if why else ''}"
        )
    for row in bare:
        why = "; ".join(remarks.get(row, ()))
        raise DataError(
            f"{patients.source}: data row {row + 1} has none of the model's modalities, expected {expected}"
            f"{f' ({why})' if why else ''}"
        )
