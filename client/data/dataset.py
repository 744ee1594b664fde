"""A site's patients as tensors: manifest, features, texts and embeddings combined for one study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from client.data.cache import EmbeddingCache
from client.data.scan_list import list_scan, scan_fingerprint, scans_of
from client.encoders.registry import GIVEN, encoder_entry, encoder_source
from mmare.errors import DataError
from mmare.models.scans import Bag
from mmare.study.choices import Kind, Scans
from mmare.study.encoding import load_encoding
from mmare.wire.messages import Split
from sites.features import load_bags
from sites.manifest import load_manifest
from sites.prompts import compile_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from mmare.study.encoding import Encoding
    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study
    from sites.config import ModalitySource, SiteConfig
    from sites.manifest import Patients

    Vectors = Iterable[tuple[int, NDArray[np.float32]]]  # row of the manifest, (W,)

__all__ = [
    "SiteData",
    "load_data",
    "modality_fingerprint",
    "presence_of",
    "read_inputs",
    "vectors_of",
]


@dataclass(frozen=True)
class SiteData:
    """The patients of a site."""

    embedding: tuple[Tensor, ...]  # (N, W_j) float32 per modality in slot order, zero where absent
    present: Tensor  # (N, M) bool
    label: Tensor  # (N,) int64
    rows: Mapping[Split, Tensor]  # row numbers
    encoders: Mapping[str, str]  # fingerprint per modality that the site has
    patients: tuple[str, ...] = ()  # ids, which never leave; empty: rows are counted
    bags: Mapping[int, Bag] = field(default_factory=dict)  # by slot, where patients have several scans

    def tensors(self) -> dict[str, Tensor]:
        """All of it but the ids, by name."""
        rows = {f"rows/{split}": rows for split, rows in self.rows.items()}
        embedding = {f"embedding/{slot}": part for slot, part in enumerate(self.embedding)}
        return {**embedding, "present": self.present, "label": self.label, **rows}

    @classmethod
    def pooled(cls, sites: Sequence[SiteData]) -> SiteData:
        """The rows of several sites, in the order given."""
        starts = np.cumsum([0, *(len(site.label) for site in sites)]).tolist()
        return cls(
            embedding=tuple(
                torch.cat(parts) for parts in zip(*(site.embedding for site in sites), strict=True)
            ),
            present=torch.cat([site.present for site in sites]),
            label=torch.cat([site.label for site in sites]),
            rows={
                split: torch.cat(
                    [site.rows[split] + start for site, start in zip(sites, starts, strict=False)]
                )
                for split in Split
            },
            bags={
                slot: Bag(
                    torch.cat(
                        [
                            s.bags[slot].rows + start
                            for s, start in zip(sites, starts, strict=False)
                            if slot in s.bags
                        ]
                    ),
                    torch.cat([s.bags[slot].vectors for s in sites if slot in s.bags]),
                )
                for slot in sorted({slot for site in sites for slot in site.bags})
            },
            encoders={name: mark for site in sites for name, mark in site.encoders.items()},
            patients=tuple(patient for site in sites for patient in site.patients),
        )


def load_data(site: SiteConfig, study: Study, split_seed: Callable[[], int] | None = None) -> SiteData:
    """Read what a site holds of a study's modalities.

    ``split_seed`` draws the split of a table that has none; by default the study's seed, for simulations: a
    hospital draws from a secret, since its coordinator knows the seed.

    Raises:
        DataError: If a file is missing or cannot be used, or a patient has no modality; names file and row.
    """
    manifest = load_manifest(site.manifest, study, split_seed)
    embedding, present, bags = read_inputs(
        study,
        len(manifest.patient_ids),
        {
            modality.name: vectors_of(modality, manifest, site, study)
            for modality in study.modalities
            if modality.name in site.modalities
        },
    )
    encodings: dict[Path, Encoding] = {}
    for row in torch.nonzero(~present.any(dim=1)).flatten().tolist():
        raise DataError(
            f"{manifest.source}: data row {row + 1} has none of the study's modalities "
            f"({', '.join(modality.name for modality in study.modalities)}); expected at least one"
        )
    return SiteData(
        embedding=embedding,
        present=present,
        label=torch.from_numpy(manifest.labels),
        rows={split: torch.from_numpy(np.flatnonzero(manifest.splits == split.value)) for split in Split},
        encoders={
            modality.name: modality_fingerprint(modality, site, encodings)
            for modality in study.modalities
            if modality.name in site.modalities
        },
        patients=manifest.patient_ids,
        bags=bags,
    )


def read_inputs(
    study: Study, patients: int, vectors: Mapping[str, Vectors]
) -> tuple[tuple[Tensor, ...], Tensor, dict[int, Bag]]:
    """What a model takes of N patients.

    Args:
        study: Whose modalities they are.
        patients: N.
        vectors: By modality; others are absent. Several of a row are fused by the modality's ``scans``.

    Returns:
        ``(N, W_j)`` float32 per modality in slot order, zero where absent, the mean of several scans; which
        are present, ``(N, M)``; and the scans of those who have several, unless their mean is all.
    """
    bags: dict[int, Bag] = {}
    embedding, present = [], np.zeros((patients, len(study.modalities)), dtype=bool)
    for slot, modality in enumerate(study.modalities):
        rows = np.zeros((patients, modality.width), dtype=np.float32)
        given = vectors.get(modality.name, ())
        distinct = {} if modality.scans is Scans.ONE else _distinct(given)
        means = ((row, _mean(several)) for row, several in distinct.items())
        for row, vector in given if modality.scans is Scans.ONE else means:
            rows[row], present[row, slot] = vector, True
        several = [
            (row, vector) for row in sorted(distinct) for vector in distinct[row] if len(distinct[row]) > 1
        ]
        if several and modality.scans is not Scans.MEAN:
            whose, scans = zip(*several, strict=True)
            bags[slot] = Bag(torch.tensor(whose), torch.from_numpy(np.stack(scans)))
        embedding.append(torch.from_numpy(rows))
    return tuple(embedding), torch.from_numpy(present), bags


def _distinct(vectors: Vectors) -> dict[int, list[NDArray[np.float32]]]:
    """The vectors of each row, each once, in an order that their values fix."""
    bags: dict[int, dict[bytes, NDArray[np.float32]]] = {}
    for row, vector in vectors:
        bags.setdefault(row, {})[vector.tobytes()] = vector
    return {row: [found[key] for key in sorted(found)] for row, found in bags.items()}


def _mean(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Of vectors ``(W,)``; NaN is a blank cell."""
    bag = np.stack(vectors).astype(np.float64)  # (n, W)
    known = ~np.isnan(bag)
    total, over = np.where(known, bag, 0).sum(axis=0), known.sum(axis=0)
    return np.where(over > 0, total / np.maximum(over, 1), np.nan).astype(np.float32)


def vectors_of(modality: ModalitySpec, patients: Patients, site: SiteConfig, study: Study) -> Vectors:
    """Vectors ``(W,)`` of the patients who have a modality at a site, with their rows; some may have several.

    Raises:
        DataError: If a file is missing or cannot be used, or a scan is not embedded yet.
    """
    return _VECTORS[modality.kind](modality, patients, site, study)


def presence_of(
    modality: ModalitySpec, manifest: Patients, site: SiteConfig, study: Study
) -> NDArray[np.bool_]:
    """Which patients have a modality of features or text, ``(N,)``; a DataError if they cannot be read."""
    present = np.zeros(len(manifest.patient_ids), dtype=bool)
    for row, _ in vectors_of(modality, manifest, site, study):
        present[row] = True
    return present


def _feature_vectors(modality: ModalitySpec, manifest: Patients, site: SiteConfig, _study: Study) -> Vectors:
    source = site.modalities[modality.name]
    if source.file is None:
        raise DataError(f"{manifest.source}: modality {modality.name} needs a features file in site.toml")
    several = modality.scans is not Scans.ONE
    table = load_bags(source.file, modality.width, repeated=several)
    for row, patient in enumerate(manifest.patient_ids):
        bag = table.get(patient, ())
        yield from ((row, vector) for vector in (bag if several else bag[:1]))


def _text_vectors(modality: ModalitySpec, manifest: Patients, site: SiteConfig, _study: Study) -> Vectors:
    """Embeddings of texts, encoded on the fly."""
    texts = _texts(modality, site.modalities[modality.name], manifest)
    chosen = {row: text for row, text in enumerate(texts) if text is not None}
    if chosen:
        source = encoder_source(site, modality.name)
        make = encoder_entry(modality, source).open_text
        assert make is not None  # noqa: S101 - check_encoders admits text encoders only
        encoder = make(source, modality.width)
        yield from zip(chosen, encoder.encode(list(chosen.values())), strict=True)


def _scan_vectors(modality: ModalitySpec, manifest: Patients, site: SiteConfig, study: Study) -> Vectors:
    """Cached embeddings of scans; a refused scan is a missing modality."""
    cache = EmbeddingCache(site.cache)
    for scan in scans_of(site, study, manifest):
        if scan.modality.name != modality.name:
            continue
        listed = list_scan(cache, site, scan)
        if listed.vector is not None:
            yield scan.row, listed.vector
        elif listed.refused is None:
            raise DataError(
                f"{manifest.source}: data row {scan.row + 1}: the scan of {modality.name} is not embedded; "
                "run mmare-site embed first"
            )


_VECTORS: Final = {Kind.FEATURES: _feature_vectors, Kind.TEXT: _text_vectors, Kind.VOLUME: _scan_vectors}


def modality_fingerprint(
    modality: ModalitySpec, site: SiteConfig, read: dict[Path, Encoding] | None = None
) -> str:
    """What made a modality's vectors at a site: encoder, weights and steps, or the encoding of a table.

    Args:
        read: The encoding files read so far, which modalities share; a new one is added.
    """
    if modality.kind is Kind.VOLUME:
        return scan_fingerprint(site, modality)
    if modality.kind is Kind.TEXT:
        source = encoder_source(site, modality.name)
        return encoder_entry(modality, source).fingerprint(source, "")
    file = site.modalities[modality.name].encoding
    if file is None:
        return GIVEN
    read = {} if read is None else read
    if file not in read:
        read[file] = load_encoding(file)
    return f"{GIVEN}:{read[file].fingerprint(modality.name)}"


def _texts(modality: ModalitySpec, source: ModalitySource, manifest: Patients) -> list[str | None]:
    """Each patient's text, as given or rendered by the study's prompt; None where all fields are blank."""
    table = manifest.table
    wanted = (source.column,) if source.column is not None else source.columns
    if not wanted:
        raise DataError(f"{manifest.source}: modality {modality.name} is text and needs column or columns")
    for column in wanted:
        if column not in table.columns:
            raise DataError(f"{manifest.source}: modality {modality.name} needs the column {column!r}")
    if source.column is not None:
        return [text if isinstance(text, str) and text else None for text in table[source.column]]
    prompt = compile_prompt(modality.prompt or "")
    records = table[list(wanted)].to_dict("records")
    return [
        prompt.render(
            {str(key): value if isinstance(value, str) else None for key, value in record.items()},
            modality.prompt_mode,
        )
        for record in records
    ]
