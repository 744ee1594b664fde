"""The strategies that a study can name. A new one is one function and one line here.

A strategy is a pure function from the sites' updates and its own state to the next model and state. The state
is part of every checkpoint, so a resumed run is bit-identical.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from flwr.app import Array, ArrayRecord, MessageType, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum

from mmare.errors import Ending, RunError
from mmare.study.specs import TrainingSpec
from mmare.study.strategy_options import (
    FedAvgOptions,
    FedMedianOptions,
    FedSGDOptions,
    KrumOptions,
    TrimmedMeanOptions,
    strategy_options,
)
from mmare.wire.sharing import GRADIENTS
from mmare.wire.tensors import is_finite
from server.aggregation.mean import BlockWeights, Contribution, Sums, mean_of_sums, to_dtype, weighted_mean
from server.aggregation.robust import changes_gram, points_of, runs
from server.aggregation.server_optimizers import (
    ServerOptimizer,
    fedadam,
    fedavgm,
    fedsgd,
    fedyogi,
    signal_share,
)
from server.aggregation.site_weights import gap_factors, site_weights

if TYPE_CHECKING:
    from torch import Tensor

    from mmare.study.specs import FederationSpec

__all__ = ["STRATEGIES", "Gathered", "Strategy", "Tensors", "strategy_of"]

# Prefixes of the keys of the state.
GAP: Final = "gap/"  # factor of a site's weight
SHARE: Final = "share/"  # of the first gradient of a block that is no noise
STEPS: Final = "steps/"  # number of steps of a block; the optimiser names the moments of parameters

_VALUE: Final = "value"
_SAMPLES: Final = "num-examples"  # Flower's default key of weights
_PLACE: Final = "place"  # index of a site in the list that Flower selects from
_LOCAL: Final = Metadata(0, "", 0, 0, "", "", 0.0, 1.0, MessageType.TRAIN)  # of replies that are never sent

Tensors = dict[str, "Tensor"]


@dataclass(frozen=True)
class Gathered:
    """The input of a strategy: one round's updates and the strategy's state."""

    current: Mapping[str, Tensor]  # federated tensors that the sites started from
    parts: Mapping[str, Sequence[str]]  # names of the tensors of each block
    contributions: Sequence[Contribution]
    state: Mapping[str, Tensor] = field(default_factory=dict)  # empty in the first round
    max_share: float = 1.0  # of a site in a weighted mean
    sums: Sums | None = None  # in place of contributions, under secure sums
    residual: float | None = None  # of the task, if it is known
    rate_factor: float = 1.0  # of the round's learning rate, where the coordinator makes the step


Strategy = Callable[[Gathered], tuple[Tensors, Tensors]]


def strategy_of(
    federation: FederationSpec,
    optimizer_of: Callable[[str], ServerOptimizer] = lambda _: fedsgd(TrainingSpec()),
) -> Strategy:
    """Make the strategy that a study names, with its options.

    Args:
        federation: Of the study.
        optimizer_of: By which FedSGD steps a block.

    It ignores sites without samples and the order of contributions, and raises `RunError` if no site has
    samples or a result is not finite: updates were checked on arrival, but a server optimiser can overflow.

    Raises:
        StudyError: If the strategy or an option does not exist.
    """
    options = strategy_options(federation.strategy, federation.options)
    made = STRATEGIES[federation.strategy]
    step = made(options, optimizer_of) if isinstance(options, FedSGDOptions) else made(options)

    def checked(gathered: Gathered) -> tuple[Tensors, Tensors]:
        contributions = sorted(
            (each for each in gathered.contributions if each.samples > 0), key=lambda each: each.site
        )
        if not contributions and not (gathered.sums and gathered.sums.samples > 0):
            raise RunError(
                "no site sent an update with training samples: there is nothing to aggregate", Ending.QUORUM
            )
        changed, state = step(replace(gathered, contributions=contributions, max_share=federation.max_share))
        if not is_finite(changed) or not is_finite(state):
            raise RunError(
                f"strategy {federation.strategy} made values that are not finite; its options are too large",
                Ending.NON_FINITE,
            )
        return changed, {name: value.contiguous() for name, value in state.items()}

    return checked


# Means


def _mean(gathered: Gathered, options: FedAvgOptions) -> tuple[Tensors, dict[str, BlockWeights], Tensors]:
    """The weighted mean, its weights, and the factors of site weights as state."""
    if gathered.sums is not None:
        mean, weights = mean_of_sums(gathered.current, gathered.sums, options)
        return mean, {block: weights.get(block, BlockWeights({})) for block in gathered.parts}, {}
    factors: dict[str, float] = {}
    if options.gap_step > 0:
        before = {
            name.removeprefix(GAP): float(value)
            for name, value in gathered.state.items()
            if name.startswith(GAP)
        }
        gaps = {each.site: each.gap for each in gathered.contributions}
        factors = gap_factors(gaps, before, options.gap_step)
    weights = site_weights(gathered.parts, gathered.contributions, options, factors, gathered.max_share)
    mean = weighted_mean(gathered.current, gathered.parts, gathered.contributions, weights)
    kept = {f"{GAP}{site}": torch.tensor(value, dtype=torch.float64) for site, value in factors.items()}
    return mean, weights, kept


def _fedavg(options: FedAvgOptions) -> Strategy:
    """FedAvg (McMahan et al. 2017), weighted by samples or, block by block, by exposure."""

    def step(gathered: Gathered) -> tuple[Tensors, Tensors]:
        mean, _, state = _mean(gathered, options)
        return mean, state

    return step


def _stepping(make: Callable[[Any], ServerOptimizer]) -> Callable[[Any], Strategy]:
    """A strategy that steps along the mean change; blocks without an update keep value and moments."""

    def strategy(options: FedAvgOptions) -> Strategy:
        optimizer = make(options)
        return lambda gathered: _stepped(gathered, options, lambda _: optimizer)

    return strategy


def _fedsgd(options: FedAvgOptions, optimizer_of: Callable[[str], ServerOptimizer]) -> Strategy:
    """A step of an optimiser along the mean gradient of all rows, scaled by the schedule and by damping."""

    def step(gathered: Gathered) -> tuple[Tensors, Tensors]:
        changed, state = _stepped(gathered, options, optimizer_of, GRADIENTS)
        for block, names in gathered.parts.items():
            factor, exposure = gathered.rate_factor, _exposure(gathered, block)
            if optimizer_of(block).damped and exposure:
                factor *= exposure / (exposure + options.damping)
            for name in names if factor != 1 else ():
                value = gathered.current[name]
                way = changed[name].double() - value.double()
                changed[name] = to_dtype(value.double() + factor * way, value.dtype)
        return changed, state

    return step


def _exposure(gathered: Gathered, block: str) -> float:
    """Of a block, over all sites."""
    if gathered.sums is not None:
        return gathered.sums.blocks[block].exposure if block in gathered.sums.blocks else 0.0
    return float(sum(each.exposures.get(block, 0) for each in gathered.contributions))


def _stepped(
    gathered: Gathered,
    options: FedAvgOptions,
    optimizer_of: Callable[[str], ServerOptimizer],
    stretch: float = 1.0,
) -> tuple[Tensors, Tensors]:
    """Step each block along its mean change, which sites made ``stretch`` times as long."""
    changed, weights, state = _mean(gathered, options)
    for block, names in gathered.parts.items():
        optimizer, moves = optimizer_of(block), weights[block].moves
        count = gathered.state.get(f"{STEPS}{block}", torch.tensor(0)) + int(moves)
        state[f"{STEPS}{block}"] = count
        share = _share(gathered, block, changed, stretch) if optimizer.unit and moves else None
        kept = gathered.state.get(f"{SHARE}{block}") if share is None else share
        if kept is not None:
            state[f"{SHARE}{block}"] = kept
        for name in names:
            value = gathered.current[name]
            if not value.is_floating_point():
                continue  # a counter has no gradient
            keys = [f"{moment}/{name}" for moment in optimizer.moments]
            moments: Sequence[Tensor] = [
                gathered.state[key] if key in gathered.state else torch.zeros_like(value) for key in keys
            ]
            if moves:
                change = (changed[name] - value) / stretch
                change = change if share is None else change * share.to(change)
                changed[name], moments = optimizer.step(value, change, moments, int(count))
            state.update(zip(keys, moments, strict=True))
    return changed, state


def _share(gathered: Gathered, block: str, changed: Tensors, stretch: float) -> Tensor | None:
    """`signal_share` of a block's first gradient; None where the task's residual is unknown."""
    if gathered.residual is None:
        return None
    kept = gathered.state.get(f"{SHARE}{block}")
    if kept is not None:
        return kept
    name = gathered.parts[block][0]  # of the inputs themselves; their bends follow
    sums = gathered.sums
    samples = sums.samples if sums else float(sum(each.samples for each in gathered.contributions))
    gradient = (changed[name] - gathered.current[name]) / stretch
    share = signal_share(gradient, _exposure(gathered, block), samples, gathered.residual)
    return torch.tensor(share, dtype=torch.float64)


# Robust strategies, by Flower's own classes


def _fedmedian(_: FedMedianOptions) -> Strategy:
    """Coordinate-wise median (Yin et al. 2018), sites unweighted."""
    return _by_coordinate(FedMedian())


def _trimmed_mean(options: TrimmedMeanOptions) -> Strategy:
    """Coordinate-wise trimmed mean (Yin et al. 2018), sites unweighted."""
    return _by_coordinate(FedTrimmedAvg(beta=options.share))


def _by_coordinate(flower: FedAvg) -> Strategy:
    """Aggregate each block over the sites that sent it, a run of coordinates at a time."""

    def step(gathered: Gathered) -> tuple[Tensors, Tensors]:
        sent = [each.load() for each in gathered.contributions]
        changed = dict(gathered.current)
        for block, names in gathered.parts.items():
            senders = [
                (each, tensors)
                for each, tensors in zip(gathered.contributions, sent, strict=True)
                if block in each.blocks
            ]
            for name in names if senders else ():
                made = torch.empty(changed[name].numel(), dtype=torch.float64)
                for run, pieces in runs([tensors[name] for _, tensors in senders]):
                    values = (piece.double() for piece in pieces)  # else means of equal values drift
                    made[run], _ = _aggregate(flower, [each for each, _ in senders], values)
                changed[name] = to_dtype(made, changed[name].dtype).view(changed[name].shape)
        return changed, {}

    return step


def _krum(options: KrumOptions) -> Strategy:
    """Krum (Blanchard et al. 2017): the model of the site that is closest to its nearest sites.

    A block that a site did not send counts as unchanged. Flower gets one low-dimensional point per site, at
    the distances of the models: given the models themselves, it copies them several times and computes
    distances as differences of squared norms in their own precision, in which a round's change is lost.
    """
    needed = 2 * options.malicious + 3  # Blanchard et al., proposition 1
    flower = Krum(num_malicious_nodes=options.malicious)

    def step(gathered: Gathered) -> tuple[Tensors, Tensors]:
        contributions = gathered.contributions
        if len(contributions) < needed:
            raise RunError(
                f"krum with options malicious = {options.malicious} needs updates of at least {needed} "
                f"sites, found {len(contributions)}"
            )
        sent = [
            {name: tensors[name] for block in each.blocks for name in gathered.parts[block]}
            for each in contributions
            for tensors in (each.load(),)
        ]
        gram = changes_gram(gathered.current, sent)
        if not gram.isfinite().all():
            raise RunError("krum cannot compare updates whose distances are not finite", Ending.NON_FINITE)
        _, metrics = _aggregate(flower, contributions, points_of(gram))
        chosen = sent[int(metrics[_PLACE])]
        return {
            name: to_dtype(chosen.get(name, value), value.dtype) for name, value in gathered.current.items()
        }, {}

    return step


def _aggregate(
    flower: FedAvg, senders: Sequence[Contribution], values: Iterable[Tensor]
) -> tuple[Tensor, Mapping[str, Any]]:
    """Aggregate one value per site by a Flower strategy; metrics hold the mean place of the sites used."""
    replies = [
        make_message(
            _LOCAL,
            RecordDict(
                {
                    "arrays": ArrayRecord({_VALUE: Array(value.numpy())}),
                    "metrics": MetricRecord({_SAMPLES: each.samples, _PLACE: place}),
                }
            ),
        )
        for place, (each, value) in enumerate(zip(senders, values, strict=True))
    ]
    logger = logging.getLogger("flwr")
    logger.addFilter(_above_info)
    try:
        arrays, metrics = flower.aggregate_train(0, replies)
    finally:
        logger.removeFilter(_above_info)
    assert arrays is not None  # noqa: S101 - there are replies
    assert metrics is not None  # noqa: S101
    return torch.from_numpy(arrays[_VALUE].numpy()), metrics


def _above_info(record: logging.LogRecord) -> bool:
    """Flower logs the number of replies per call, which would be once per piece of the model."""
    return record.levelno > logging.INFO


STRATEGIES: Final[dict[str, Callable[..., Strategy]]] = {
    "exposure": _fedavg,
    "fedadam": _stepping(fedadam),
    "fedavg": _fedavg,
    "fedavgm": _stepping(fedavgm),
    "fedmedian": _fedmedian,
    "fedprox": _fedavg,  # the proximal term is applied at the sites (Li et al. 2020)
    "fedsgd": _fedsgd,
    "fedyogi": _stepping(fedyogi),
    "krum": _krum,
    "trimmed-mean": _trimmed_mean,
}
