"""Pooled scaling moments and event times, summed over sites and set as buffers of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from mmare.errors import Ending, Reason, RunError
from mmare.models.adapters import pooled_moments
from mmare.study import choices
from mmare.study.outcome import N_TIMES
from mmare.tasks.survival import Survival
from mmare.wire.messages import EVENT_TIMES, WireError
from mmare.wire.sums import within
from server.aggregation.site_weights import capped
from server.store.events import Scaling

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study
    from mmare.wire.messages import Statistics
    from server.store.journal import Journal

LARGEST: Final = 1e30  # far above any sum of float32 features; its square does not overflow
OLDER: Final = 2  # a site whose table lost a few patients since gives older moments, of more rows than it has
SLACK, TINY = 1 + 1e-9, 1e-12  # for rounding: real rows satisfy sum^2 <= n * sum of squares

__all__ = ["check_statistics", "set_cuts", "set_scaling"]


def check_statistics(statistics: Statistics, study: Study, samples: int) -> None:
    """Reject moments that no rows can have; ``samples`` is the site's number of training rows.

    Raises:
        WireError: Naming the modality.
    """
    names = [moments.modality for moments in statistics.moments]
    if names != [modality.name for modality in study.modalities]:
        raise WireError("moments of other modalities than the study's", Reason.MOMENTS)
    for modality, moments in zip(study.modalities, statistics.moments, strict=True):
        what = f"moments of {modality.name}"
        if {len(moments.total), len(moments.squares), len(moments.over)} != {modality.width}:
            raise WireError(
                f"{what} of width {len(moments.total)} and {len(moments.squares)}, expected {modality.width}",
                Reason.MOMENTS,
            )
        if moments.n and modality.scaling is choices.Scaling.SITE:
            raise WireError(f"{what}, which each site scales by its own", Reason.MOMENTS)
        if not 0 <= moments.n <= OLDER * samples:
            raise WireError(f"{what} over {moments.n} rows, expected 0 to {OLDER * samples}", Reason.MOMENTS)
        for over, total, squares in zip(moments.over, moments.total, moments.squares, strict=True):
            possible = abs(total) < LARGEST and total**2 <= over * squares * SLACK + TINY
            if not (possible and 0 <= over <= moments.n):
                raise WireError(f"{what} that no rows can have", Reason.MOMENTS)
    _check_events(statistics, study, samples)


def _check_events(statistics: Statistics, study: Study, samples: int) -> None:
    events = statistics.events
    if (events is None) != (study.survival is None):
        raise WireError("event times missing, or of a task that has none", Reason.MOMENTS)
    if events is not None and not (
        len(events.total) == N_TIMES
        and all(count >= 0 for count in events.total)
        and sum(events.total) == events.n <= OLDER * samples
    ):
        raise WireError("event times that no rows can have", Reason.MOMENTS)


def set_cuts(model: MultimodalModel, statistics: Mapping[str, Statistics], journal: Journal) -> None:
    """Set the intervals of the hazards from the event times of all sites.

    Raises:
        RunError: If no site has told an event.
    """
    if not isinstance(model.task, Survival):
        return
    told = {site: each.events for site, each in sorted(statistics.items()) if each.events and each.events.n}
    if not told:
        raise RunError(
            "no site has told the time of an event, expected at least one with as many events of train rows "
            "as privacy.min_count",
            Ending.OTHER,
        )
    events = torch.tensor([each.total for each in told.values()], dtype=torch.float64).sum(dim=0)
    slots = range(len(model.modality_names))
    rows = max(sum(statistics[site].moments[slot].n for site in told) for slot in slots)  # about all rows
    model.task.learn_times(events, rows)
    journal.write(Scaling(modality=EVENT_TIMES, n=int(events.sum()), sites=tuple(told)))


def set_scaling(
    model: MultimodalModel,
    statistics: Mapping[str, Statistics],
    study: Study,
    journal: Journal,
    fixed: Collection[str] = (),
) -> None:
    """Set the model's scaling buffers from the moments of all sites, summed in the order of site ids.

    Buffers that are ``fixed`` stay as they are, all of them under differential privacy, where none are told,
    and those of modalities that each site scales by its own.
    """
    for slot, modality in enumerate(study.modalities):
        if modality.scaling is choices.Scaling.SITE:
            continue
        moments = {site: statistics[site].moments[slot] for site in sorted(statistics)}
        parts = {site: part for site, part in moments.items() if part.n > 0}
        rows = {site: part.n for site, part in parts.items()}
        weights = capped(rows, study.federation.max_share)  # of sites, where a row weighs 1 without a cap
        over, total, squares, between = (
            [
                sum(value * (weights[site] / rows[site]) for site, value in zip(parts, values, strict=True))
                for values in zip(*columns, strict=True)
            ]
            for columns in (
                [part.over for part in parts.values()],
                [part.total for part in parts.values()],
                [part.squares for part in parts.values()],
                [part.between for part in parts.values()],
            )
        )
        if modality.scaling is choices.Scaling.COMBAT:
            squares = within(over, total, squares, between)
        zeros = [0.0] * modality.width
        sums = pooled_moments(over or zeros, total or zeros, squares or zeros)
        if study.privacy.dp is None and f"scaling.mean_{slot}" not in fixed:
            model.scaling.set_moments(slot, *sums)
        journal.write(Scaling(modality=modality.name, n=sum(rows.values()), sites=tuple(parts)))
