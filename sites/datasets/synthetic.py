"""A federation with a known optimum: hospitals with different scanners and different missing modalities.

Each patient has four latent causes, independent and standard normal, one per modality, which alone determine
the
disease::

    P(malignant) = sigmoid(1.2 * (cause_t1 + cause_t2 + cause_flair + cause_clinical))

where ``signal`` can weight a cause other than 1. An image's features are a fixed linear map of its cause and
two nuisances (such as anatomy), plus noise and an offset per hospital and modality (the scanner). The
clinical prompt describes its cause in coarse steps. So no scanner is informative, each modality carries a
quarter of the signal, and only their combination approaches the oracle that knows all causes: AUC 0.89,
against 0.69 for one cause (`expected_auc`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmare.errors import StudyError
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec, TrainingSpec
from mmare.study.study import Study
from sites.federation import SIMULATED, Prepared, SiteTables, check_target, having, write_federation
from sites.manifest import ID, SPLIT
from sites.missing.amputate import Embed, take_away
from sites.missing.plan import Missingness
from sites.options import Pattern, SyntheticKind, SyntheticPattern, choose, kept_modalities
from sites.outcomes import LABEL
from sites.prompts import compile_prompt
from sites.splits import three_way

__all__ = ["SYNTHETIC_PROMPT", "Cohort", "draw_cohort", "expected_auc", "hospitals", "prepare_synthetic"]

CLASSES = ("benign", "malignant")
IMAGES = ("t1", "t2", "flair")
CLINICAL = "clinical"
RARE = "flair"  # exists at the first hospital only, in the pattern of this name
WIDTH = 512

SYNTHETIC_PROMPT = (
    "The patient is [a {sex}|a person], [aged {age}|of unknown age]."
    "[ The biomarker is {marker}.|| The biomarker is not available.]"
    "[ Symptoms are {symptoms}.|| Symptoms are not available.]"
)

# Probability that a patient lacks the modality; 1 where the hospital has no such scanner.
MISSING: Mapping[str, Mapping[str, float]] = {
    "east": {"t1": 0.05, "t2": 0.10, "flair": 0.10, CLINICAL: 0.00},
    "north": {"t1": 0.10, "t2": 0.45, "flair": 0.30, CLINICAL: 0.10},
    "west": {"t1": 0.20, "t2": 0.20, "flair": 1.00, CLINICAL: 0.30},
}

_SLOPE = 1.2  # of the logit in each cause
_LOADING = 0.8  # standard deviation of the map's entries, in units of the noise
_OFFSET = 0.5  # standard deviation of a scanner's offset, in units of the noise
_N_NUISANCES = 2
_WORDS = {
    "marker": ("very low", "low", "slightly low", "slightly high", "high", "very high"),
    "symptoms": ("absent", "mild", "moderate", "severe"),
}
_EDGES = {"marker": (-1.2, -0.6, 0.0, 0.6, 1.2), "symptoms": (-0.9, 0.0, 0.9)}  # in units of the cause


@dataclass(frozen=True)
class Cohort:
    """All patients drawn, with their latent causes."""

    manifest: pd.DataFrame  # id, label, split, site and the clinical columns
    causes: NDArray[np.float64]  # (n_patients, 4): t1, t2, flair, clinical
    features: Mapping[
        str, Mapping[str, NDArray[np.float32]]
    ]  # by image modality and patient who has it, (512,)


def prepare_synthetic(  # noqa: PLR0913 - the flags of the command, one to one
    kind: str = SyntheticKind.FEATURES,
    *,
    out: Path,
    patients: int | None = None,
    seed: int = 0,
    n_sites: int | None = None,
    pattern: str = SyntheticPattern.NATURAL,
    signal: Mapping[str, float] | None = None,
    scanner: float | None = None,
    without: Sequence[str] = (),
    missing: Missingness = Missingness(),  # noqa: B008 - frozen; removes nothing
    overwrite: bool = False,
    embed: Embed | None = None,
) -> Prepared:
    """Write the synthetic federation of this module, or that of `sites.datasets.phantoms`.

    Args:
        kind: A `SyntheticKind`: features are drawn here, scans there.
        patients: Per hospital. Features: at least 20, by default 200. Scans: at least 10, by default 130.
        seed: Of patients, split, amputation and study.
        n_sites: Hospitals, by default three. This and the next five are for features only.
        pattern: A `SyntheticPattern`. The patients are the same in each; only what they lack differs.
        signal: Weight of the cause by modality; 1 by default.
        scanner: Strength of the scanners' effects: of `draw_cohort`.
        without: Modalities to omit; patients who have no other are omitted too.
        missing: What to remove in addition, apart from its pattern. Mar is driven by the marker by default.

    Raises:
        StudyError: If an option is out of range.
        DataError: If ``out`` cannot be replaced.
    """
    shape = choose(SyntheticPattern, pattern, "--pattern")
    if choose(SyntheticKind, kind, "--kind") is SyntheticKind.SCANS:
        given = (n_sites, shape, signal or None, scanner, tuple(without))
        if given != (None, SyntheticPattern.NATURAL, None, None, ()) or missing.active:
            raise StudyError(
                "--kind scans has three hospitals with their own gaps; to remove scans, run prepare ixi "
                "--keep-incomplete on its folder scans"
            )
        from sites.datasets.phantoms import prepare_synthetic_scans  # noqa: PLC0415 - features need no image library

        subjects = {} if patients is None else {"subjects": patients}
        return prepare_synthetic_scans(out, **subjects, seed=seed, overwrite=overwrite)
    patients = 200 if patients is None else patients
    if patients < 20:  # noqa: PLR2004 - fewer leave a class without test rows
        raise StudyError(f"--patients is {patients}, expected at least 20 per hospital")
    n_sites = len(MISSING) if n_sites is None else n_sites
    if n_sites < 1:
        raise StudyError(f"--sites is {n_sites}, expected at least one hospital")
    if shape is SyntheticPattern.EXCLUSIVE:
        missing = replace(missing, pattern=Pattern.EXCLUSIVE)
    check_target(out, overwrite=overwrite)
    cohort = draw_cohort(patients, seed, n_sites, shape, signal, scanner)
    names = kept_modalities((*IMAGES, CLINICAL), without)
    study = _study(seed, names)
    columns = {CLINICAL: compile_prompt(SYNTHETIC_PROMPT).fields} if CLINICAL in names else {}
    features = {name: vectors for name, vectors in cohort.features.items() if name in names}
    written = [ID, LABEL, SPLIT, *columns.get(CLINICAL, ())]
    sites = [
        _without_bare_patients(SiteTables(str(name), group[written], features, columns), study)
        for name, group in cohort.manifest.groupby("site", sort=True)
    ]
    taken = take_away(
        sites, study, missing, _covariates(cohort.manifest), default_driver="marker", embed=embed
    )
    prepared = write_federation(out, study, taken.sites, overwrite, amputation=taken.amputation)
    return replace(prepared, notes=(*_notes(shape, cohort), *taken.notes))


def hospitals(n_sites: int) -> dict[str, Mapping[str, float]]:
    """The missing rates of each hospital: those of `MISSING`, repeated under new names.

    Example:
        >>> list(hospitals(5))
        ['east', 'north', 'west', 'hospital-04', 'hospital-05']
    """
    names, gaps = list(MISSING), list(MISSING.values())
    names += [f"hospital-{number:02d}" for number in range(len(names) + 1, n_sites + 1)]
    return {name: gaps[position % len(gaps)] for position, name in enumerate(names[:n_sites])}


def draw_cohort(
    patients: int,
    seed: int,
    n_sites: int = len(MISSING),
    pattern: SyntheticPattern = SyntheticPattern.NATURAL,
    signal: Mapping[str, float] | None = None,
    scanner: float | None = None,
) -> Cohort:
    """Draw the patients of all hospitals.

    Args:
        patients: Per hospital.
        pattern: Of missing modalities; ``exclusive`` draws none, because `sites.missing` creates its gaps.
        signal: Weight of the cause by modality; 1 by default.
        scanner: Standard deviation of a scanner's offset in units of the noise, and twice that of the
            logarithm of its gain, both of each feature; by default 0.5, and no gain.
    """
    if seed < 0:
        raise StudyError(f"--seed is {seed}, expected a whole number from 0 up")
    if scanner is not None and not 0 <= scanner < math.inf:
        raise StudyError(f"--scanner is {scanner}, expected a number from 0 up")
    weights = _weights(signal or {})  # (4,)
    generator = np.random.default_rng(seed)
    gaps = hospitals(n_sites)
    n_patients = patients * n_sites
    sites = [site for site in gaps for _ in range(patients)]
    ids = [f"{site}-{number:04d}" for site in gaps for number in range(1, patients + 1)]
    causes = generator.standard_normal((n_patients, len(IMAGES) + 1))
    malignant = generator.random(n_patients) < _sigmoid(_SLOPE * (weights * causes).sum(axis=1))
    labels = [CLASSES[int(value)] for value in malignant]
    absent = _absences(sites, gaps, generator)  # (n_patients, 4)
    if pattern is not SyntheticPattern.NATURAL:  # drawn anyway, so that the patients stay the same
        absent = np.zeros_like(absent)
    if pattern is SyntheticPattern.RARE:
        absent[patients:, IMAGES.index(RARE)] = True
    images = {
        name: _image(causes[:, slot], sites, generator, scanner)  # (n_patients, 512)
        for slot, name in enumerate(IMAGES)
    }
    features = {
        name: {ids[row]: images[name][row] for row in np.flatnonzero(~absent[:, slot]).tolist()}
        for slot, name in enumerate(IMAGES)
    }
    clinical = _clinical(causes[:, -1], absent[:, -1], generator)
    splits = three_way([[f"{label}|{site}" for label, site in zip(labels, sites, strict=True)], labels], seed)
    manifest = pd.DataFrame({ID: ids, LABEL: labels, SPLIT: splits, "site": sites, **clinical})
    return Cohort(manifest, causes, features)


def expected_auc(n_causes: int, draws: int = 200_000, signal: Mapping[str, float] | None = None) -> float:
    """The AUC of an oracle that knows the first of the causes t1, t2, flair, clinical, by simulation.

    The standard error with 200,000 draws is about 0.001.
    """
    generator = np.random.default_rng(0)
    causes = _weights(signal or {}) * generator.standard_normal((draws, len(IMAGES) + 1))
    ill = generator.random(draws) < _sigmoid(_SLOPE * causes.sum(axis=1))
    ranks = np.empty(draws)
    ranks[np.argsort(causes[:, :n_causes].sum(axis=1))] = np.arange(1, draws + 1)
    n_ill = int(ill.sum())
    # Mann-Whitney: the share of (ill, healthy) pairs that the score orders correctly.
    return float((ranks[ill].sum() - n_ill * (n_ill + 1) / 2) / (n_ill * (draws - n_ill)))


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-logit)), dtype=np.float64)


def _weights(signal: Mapping[str, float]) -> NDArray[np.float64]:
    """``(4,)`` weights of the causes."""
    names = (*IMAGES, CLINICAL)
    for name, weight in signal.items():
        if name not in names:
            raise StudyError(f"--signal names {name!r}, expected one of {', '.join(names)}")
        if not math.isfinite(weight) or weight < 0:
            raise StudyError(f"--signal of {name} is {weight}, expected a number from 0 up")
    return np.array([signal.get(name, 1.0) for name in names])


def _covariates(manifest: pd.DataFrame) -> pd.DataFrame:
    """Possible drivers of mar: the clinical columns, the coarse steps as numbers."""
    columns = manifest[["sex", "age"]].set_axis(manifest[ID])
    for name, words in _WORDS.items():
        columns[name] = [None if pd.isna(word) else words.index(word) for word in manifest[name]]
    return columns


def _notes(pattern: SyntheticPattern, cohort: Cohort) -> Sequence[str]:
    if pattern is not SyntheticPattern.RARE:
        return ()
    return (f"rare: only {cohort.manifest['site'].iloc[0]} has {RARE}, all else is complete",)


def _absences(
    sites: list[str], gaps: Mapping[str, Mapping[str, float]], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Independent draws, ``(n_patients, 4)``; a patient who would lack all gets one modality back."""
    rates = np.array([[gaps[site][name] for name in (*IMAGES, CLINICAL)] for site in sites])
    absent = np.asarray(generator.random(rates.shape) < rates, dtype=np.bool_)
    for row in np.flatnonzero(absent.all(axis=1)).tolist():
        absent[row, generator.choice(np.flatnonzero(rates[row] < 1))] = False
    return absent


def _image(
    cause: NDArray[np.float64], sites: list[str], generator: np.random.Generator, effect: float | None
) -> NDArray[np.float32]:
    """The features of one image modality, ``(n_patients, 512)``; ``sites`` has the site of each patient."""
    gains = generator.spawn(1)[0]  # draws nothing from the stream
    nuisances = generator.standard_normal((len(sites), _N_NUISANCES))
    latent = np.column_stack([cause, nuisances])  # (n_patients, 3)
    loadings = _LOADING * generator.standard_normal((latent.shape[1], WIDTH))
    offset, spread = (_OFFSET, 0.0) if effect is None else (effect, effect / 2)
    offsets = {site: offset * generator.standard_normal(WIDTH) for site in dict.fromkeys(sites)}
    scanner = np.stack([offsets[site] for site in sites])  # (n_patients, 512)
    noise = generator.standard_normal((len(sites), WIDTH))
    gain_of = {site: np.exp(spread * gains.standard_normal(WIDTH)) for site in offsets}
    gain = np.stack([gain_of[site] for site in sites])  # (n_patients, 512)
    return (gain * (latent @ loadings) + scanner + gain * noise).astype(np.float32)


def _clinical(
    cause: NDArray[np.float64], absent: NDArray[np.bool_], generator: np.random.Generator
) -> dict[str, list[str | None]]:
    """The clinical columns: marker and symptoms depend on the cause, sex and age do not."""
    n_patients = len(cause)
    columns: dict[str, list[str]] = {
        "sex": [("female", "male")[int(draw)] for draw in generator.integers(0, 2, n_patients)],
        "age": [str(draw) for draw in generator.integers(25, 85, n_patients)],
    }
    for name, words in _WORDS.items():
        seen = cause + 0.3 * generator.standard_normal(n_patients)  # two inexact observers
        columns[name] = [words[step] for step in np.digitize(seen, _EDGES[name]).tolist()]
    return {
        name: [None if gone else word for word, gone in zip(words_of, absent.tolist(), strict=True)]
        for name, words_of in columns.items()
    }


def _without_bare_patients(site: SiteTables, study: Study) -> SiteTables:
    """The site without patients who have none of the study's modalities."""
    ids = [str(patient) for patient in site.manifest[ID]]
    anything = set().union(*(having(ids, site, modality) for modality in study.modalities))
    return replace(site, manifest=site.manifest[[patient in anything for patient in ids]])


def _study(seed: int, names: Sequence[str]) -> Study:
    images = [ModalitySpec(name, Kind.FEATURES, WIDTH, scaling=Scaling.ZSCORE) for name in IMAGES]
    clinical = ModalitySpec(CLINICAL, Kind.TEXT, WIDTH, "hashing-text", Scaling.L2, prompt=SYNTHETIC_PROMPT)
    return Study(
        name="synthetic",
        classes=CLASSES,
        positive="malignant",
        seed=seed,
        modalities=tuple(modality for modality in (*images, clinical) if modality.name in names),
        training=TrainingSpec(rounds=40, learning_rate=3e-4, patience=15),
        privacy=SIMULATED,
    )
