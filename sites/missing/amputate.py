"""Amputation of site tables: each site loses modalities by its own mechanism and rate.

It happens before a federation folder is written, so that nothing downstream can distinguish a removed
modality from one that never existed. The report lies beside the sites, in ``amputation.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from sites.manifest import ID, SPLIT
from sites.missing.drivers import column_scores, first_component
from sites.missing.masks import Losses, achieved_rate, amputate, exclusive, loss_probability
from sites.missing.plan import LABEL_DRIVER, PC1_DRIVER, Missingness, SiteLoss
from sites.options import Mechanism, Pattern
from sites.outcomes import strata_of
from sites.tabular import did_you_mean

__all__ = ["AmputationReport", "Embed", "take_away"]

# Study, complete tables, names of text and volume modalities -> vectors by modality and patient id. Passed in
# by the caller, because this layer has no encoders.
Embed = Callable[[Study, Sequence[SiteTables], Sequence[str]], Mapping[str, Vectors]]


@dataclass(frozen=True)
class AmputationReport:
    """The tables that remain, and what was removed from them."""

    sites: list[SiteTables]  # in the given order
    notes: tuple[str, ...] = ()  # sentences for the user
    amputation: Mapping[str, Any] | None = None  # content of ``amputation.json``; none without a request


@dataclass(frozen=True)
class _Roster:
    """The patients of all sites in one table."""

    ids: tuple[str, ...]  # of patients, in the order in which losses are drawn
    keys: tuple[str, ...]  # site ids, in the order of their tables
    place: NDArray[np.int64]  # (N,) position in ``keys`` of the patient's site
    splits: NDArray[np.str_]  # (N,) values of `Split`
    labels: tuple[str, ...]  # class names
    present: NDArray[np.bool_]  # (N, M) before the amputation


def take_away(
    sites: Sequence[SiteTables],
    study: Study,
    plan: Missingness,
    covariates: pd.DataFrame,
    *,
    default_driver: str | None = None,
    embed: Embed | None = None,
) -> AmputationReport:
    """Remove modalities from complete tables as planned.

    The pattern is applied first, then the losses among what is left; a patient who would lose all gets one
    back. Scores are standardised within a site, and the mean probability of each modality is the site's rate.

    Args:
        sites: Complete tables.
        study: Supplies modalities, classes and seed.
        plan: What to remove.
        covariates: One row per patient, indexed by id, in the order in which losses are drawn. Its columns
            are the possible drivers of mar, even fields of a prompt that is itself removed.
        default_driver: Column that drives mar unless the plan names one.
        embed: Encodes texts and volumes, for mnar driven by their first component.

    Raises:
        StudyError: If the plan does not fit the data.
    """
    if not plan.active:
        return AmputationReport(list(sites))
    roster = _roster(sites, study, tuple(str(patient) for patient in covariates.index))
    losses = _losses_of(plan, roster.keys)
    drivers = _drivers(plan, covariates, default_driver)
    scores = _scores(drivers, sites, study, roster, covariates, embed)
    never = np.zeros((len(roster.keys), roster.present.shape[1]), dtype=np.bool_)
    if plan.pattern == Pattern.EXCLUSIVE:
        never = exclusive(*_availability(roster), study.seed)
    at_risk = roster.present & ~never[roster.place]
    probability = _probability(losses, scores, at_risk, roster, plan.steepness)
    drawn = amputate(at_risk, roster.splits, probability, study.seed)
    report = _report(plan, study, drivers, losses, never, (at_risk, probability, drawn), roster)
    names = [modality.name for modality in study.modalities]
    left = [
        _remove(
            site, roster, drawn.kept, names, [name for name, gone in zip(names, row, strict=True) if gone]
        )
        for site, row in zip(sites, never.tolist(), strict=True)
    ]
    return AmputationReport(left, _notes(report, at_risk, drawn.kept, roster), report)


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
        for number, label in zip(rows, strata_of(site.manifest, study), strict=True):
            labels[number] = str(label)
        for slot, modality in enumerate(study.modalities):
            present[[row[patient] for patient in having(patients, site, modality)], slot] = True
    keys = tuple(site_id(site.name) for site in sites)
    return _Roster(ids, keys, place, splits, tuple(labels), present)


def _losses_of(plan: Missingness, keys: Sequence[str]) -> dict[str, SiteLoss | None]:
    """The rule of each site, by id."""
    named = {site if site in keys else _id_of(site): loss for site, loss in plan.named.items()}
    for site in named:
        if site not in keys:
            hint = did_you_mean(site, keys)
            raise StudyError(
                f"--site-missing names no site {site!r}{hint}, expected one of {', '.join(keys)}"
            )
    return {key: named.get(key, plan.default) for key in keys}


def _id_of(site: str) -> str:
    """The id of a site that is named as in the table."""
    return site_id(site) if any(map(str.isalnum, site)) else site


def _drivers(plan: Missingness, covariates: pd.DataFrame, default: str | None) -> dict[Mechanism, str]:
    """The driver of each mechanism in use."""
    drivers: dict[Mechanism, str] = {}
    if Mechanism.MNAR in plan.used:
        drivers[Mechanism.MNAR] = plan.driver_of(Mechanism.MNAR) or PC1_DRIVER
    if Mechanism.MAR in plan.used:
        columns = [str(column) for column in covariates.columns]
        driver = plan.driver_of(Mechanism.MAR) or default
        if driver is None:
            raise StudyError(f"the mechanism mar needs --driver, expected one of {', '.join(columns)}")
        if driver not in columns:
            hint = did_you_mean(driver, columns)
            raise StudyError(f"--driver is {driver!r}{hint}, expected a column: {', '.join(columns)}")
        drivers[Mechanism.MAR] = driver
    return drivers


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
        if len(np.unique(found[np.isfinite(found)])) < 2:  # noqa: PLR2004 - a constant drives nothing
            raise StudyError(f"--driver is {column!r}, but all patients have the same value of it")
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
            f"mnar on {PC1_DRIVER} needs embeddings of {', '.join(names)}, which are not available here; "
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
    """The vectors of one modality at all sites, which may share one features table."""
    if modality.kind is not Kind.FEATURES:
        return dict(embedded.get(modality.name, {}))
    vectors: dict[str, NDArray[np.float32]] = {}
    for site in sites:
        held = site.features.get(modality.name, {})
        vectors |= {patient: held[patient] for patient in map(str, site.manifest[ID]) if patient in held}
    return vectors


def _availability(roster: _Roster) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """``(S, M)`` what each site has, and what all its patients could spare."""
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
    """``(N, M)`` probabilities of a loss, by the rule of each site; zero where the site has none."""
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


def _remove(
    site: SiteTables, roster: _Roster, kept: NDArray[np.bool_], names: Sequence[str], never: Sequence[str]
) -> SiteTables:
    """The remaining tables of a site; prompts of a modality that it never has are not named."""
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
    return {"mechanism": loss.mechanism.value, "driver": drivers.get(loss.mechanism), "rate": loss.rate}


def _notes(
    report: Mapping[str, Any], present: NDArray[np.bool_], kept: NDArray[np.bool_], roster: _Roster
) -> tuple[str, ...]:
    """What was removed, in sentences."""
    notes = []
    never = [
        f"{key} never has {', '.join(site['never'])}"
        for key, site in report["sites"].items()
        if site["never"]
    ]
    if never:
        notes.append(f"exclusive: {', '.join(never)}")
    general = _words(report)
    own = {key: words for key, site in report["sites"].items() if (words := _words(site)) != general}
    rules = [general] if general and len(own) < len(report["sites"]) else []
    rules += [f"{key} {words or 'nothing'}" for key, words in own.items()]
    if rules:
        by_split = {split: roster.splits == split.value for split in Split}
        rates = [
            f"{split} {achieved_rate(present[rows], kept[rows]):.3f}" for split, rows in by_split.items()
        ]
        notes.append(
            f"{', '.join(rules)}: {achieved_rate(present, kept):.3f} of the modalities were removed "
            f"({', '.join(rates)}); a patient who would have lost all got one back"
        )
    return tuple(notes)


def _words(loss: Mapping[str, Any]) -> str:
    """A rule in words: ``mar on age at 0.4``; empty if nothing is lost."""
    if loss["mechanism"] is None:
        return ""
    driver = f" on {loss['driver']}" if loss["driver"] else ""
    return f"{loss['mechanism']}{driver} at {loss['rate']:g}"
