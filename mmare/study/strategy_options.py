"""Names and options of the aggregation strategies; the server implements them.

Sites read this too: a study that names an unknown strategy or option is refused where it is approved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from mmare.errors import StudyError
from mmare.study.tables import TableError, from_table

__all__ = [
    "STRATEGY_OPTIONS",
    "ExposureOptions",
    "FedAdamOptions",
    "FedAvgMOptions",
    "FedAvgOptions",
    "FedMedianOptions",
    "FedProxOptions",
    "FedSGDOptions",
    "KrumOptions",
    "TrimmedMeanOptions",
    "Weighting",
    "strategy_options",
]


class Weighting(StrEnum):
    """What a site weighs in a block: its samples, or the samples that exercised the block."""

    SAMPLES = "samples"
    EXPOSURE = "exposure"


@dataclass(frozen=True)
class FedAvgOptions:
    """Weighted averaging.

    Args:
        exponent: a: a site of e samples or exposure weighs e**a.
        damping: kappa: a block of exposure E over all sites takes E / (E + kappa) of its step.
        gap_step: Largest change per round of the factor of a site's weight (1 at first): up where averaging
            made its model worse, down where better (generalisation gap, FedDG-GA); 0 disables factors.
    """

    weighting: Weighting = Weighting.SAMPLES
    exponent: float = 1.0
    damping: float = 0.0
    gap_step: float = 0.0

    def vote(self, samples: int, exposure: int) -> float:
        """What a site that sent a block weighs in it, before other sites are looked at."""
        if self.weighting is Weighting.SAMPLES:
            return float(samples)
        return float(exposure) ** self.exponent if exposure else 0.0


@dataclass(frozen=True)
class ExposureOptions(FedAvgOptions):
    """`FedAvgOptions` weighted by exposure only."""

    weighting: Weighting = Weighting.EXPOSURE


@dataclass(frozen=True)
class FedProxOptions(FedAvgOptions):
    """FedProx: ``mu`` times the distance pulls sites towards the received model."""

    mu: float = 0.01


@dataclass(frozen=True)
class FedAvgMOptions(FedAvgOptions):
    """FedAvgM (Hsu et al. 2019)."""

    server_learning_rate: float = 1.0
    momentum: float = 0.9


@dataclass(frozen=True)
class FedAdamOptions(FedAvgOptions):
    """FedAdam and FedYogi (Reddi et al. 2021); ``tau`` is the adaptivity."""

    server_learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3


@dataclass(frozen=True)
class FedSGDOptions(FedAvgOptions):
    """FedSGD (McMahan et al. 2017): sites send the gradient of all their train rows at the received model.

    The coordinator steps the study's optimizer once a round along the pooled gradient, so that a round is the
    step that the pooled rows would make, however many sites they lie at. ``damping`` shortens that step: what
    few rows exercise learns slowly, and overfits later.
    """


@dataclass(frozen=True)
class FedMedianOptions:
    """The coordinate-wise median has no options."""


@dataclass(frozen=True)
class TrimmedMeanOptions:
    """Coordinate-wise trimmed mean."""

    share: float = 0.2  # of sites cut at either end, rounded down: below 1 / share sites, the plain mean


@dataclass(frozen=True)
class KrumOptions:
    """Krum."""

    malicious: int = 0  # sites to tolerate; a round needs 2 * malicious + 3 sites


STRATEGY_OPTIONS: Final[dict[str, type[Any]]] = {
    "exposure": ExposureOptions,
    "fedadam": FedAdamOptions,
    "fedavg": FedAvgOptions,
    "fedavgm": FedAvgMOptions,
    "fedmedian": FedMedianOptions,
    "fedprox": FedProxOptions,
    "fedsgd": FedSGDOptions,
    "fedyogi": FedAdamOptions,
    "krum": KrumOptions,
    "trimmed-mean": TrimmedMeanOptions,
}

_BOUNDS: Final = {  # lowest and highest value; a step of zero would learn nothing
    "exponent": (0.0, 10.0),
    "damping": (0.0, 1e12),
    "gap_step": (0.0, 1.0),
    "mu": (0.0, 1e6),
    "server_learning_rate": (1e-12, 1e6),
    "momentum": (0.0, 0.999),
    "beta1": (0.0, 0.999),
    "beta2": (0.0, 0.99999),
    "tau": (1e-12, 1e6),
    "share": (0.0, 0.49),
    "malicious": (0, 10_000),
}


def strategy_options(name: str, options: Mapping[str, Any]) -> Any:  # noqa: ANN401 - each strategy has its own
    """The options of a strategy with defaults filled in.

    Raises:
        StudyError: If the strategy or an option does not exist, or a value is out of its bounds.

    Example:
        >>> strategy_options("fedprox", {"mu": 1}).mu
        1.0
    """
    if name not in STRATEGY_OPTIONS:
        known = ", ".join(sorted(STRATEGY_OPTIONS))
        raise StudyError(f"[federation] strategy must be one of {known}, found {name!r}")
    made = STRATEGY_OPTIONS[name]
    if options and not fields(made):
        raise StudyError(f"[federation] strategy {name} has no options, found {next(iter(options))!r}")
    try:
        found = from_table(made, options, f"[federation] options of {name}")
    except TableError as error:
        raise StudyError(str(error)) from None
    for key, (lowest, highest) in _BOUNDS.items():
        value = getattr(found, key, lowest)
        if not lowest <= value <= highest:
            raise StudyError(
                f"[federation] options {key} must be between {lowest:g} and {highest:g}, found {value!r}"
            )
    _check_weighting(name, found)
    return found


def _check_weighting(name: str, options: Any) -> None:  # noqa: ANN401 - each strategy has its own
    """Refuse options that would have no effect."""
    if getattr(options, "weighting", None) is not Weighting.SAMPLES:
        return
    if isinstance(options, FedSGDOptions):
        return
    if isinstance(options, ExposureOptions):
        raise StudyError("[federation] strategy exposure weighs by exposure; fedavg weighs by samples")
    for key in ("exponent", "damping"):
        if getattr(options, key) != getattr(FedAvgOptions, key):
            raise StudyError(f"[federation] options {key} of {name} needs weighting = 'exposure'")
