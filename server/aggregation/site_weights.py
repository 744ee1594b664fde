"""Who has which say in which block: by samples or exposure, moved by generalisation gap."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mmare.study.strategy_options import FedAvgOptions, Weighting
from server.aggregation.mean import BlockWeights, Contribution

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["gap_factors", "site_weights"]


def site_weights(
    blocks: Iterable[str],
    contributions: Sequence[Contribution],
    options: FedAvgOptions,
    factors: Mapping[str, float],
) -> dict[str, BlockWeights]:
    """Who has which say in which block.

    By samples, a site that sent nothing of a block votes for it to stay: its step is damped by the share of
    the sites that exercised it. By exposure, only those who exercised it vote, and damping is explicit: of
    exposures e with sum E, a site weighs e**a and the block as it is weighs κ/E of them all together, which
    makes the step E / (E + κ) of the mean step.

    Args:
        blocks: Of the model.
        contributions: Of different sites.
        options: Weighting, exponent a and damping κ.
        factors: Of the weights, per site; where nobody with a say in a block has a positive one, they say
            nothing about it and are left out.

    Example:
        >>> sent = [Contribution("a", 8, {"ct": 2}, ("ct",), dict), Contribution("b", 4, {"ct": 0}, (), dict)]
        >>> site_weights(["ct"], sent, FedAvgOptions(), {})
        {'ct': BlockWeights(sites={'a': 8.0}, stay=4.0)}
        >>> site_weights(["ct"], sent, FedAvgOptions(Weighting.EXPOSURE), {})
        {'ct': BlockWeights(sites={'a': 2.0}, stay=0.0)}
    """
    ordered = sorted(contributions, key=lambda each: each.site)
    return {block: _weights(block, ordered, options, factors) for block in blocks}


def _weights(
    block: str, contributions: Sequence[Contribution], options: FedAvgOptions, factors: Mapping[str, float]
) -> BlockWeights:
    senders = {each.site for each in contributions if block in each.blocks}
    if options.weighting is Weighting.SAMPLES:
        votes = _with_factors({each.site: float(each.samples) for each in contributions}, factors)
        others = sum(vote for site, vote in votes.items() if site not in senders)
        return BlockWeights({site: vote for site, vote in votes.items() if site in senders}, float(others))
    exposed = {
        each.site: each.exposures[block]
        for each in contributions
        if each.site in senders and each.exposures[block] > 0
    }
    say = _with_factors({site: float(count) ** options.exponent for site, count in exposed.items()}, factors)
    exposure = sum(exposed.values())
    return BlockWeights(say, sum(say.values()) * options.damping / exposure if exposure else 0.0)


def _with_factors(votes: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    scaled = {site: vote * factors.get(site, 1.0) for site, vote in votes.items()}
    return scaled if any(scaled.values()) else dict(votes)


def gap_factors(
    gaps: Mapping[str, float | None], factors: Mapping[str, float], step: float
) -> dict[str, float]:
    """Move the factors of site weights towards sites that averaging serves worse than their own model.

    Generalisation adjustment (FedDG-GA, Zhang et al., CVPR 2023; github.com/MediaBrain-SJTU/FedDG-GA, commit
    b54ffd8, ``utils/weight_adjust.py``): a factor moves by step · gap / max |gap|, is clipped at 0, and all
    are normalised. Different from the repository: factors have mean 1 and multiply the weights by samples or
    exposure, where its weights have sum 1 and replace them; nothing is clipped from above, which the
    normalisation bounds anyway.

    Args:
        gaps: Per site that contributes; without a finite gap a site does not move.
        factors: Of the rounds before; a site that is new starts at 1.
        step: Of the site with the largest gap.

    Returns:
        Factors of mean 1 of every site known so far; those of before where no site moved or none would be
        left above 0.

    Example:
        >>> gap_factors({"a": 0.2, "b": -0.1, "c": -0.1}, {}, 0.5)
        {'a': 1.5, 'b': 0.75, 'c': 0.75}
    """
    known = {**dict.fromkeys(gaps, 1.0), **factors}
    found = {site: gap for site, gap in gaps.items() if gap is not None and math.isfinite(gap)}
    largest = max(map(abs, found.values()), default=0.0)
    if largest == 0:
        return dict(sorted(known.items()))
    moved = {site: max(0.0, known[site] + step * (found.get(site, 0.0) / largest)) for site in sorted(known)}
    mean = sum(moved.values()) / len(moved)
    return {site: value / mean for site, value in moved.items()} if mean > 0 else dict(sorted(known.items()))
