"""How a server may bring updates together, as names and options; the arithmetic is the server's.

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
    "KrumOptions",
    "TrimmedMeanOptions",
    "Weighting",
    "strategy_options",
]


class Weighting(StrEnum):
    """What a site's say in a block is: its samples, or the samples that exercised the block."""

    SAMPLES = "samples"
    EXPOSURE = "exposure"


@dataclass(frozen=True)
class FedAvgOptions:
    """Of weighted averaging.

    Args:
        weighting: ``samples``, or ``exposure``: block by block, the samples that gave it a gradient.
        exponent: a: a site weighs e**a.
        damping: kappa: a block of exposure E over all sites makes E / (E + kappa) of its step.
        gap_step: Most that the factor of a site's weight, 1 at first, moves a round: up where averaging made
            its model worse, down where better (generalisation gap, FedDG-GA); 0 leaves factors out.
    """

    weighting: Weighting = Weighting.SAMPLES
    exponent: float = 1.0
    damping: float = 0.0
    gap_step: float = 0.0


@dataclass(frozen=True)
class ExposureOptions(FedAvgOptions):
    """Of averaging by exposure: `FedAvgOptions` with that weighting, and no other."""

    weighting: Weighting = Weighting.EXPOSURE


@dataclass(frozen=True)
class FedProxOptions(FedAvgOptions):
    """Of FedProx: sites are pulled to the model that they received by ``mu`` times the distance."""

    mu: float = 0.01


@dataclass(frozen=True)
class FedAvgMOptions(FedAvgOptions):
    """Of FedAvgM (Hsu et al. 2019): the server's step and its momentum."""

    server_learning_rate: float = 1.0
    momentum: float = 0.9


@dataclass(frozen=True)
class FedAdamOptions(FedAvgOptions):
    """Of FedAdam and FedYogi (Reddi et al. 2021): step, decay of both moments, adaptivity."""

    server_learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3


@dataclass(frozen=True)
class FedMedianOptions:
    """Of the coordinate-wise median: none."""


@dataclass(frozen=True)
class TrimmedMeanOptions:
    """Of the trimmed mean: ``share`` of the sites that is cut at either end, coordinate by coordinate.

    Rounded down to whole sites: of fewer than 1 / share none is cut, and it is the plain mean.
    """

    share: float = 0.2


@dataclass(frozen=True)
class KrumOptions:
    """Of Krum: ``malicious`` sites that it is to bear; a round needs 2 malicious + 3 sites."""

    malicious: int = 0


STRATEGY_OPTIONS: Final[dict[str, type[Any]]] = {
    "exposure": ExposureOptions,
    "fedadam": FedAdamOptions,
    "fedavg": FedAvgOptions,
    "fedavgm": FedAvgMOptions,
    "fedmedian": FedMedianOptions,
    "fedprox": FedProxOptions,
    "fedyogi": FedAdamOptions,
    "krum": KrumOptions,
    "trimmed-mean": TrimmedMeanOptions,
}

_BOUNDS: Final = {  # lowest and highest value; a step of zero would stand still
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
    """The options of a strategy, defaults filled in.

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
    """Refuse options that would have no effect.

    Raises:
        StudyError: Naming the first.
    """
    if getattr(options, "weighting", None) is not Weighting.SAMPLES:
        return
    if isinstance(options, ExposureOptions):
        raise StudyError("[federation] strategy exposure weighs by exposure; fedavg weighs by samples")
    for key in ("exponent", "damping"):
        if getattr(options, key) != getattr(FedAvgOptions, key):
            raise StudyError(f"[federation] options {key} of {name} needs weighting = 'exposure'")
