"""What a site has for a study, before anything is encoded or trained: found, usable, refused and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Group
from rich.table import Table

from client.data.cache import EmbeddingCache
from client.data.dataset import presence_of
from client.data.scan_list import list_scan, scans_of
from client.data.site_secret import split_seed
from client.encoders.registry import check_encoders
from client.ingest.reasons import ScanReason, ScanRefused, refused_by
from mmare.errors import DataError
from mmare.study.choices import Kind, Scans
from mmare.tasks.registry import task_of
from mmare.wire.messages import Split
from sites.features import load_bags
from sites.manifest import load_manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study
    from sites.config import SiteConfig
    from sites.manifest import Manifest

__all__ = ["ModalityCheck", "check_site", "report_table"]

Progress = Callable[[str, int, int], None]  # modality, done, total


@dataclass(frozen=True)
class ModalityCheck:
    """One modality at one site."""

    modality: str
    found: NDArray[np.bool_]  # (N,) rows for which the site names a file or value
    usable: NDArray[np.bool_]  # (N,) rows that a model could use
    refused: Counter[tuple[ScanReason, str]]  # rows per code and detail
    note: str = ""  # about vectors that no row has, or voxels that were not read


def check_site(
    site: SiteConfig,
    study: Study,
    progress: Progress = lambda _name, _done, _total: None,
    *,
    read_voxels: bool = False,
) -> tuple[Manifest, list[ModalityCheck]]:
    """Read everything that the study would use; scans are opened, none is encoded.

    With ``read_voxels`` scans and masks are read and preprocessed as by `embed`: both refuse the same.

    Raises:
        DataError: If manifest, features or study cannot be used at all; names file, row, found and expected.
    """
    check_encoders(study)
    manifest = load_manifest(site.manifest, study, partial(split_seed, site.folder))
    results = []
    for modality in study.modalities:
        if modality.name not in site.modalities:
            none = np.zeros(len(manifest.patient_ids), dtype=bool)
            results.append(ModalityCheck(modality.name, none, none, Counter()))
        elif modality.kind is Kind.VOLUME:
            results.append(_scans(site, study, modality, manifest, progress, read_voxels=read_voxels))
        else:
            results.append(_given(site, study, modality, manifest))
    return manifest, results


def _given(site: SiteConfig, study: Study, modality: ModalitySpec, manifest: Manifest) -> ModalityCheck:
    """Texts, or the vectors of a features file and how many of them have an id that the manifest lacks."""
    file = site.modalities[modality.name].file
    if file is None or modality.kind is not Kind.FEATURES:
        present = presence_of(modality, manifest, site, study)
        return ModalityCheck(modality.name, present, present, Counter())
    vectors = load_bags(file, modality.width, repeated=modality.scans is not Scans.ONE)
    present = np.array([patient in vectors for patient in manifest.patient_ids], dtype=bool)
    strangers = len(vectors) - int(present.sum())
    found = f"{strangers} of {len(vectors)} vectors in {file.name} match no patient of {manifest.source.name}"
    return ModalityCheck(modality.name, present, present, Counter(), found if strangers else "")


def _scans(
    site: SiteConfig,
    study: Study,
    modality: ModalitySpec,
    manifest: Manifest,
    progress: Progress,
    *,
    read_voxels: bool,
) -> ModalityCheck:
    from client.data.read_scan import read_scan, try_scan  # noqa: PLC0415 - importing the readers takes seconds

    rows = len(manifest.patient_ids)
    found, usable = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=bool)
    refused: Counter[tuple[ScanReason, str]] = Counter()
    scans = [scan for scan in scans_of(site, study, manifest) if scan.modality.name == modality.name]
    cache = EmbeddingCache(site.cache)
    for done, scan in enumerate(scans):
        found[scan.row] = True
        try:
            if read_voxels:
                read_scan(site, scan, list_scan(cache, site, scan).key)
            else:
                try_scan(site, scan)
            usable[scan.row] = True
        except (DataError, OSError) as error:
            why = refused_by(error)
            refused[why.reason, why.detail] += 1
        progress(modality.name, done + 1, len(scans))
    note = "" if read_voxels or not scans else "voxels not opened (--read-voxels reads them as embed does)"
    return ModalityCheck(modality.name, found, usable, refused, note)


def report_table(site: SiteConfig, study: Study, manifest: Manifest, results: list[ModalityCheck]) -> Group:
    """Summary table: patients per split and class, then each modality in each of them; refusals below."""
    groups = [(split, label) for split in Split for label in range(len(study.classes))]
    strata = task_of(study).stratum(torch.from_numpy(manifest.labels)).numpy()
    rows = {(split, label): (manifest.splits == split.value) & (strata == label) for split, label in groups}
    table = Table(box=None, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for heading in ("found", "usable"):
        table.add_column(heading, justify="right")
    for split, label in groups:
        table.add_column(f"{split}\n{study.classes[label]}", justify="right")
    every = len(manifest.patient_ids)
    table.add_row("patients", str(every), str(every), *(str(int(rows[group].sum())) for group in groups))
    for result in results:
        cells = [str(int((result.usable & rows[group]).sum())) for group in groups]
        name = result.modality + (" (not at this site)" if result.modality not in site.modalities else "")
        table.add_row(name, str(int(result.found.sum())), str(int(result.usable.sum())), *cells)
    lines = [
        f"{result.modality}: {count} refused: {ScanRefused(*why)}"
        for result in results
        for why, count in sorted(result.refused.items())
    ]
    lines += [f"{result.modality}: {result.note}" for result in results if result.note]
    without = int((~np.stack([result.usable for result in results]).any(axis=0)).sum())
    if without:
        lines.append(
            f"{without} patients have no usable modality; runs refuse the site until they are removed"
        )
    return Group(f"site {site.id}, study {study.name}", "", table, *([""] if lines else []), *lines)
