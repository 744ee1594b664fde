"""Site weights per block: by samples or exposure, adjusted by generalisation gap."""

from __future__ import annotations

import math
from itertools import accumulate
from sys import float_info
from typing import TYPE_CHECKING

from mmare.study.strategy_options import FedAvgOptions, Weighting
from server.aggregation.mean import BlockWeights, Contribution

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["capped", "gap_factors", "site_weights"]


def site_weights(
    blocks: Iterable[str],
    contributions: Sequence[Contribution],
    options: FedAvgOptions,
    factors: Mapping[str, float],
    most: float = 1.0,
) -> dict[str, BlockWeights]:
    """Weights of the sites and of the current value in each block.

    By samples, a site that did not send a block adds its weight to the current value, which damps the step by
    the share of samples at the sites that exercised the block. By exposure, only those sites have a weight,
    and damping is explicit: with exposures e of sum E, a site has the weight e**a and the current value κ/E
    of their sum, so the step is E / (E + κ) of the mean step.

    Args:
        blocks: Names of the model's blocks.
        options: Weighting, exponent a and damping κ.
        factors: Multiply the weights, per site; ignored in a block in which all would become zero.
        most: Largest share of a site: `capped`.

    Example:
        >>> sent = [Contribution("a", 8, {"ct": 2}, ("ct",), dict), Contribution("b", 4, {"ct": 0}, (), dict)]
        >>> site_weights(["ct"], sent, FedAvgOptions(), {})
        {'ct': BlockWeights(sites={'a': 8.0}, stay=4.0)}
        >>> site_weights(["ct"], sent, FedAvgOptions(Weighting.EXPOSURE), {})
        {'ct': BlockWeights(sites={'a': 2.0}, stay=0.0)}
    """
    ordered = sorted(contributions, key=lambda each: each.site)
    return {block: _weights(block, ordered, options, factors, most) for block in blocks}


def _weights(
    block: str,
    contributions: Sequence[Contribution],
    options: FedAvgOptions,
    factors: Mapping[str, float],
    most: float,
) -> BlockWeights:
    senders = {each.site for each in contributions if block in each.blocks}
    if options.weighting is Weighting.SAMPLES:
        samples = {each.site: options.vote(each.samples, 0) for each in contributions}
        votes = capped(_with_factors(samples, factors), most)
        others = sum(vote for site, vote in votes.items() if site not in senders)
        return BlockWeights({site: vote for site, vote in votes.items() if site in senders}, float(others))
    exposed = {
        each.site: each.exposures[block]
        for each in contributions
        if each.site in senders and each.exposures[block] > 0
    }
    powers = {site: options.vote(0, count) for site, count in exposed.items()}
    votes = capped(_with_factors(powers, factors), most)
    exposure = sum(exposed.values())
    return BlockWeights(votes, sum(votes.values()) * options.damping / exposure if exposure else 0.0)


def capped(votes: Mapping[str, float], most: float) -> dict[str, float]:
    """Lower the largest weights until no site has more than the share ``most`` of their sum.

    What the capped sites lose goes to the others, in proportion. If sites with a weight are so few that one
    must have more, they weigh alike. Without a site above the share, weights stay as they are.

    Example:
        >>> capped({"a": 26e6, "b": 30.0, "c": 10.0}, 0.5)
        {'a': 40.0, 'b': 30.0, 'c': 10.0}
        >>> capped({"a": 26e6, "b": 30.0, "c": 0.0}, 0.4)
        {'a': 1.0, 'b': 1.0, 'c': 0.0}
    """
    rising = sorted(vote for vote in votes.values() if vote > 0)
    sums = list(accumulate(rising))  # of the smallest
    if not rising or rising[-1] <= most * sums[-1]:
        return dict(votes)
    if len(rising) * most <= 1:
        return {site: float(vote > 0) for site, vote in votes.items()}
    left = len(rising)  # sites that are not above the share
    while rising[left - 1] * (1 - most * (len(rising) - left)) > most * sums[left - 1]:
        left -= 1
    level = most * sums[left - 1] / max(1 - most * (len(rising) - left), float_info.epsilon)
    return {site: min(vote, level) for site, vote in votes.items()}


def _with_factors(votes: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    scaled = {site: vote * factors.get(site, 1.0) for site, vote in votes.items()}
    return scaled if any(scaled.values()) else dict(votes)


def gap_factors(
    gaps: Mapping[str, float | None], factors: Mapping[str, float], step: float
) -> dict[str, float]:
    """Shift the factors of site weights towards sites that the average serves worse than their own model.

    Generalisation adjustment (FedDG-GA, Zhang et al., CVPR 2023; github.com/MediaBrain-SJTU/FedDG-GA, commit
    b54ffd8, ``utils/weight_adjust.py``): a factor moves by step · gap / max |gap|, is clipped at 0, and all
    are normalised. Unlike the repository, whose weights have sum 1 and replace those by samples, factors have
    mean 1 and multiply the weights; nothing is clipped from above, which the normalisation bounds anyway.

    Args:
        gaps: Per contributing site; a site without a finite gap does not move.
        factors: Of the previous round; a new site starts at 1.
        step: Change of the site with the largest gap.

    Returns:
        Factors of mean 1 for every site known so far; unchanged if no site moves or all would become 0.

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
