"""Location and scale of one site's embeddings, against what differs by scanner: its own, or ComBat's.

ComBat (Johnson et al. 2007; of images, Fortin et al. 2018) has for feature g of site i::

    x = mean_g + deviation_g * (location_ig + scale_ig * noise)

with the mean of all rows and the deviation within sites, and shrinks a site's locations and scales by priors
over its features. Mean and deviation are sums over sites, as in Fed-ComBat (Silva et al. 2023, Fed-BioMed);
the rest a site computes and keeps. There are no covariates: the label, which those of ComBat often hold, is
not known of a new patient. So what differs between sites because their patients do is removed, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from mmare.models.adapters import DEVIATION_FLOOR, moment_rows
from mmare.study.choices import Scaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mmare.models.adapters import InputScaling

__all__ = ["combat", "scale_as_site", "shrunk"]

_CLOSE: Final = 1e-7  # of z-scores and their variances
_MOST_STEPS: Final = 1000
_FEWEST: Final = 2  # rows of a deviation, features of a prior


def scale_as_site(scaling: InputScaling, embedding: Sequence[Tensor], present: Tensor) -> None:
    """Replace the buffers of modalities whose scaling is a site's own by those of its train rows.

    Args:
        scaling: With the buffers that came from the coordinator.
        embedding: ``(N, W_j)`` of the train rows, by slot.
        present: ``(N, M)``.
    """
    for slot, kind in enumerate(scaling.scalings):
        if not kind.is_own:
            continue
        rows = moment_rows(embedding[slot][present[:, slot]], kind)
        over = (~rows.isnan()).sum(dim=0)  # (W,)
        mean = rows.nansum(dim=0) / over.clamp_min(1)
        squares = (rows - mean).square().nansum(dim=0)
        if kind is Scaling.COMBAT:
            pooled = (scaling.get_buffer(f"{name}_{slot}").double().cpu() for name in ("mean", "deviation"))
            mean, deviation = combat(over, mean, squares, *pooled)
        else:
            deviation = (squares / over.clamp_min(1)).sqrt().clamp_min(DEVIATION_FLOOR)
            deviation = deviation.masked_fill(over < _FEWEST, 0.0)  # nothing is known of it
        scaling.set_moments(slot, mean, deviation)


def combat(
    over: Tensor, mean: Tensor, squares: Tensor, pooled_mean: Tensor, deviation: Tensor
) -> tuple[Tensor, Tensor]:
    """A site's mean and deviation of each feature, ``(W,)`` each; the pooled ones where it has no two rows.

    Args:
        over: Rows of the site that have the feature.
        mean: Of them.
        squares: Sum of squared differences from it.
        pooled_mean: Of all sites.
        deviation: Within sites.
    """
    known = (over >= _FEWEST) & (deviation > DEVIATION_FLOOR)  # (W,)
    n, sigma = over[known].double(), deviation[known]
    location, scale = shrunk(
        n, (mean[known] - pooled_mean[known]) / sigma, squares[known] / sigma.square() / (n - 1)
    )
    constant = (over > 0) & (deviation <= DEVIATION_FLOOR)  # at every site
    means, deviations = torch.where(constant, mean, pooled_mean), deviation.clone()
    means[known] += sigma * location
    deviations[known] = (sigma * scale.sqrt()).clamp_min(DEVIATION_FLOOR)
    return means, deviations


def shrunk(n: Tensor, location: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior locations and variances ``(G,)`` of z-scores, by the parametric priors of all G features.

    Args:
        n: Rows.
        location: Their means.
        scale: Their variances (over n - 1).
    """
    if len(n) < _FEWEST:
        return location, scale
    tiny = torch.finfo(torch.float64).eps
    centre, spread = location.mean(), location.var().clamp_min(tiny)
    middle, width = scale.mean(), scale.var().clamp_min(tiny)
    shape = middle.square() / width + 2  # of an inverse gamma distribution
    rate = middle * (shape - 1)
    found, variance = location, scale
    for _ in range(_MOST_STEPS):
        weight = spread * n
        nearer = (weight * location + variance * centre) / (weight + variance)
        squares = (n - 1) * scale + n * (location - nearer).square()
        varied = (squares / 2 + rate) / (n / 2 + shape - 1)
        moved = max((nearer - found).abs().max().item(), (varied - variance).abs().max().item())
        found, variance = nearer, varied
        if moved < _CLOSE:
            break
    return found, variance
