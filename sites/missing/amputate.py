"""Modalities taken away from the tables of sites, each site with its own mechanism and rate, and the report.

Everything here happens before a federation folder is written, so that nobody downstream can tell a modality
that was taken away from one that was never there. The report lies beside the sites, in ``amputation.json``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmare.errors import StudyError
from mmare.study.choices import Kind
from mmare.study.specs import ModalitySpec
from mmare.study.study import Study
from mmare.wire.messages import Split
from sites.features import Vectors
from sites.federation import SiteTables, having, site_id
from sites.manifest import ID, LABEL, SPLIT
from sites.missing.drivers import column_scores, first_component
from sites.missing.masks import Losses, achieved_rate, amputate, exclusive, loss_probability
from sites.missing.plan import LABEL_DRIVER, PC1_DRIVER, Missingness, SiteLoss
from sites.options import Mechanism, Pattern

__all__ = ["Embed", "Taken", "take_away"]

# Study, complete tables of the sites, names of text and volume modalities -> by name, vectors by patient id.
# Whoever can run encoders hands it in: this layer cannot.
Embed = Callable[[Study, Sequence[SiteTables], Sequence[str]], Mapping[str, Vectors]]


@dataclass(frozen=True)
class Taken:
    """What is left of the tables of sites, and what became of the rest.

    Args:
        sites: As they came, less what was taken away.
        notes: Sentences for whoever prepares.
        amputation: Content of ``amputation.json``; none where nothing was asked for.
    """

    sites: list[SiteTables]
    notes: tuple[str, ...] = ()
    amputation: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Roster:
    """All patients of all sites in one table.

    Args:
        ids: Of the patients, in the order in which losses are drawn.
        keys: Ids of the sites, in the order of their tables.
        place: ``(N,)`` position of the patient's site in ``keys``.
        splits: ``(N,)`` values of `Split`.
        labels: Class names.
        present: ``(N, M)`` bool, what is there before anything is taken away.
    """

    ids: tuple[str, ...]
    keys: tuple[str, ...]
    place: NDArray[np.int64]
    splits: NDArray[np.str_]
    labels: tuple[str, ...]
    present: NDArray[np.bool_]


def take_away(
    sites: Sequence[SiteTables],
    study: Study,
    plan: Missingness,
    covariates: pd.DataFrame,
    *,
    usual: str | None = None,
    embed: Embed | None = None,
) -> Taken:
    """Take modalities away from the tables of sites.

    The pattern comes first, then the losses among what is left; a patient who would have none is given one
    back. A site's probabilities are its own: scores are standardised within the site and the mean probability
    of each modality is the site's rate. The driver of mar is read from the source's table, before anything is
    taken away, so it may hang on a field of the clinical prompt that is itself lost.

    Args:
        sites: Complete.
        study: Its modalities, classes and seed.
        plan: What shall be taken away.
        covariates: One row per patient, indexed by id, in the order in which losses are drawn; its columns
            are what mar may hang on.
        usual: The column that drives mar where none is given; nothing where there is no such column.
        embed: Makes vectors of texts and volumes, where mnar hangs on them.

    Raises:
        StudyError: If the plan does not fit the data.
    """
    if not plan.active:
        return Taken(list(sites))
    roster = _roster(sites, study, tuple(str(patient) for patient in covariates.index))
    losses = _losses_of(plan, roster.keys)
    drivers = _drivers(plan, covariates, usual)
    scores = _scores(drivers, sites, study, roster, covariates, embed)
    never = np.zeros((len(roster.keys), roster.present.shape[1]), dtype=np.bool_)
    if plan.pattern == Pattern.EXCLUSIVE:
        never = exclusive(*_availability(roster), study.seed)
    open_to_loss = roster.present & ~never[roster.place]
    probability = _probability(losses, scores, open_to_loss, roster, plan.steepness)
    drawn = amputate(open_to_loss, roster.splits, probability, study.seed)
    report = _report(plan, study, drivers, losses, never, (open_to_loss, probability, drawn), roster)
    names = [modality.name for modality in study.modalities]
    left = [
        _cut(site, roster, drawn.kept, names, [name for name, gone in zip(names, row, strict=True) if gone])
        for site, row in zip(sites, never.tolist(), strict=True)
    ]
    return Taken(left, _notes(report, open_to_loss, drawn.kept, roster), report)


def _roster(sites: Sequence[SiteTables], study: Study, ids: tuple[str, ...]) -> _Roster:
    row = {patient: position for position, patient in enumerate(ids)}
    place = np.zeros(len(ids), dtype=np.int64)
    splits = np.full(len(ids), "", dtype="<U5")
    labels = [""] * len(ids)
    present = np.zeros((len(ids), len(study.modalities)), dtype=np.bool_)
    for position, site in enumerate(sites):
        patients = [str(patient) for patient in site.manifest[ID]]
        rows = [row[patient] for patient in patients]
        place[rows] = position
        splits[rows] = [str(split) for split in site.manifest[SPLIT]]
        for number, label in zip(rows, site.manifest[LABEL], strict=True):
            labels[number] = str(label)
        for slot, modality in enumerate(study.modalities):
            present[[row[patient] for patient in having(patients, site, modality)], slot] = True
    keys = tuple(site_id(site.name) for site in sites)
    return _Roster(ids, keys, place, splits, tuple(labels), present)


def _losses_of(plan: Missingness, keys: Sequence[str]) -> dict[str, SiteLoss | None]:
    """How each site loses modalities, by site id."""
    named = plan.named
    for site in named:
        if site not in keys:
            raise StudyError(
                f"--site-missing names no site {site!r}{_hint(site, keys)}, expected one of {', '.join(keys)}"
            )
    return {key: named.get(key, plan.default) for key in keys}


def _drivers(plan: Missingness, covariates: pd.DataFrame, usual: str | None) -> dict[Mechanism, str]:
    """What drives each mechanism in use."""
    drivers: dict[Mechanism, str] = {}
    if Mechanism.MNAR in plan.used:
        drivers[Mechanism.MNAR] = plan.driver_of(Mechanism.MNAR) or PC1_DRIVER
    if Mechanism.MAR in plan.used:
        columns = [str(column) for column in covariates.columns]
        driver = plan.driver_of(Mechanism.MAR) or usual
        if driver is None:
            raise StudyError(f"the mechanism mar needs --driver, expected one of {', '.join(columns)}")
        if driver not in columns:
            raise StudyError(
                f"--driver is {driver!r}{_hint(driver, columns)}, expected a column: {', '.join(columns)}"
            )
        drivers[Mechanism.MAR] = driver
    return drivers


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _scores(
    drivers: Mapping[Mechanism, str],
    sites: Sequence[SiteTables],
    study: Study,
    roster: _Roster,
    covariates: pd.DataFrame,
    embed: Embed | None,
) -> dict[Mechanism, NDArray[np.float64]]:
    """By mechanism, ``(N,)`` or ``(N, M)`` scores."""
    scores: dict[Mechanism, NDArray[np.float64]] = {}
    if column := drivers.get(Mechanism.MAR):
        found = column_scores(covariates[column].tolist())
        if len(np.unique(found[np.isfinite(found)])) < 2:  # noqa: PLR2004 - one value drives nothing
            raise StudyError(f"--driver is {column!r}, but all patients are alike in it")
        scores[Mechanism.MAR] = found
    if drivers.get(Mechanism.MNAR) == LABEL_DRIVER:
        scores[Mechanism.MNAR] = np.array([float(study.classes.index(label)) for label in roster.labels])
    elif Mechanism.MNAR in drivers:
        scores[Mechanism.MNAR] = _components(sites, study, roster, embed)
    return scores


def _components(
    sites: Sequence[SiteTables], study: Study, roster: _Roster, embed: Embed | None
) -> NDArray[np.float64]:
    """``(N, M)`` first principal components, NaN where there is no vector."""
    names = [modality.name for modality in study.modalities if modality.kind is not Kind.FEATURES]
    if names and embed is None:
        raise StudyError(
            f"mnar on {PC1_DRIVER} needs embeddings of {', '.join(names)}, and none are made here; "
            f"choose --driver {LABEL_DRIVER}"
        )
    embedded = embed(study, sites, names) if names and embed is not None else {}
    train = roster.splits == Split.TRAIN.value
    scores = np.full(roster.present.shape, np.nan)
    for slot, modality in enumerate(study.modalities):
        vectors = _vectors(sites, modality, embedded)
        rows = np.array([row for row, patient in enumerate(roster.ids) if patient in vectors], dtype=np.int64)
        if len(rows):
            matrix = np.stack([vectors[roster.ids[row]] for row in rows])  # (n, W)
            scores[rows, slot] = first_component(matrix, train[rows], modality.scaling)
    return scores


def _vectors(
    sites: Sequence[SiteTables], modality: ModalitySpec, embedded: Mapping[str, Vectors]
) -> dict[str, NDArray[np.float32]]:
    """One modality of all sites; a features table may be one that sites share."""
    if modality.kind is not Kind.FEATURES:
        return dict(embedded.get(modality.name, {}))
    vectors: dict[str, NDArray[np.float32]] = {}
    for site in sites:
        held = site.features.get(modality.name, {})
        vectors |= {patient: held[patient] for patient in map(str, site.manifest[ID]) if patient in held}
    return vectors


def _availability(roster: _Roster) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """``(S, M)`` what sites have, and what everybody at a site could spare."""
    available = np.stack(
        [roster.present[roster.place == site].any(axis=0) for site in range(len(roster.keys))]
    )
    alone = roster.present.sum(axis=1) == 1  # (N,)
    only = [roster.present[(roster.place == site) & alone].any(axis=0) for site in range(len(roster.keys))]
    return available, available & ~np.stack(only)


def _probability(
    losses: Mapping[str, SiteLoss | None],
    scores: Mapping[Mechanism, NDArray[np.float64]],
    present: NDArray[np.bool_],
    roster: _Roster,
    slope: float,
) -> NDArray[np.float64]:
    """``(N, M)``, each site's by its own mechanism; zero where nothing is to be lost."""
    probability = np.zeros(present.shape)
    for position, key in enumerate(roster.keys):
        loss, rows = losses[key], roster.place == position
        if loss is None:
            continue
        if loss.mechanism is Mechanism.MCAR:
            probability[rows] = loss.rate
        else:
            found = scores[loss.mechanism][rows]
            probability[rows] = loss_probability(present[rows], found, loss.rate, slope)
    return probability


def _cut(
    site: SiteTables, roster: _Roster, kept: NDArray[np.bool_], names: Sequence[str], never: Sequence[str]
) -> SiteTables:
    """A site's tables without what was taken away; what it never has is not even named."""
    row = {patient: position for position, patient in enumerate(roster.ids)}
    rows = [row[str(patient)] for patient in site.manifest[ID]]
    manifest = site.manifest.copy()
    features: dict[str, Vectors] = {}
    for slot, name in enumerate(names):
        has = kept[rows, slot]  # (n_patients,)
        scan = (site.scans[name],) if name in site.scans else ()
        for column in scan or site.columns.get(name, ()):
            manifest[column] = manifest[column].where(has, None)
        if name in site.features:
            held = site.features[name]
            patients = [roster.ids[number] for number, there in zip(rows, has.tolist(), strict=True) if there]
            features[name] = {patient: held[patient] for patient in patients if patient in held}
    return replace(
        site,
        manifest=manifest,
        features=features,
        columns={name: columns for name, columns in site.columns.items() if name not in never},
    )


def _report(
    plan: Missingness,
    study: Study,
    drivers: Mapping[Mechanism, str],
    losses: Mapping[str, SiteLoss | None],
    never: NDArray[np.bool_],
    cells: tuple[NDArray[np.bool_], NDArray[np.float64], Losses],
    roster: _Roster,
) -> dict[str, Any]:
    """Content of ``amputation.json``."""
    present, probability, drawn = cells
    names = [modality.name for modality in study.modalities]
    sites: dict[str, Any] = {}
    for position, key in sorted(enumerate(roster.keys), key=lambda pair: pair[1]):
        loss, rows = losses[key], roster.place == position
        sites[key] = {
            **_loss_table(loss, drivers),
            "never": [name for name, gone in zip(names, never[position].tolist(), strict=True) if gone],
            "modalities": {
                name: {
                    "patients": int(present[rows, slot].sum()),
                    "target": 0.0 if loss is None else loss.rate,
                    "mean_probability": round(float(probability[rows, slot][present[rows, slot]].mean()), 9),
                    "drawn": round(achieved_rate(present[rows, slot], drawn.drawn[rows, slot]), 9),
                    "achieved": round(achieved_rate(present[rows, slot], drawn.kept[rows, slot]), 9),
                }
                for slot, name in enumerate(names)
                if present[rows, slot].any()
            },
        }
    return {
        **_loss_table(plan.default, drivers),
        "slope": plan.steepness if plan.used - {Mechanism.MCAR} else None,
        "pattern": str(plan.pattern),
        "seed": study.seed,
        "sites": sites,
    }


def _loss_table(loss: SiteLoss | None, drivers: Mapping[Mechanism, str]) -> dict[str, Any]:
    if loss is None:
        return {"mechanism": None, "driver": None, "rate": None}
    return {
        "mechanism": loss.mechanism.value,
        "driver": drivers.get(loss.mechanism),
        "rate": loss.rate,
    }


def _notes(
    report: Mapping[str, Any], present: NDArray[np.bool_], kept: NDArray[np.bool_], roster: _Roster
) -> tuple[str, ...]:
    """What was taken away, in words."""
    notes = []
    never = [
        f"{key} never has {', '.join(site['never'])}"
        for key, site in report["sites"].items()
        if site["never"]
    ]
    if never:
        notes.append(f"exclusive: {', '.join(never)}")
    own = {key: words for key, site in report["sites"].items() if (words := _words(site)) != _words(report)}
    usual = [_words(report)] if len(own) < len(report["sites"]) else []
    said = [
        *(words for words in usual if words),
        *(f"{key} {words or 'nothing'}" for key, words in own.items()),
    ]
    if said:
        rows = {split: roster.splits == split.value for split in Split}
        rates = [f"{split} {achieved_rate(present[own], kept[own]):.3f}" for split, own in rows.items()]
        notes.append(
            f"{', '.join(said)}: {achieved_rate(present, kept):.3f} of the modalities were taken away "
            f"({', '.join(rates)}); whoever would have had none was given one back"
        )
    return tuple(notes)


def _words(loss: Mapping[str, Any]) -> str:
    """A loss as a person says it: ``mar on age at 0.4``; nothing where there is none."""
    if loss["mechanism"] is None:
        return ""
    driver = f" on {loss['driver']}" if loss["driver"] else ""
    return f"{loss['mechanism']}{driver} at {loss['rate']:g}"
