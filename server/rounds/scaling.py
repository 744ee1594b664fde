"""Pooled scaling moments, summed over sites and set as buffers of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmare.errors import Reason
from mmare.models.adapters import pooled_moments
from mmare.wire.messages import WireError
from server.aggregation.site_weights import capped
from server.store import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study
    from mmare.wire.messages import Statistics
    from server.store.journal import Journal

LARGEST: Final = 1e30  # far above any sum of float32 features; its square does not overflow
OLDER: Final = 2  # a site whose table lost a few patients since gives older moments, of more rows than it has
SLACK, TINY = 1 + 1e-9, 1e-12  # for rounding: real rows satisfy sum^2 <= n * sum of squares

__all__ = ["check_statistics", "set_scaling"]


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
        if not 0 <= moments.n <= OLDER * samples:
            raise WireError(f"{what} over {moments.n} rows, expected 0 to {OLDER * samples}", Reason.MOMENTS)
        for over, total, squares in zip(moments.over, moments.total, moments.squares, strict=True):
            possible = abs(total) < LARGEST and total**2 <= over * squares * SLACK + TINY
            if not (possible and 0 <= over <= moments.n):
                raise WireError(f"{what} that no rows can have", Reason.MOMENTS)


def set_scaling(
    model: MultimodalModel, statistics: Mapping[str, Statistics], study: Study, journal: Journal
) -> None:
    """Set the model's scaling buffers from the moments of all sites, summed in the order of site ids."""
    for slot, modality in enumerate(study.modalities):
        moments = {site: statistics[site].moments[slot] for site in sorted(statistics)}
        parts = {site: part for site, part in moments.items() if part.n > 0}
        rows = {site: part.n for site, part in parts.items()}
        weights = capped(rows, study.federation.max_share)  # of sites, where a row weighs 1 without a cap
        over, total, squares = (
            [
                sum(value * (weights[site] / rows[site]) for site, value in zip(parts, values, strict=True))
                for values in zip(*columns, strict=True)
            ]
            for columns in (
                [part.over for part in parts.values()],
                [part.total for part in parts.values()],
                [part.squares for part in parts.values()],
            )
        )
        zeros = [0.0] * modality.width
        sums = pooled_moments(over or zeros, total or zeros, squares or zeros)
        model.scaling.set_moments(slot, *sums)
        journal.write(events.Scaling(modality=modality.name, n=sum(rows.values()), sites=tuple(parts)))
