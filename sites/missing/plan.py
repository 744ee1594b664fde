"""The missingness that the flags of ``mmare-sim prepare`` ask for, executed by `sites.missing.amputate`.

Imports nothing heavy, so that ``--help`` is fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmare.errors import StudyError
from sites.options import Mechanism, Pattern, choose

__all__ = ["LABEL_DRIVER", "PC1_DRIVER", "Missingness", "SiteLoss"]

LABEL_DRIVER, PC1_DRIVER = "label", "pc1"  # of mnar
SLOPE = 2.0  # default slope of the logit per standard deviation of the driver
_STEEPEST = 100.0


@dataclass(frozen=True)
class SiteLoss:
    """How one site loses modalities."""

    mechanism: Mechanism
    rate: float


@dataclass(frozen=True)
class Missingness:
    """The missingness to create, as given by the flags; by default none.

    Raises:
        StudyError: If a value is unknown or out of range, or values contradict each other.
    """

    mechanism: str | None = None  # a `Mechanism`, for every site that ``sites`` does not name
    rate: float | None = None  # mean probability that a modality is lost, from 0 to below 1
    drivers: tuple[
        str, ...
    ] = ()  # for mar a column of the source, for mnar label or pc1; at most one of each
    slope: float | None = None  # of the logit per standard deviation of the driver; by default `SLOPE`
    sites: tuple[str, ...] = ()  # SITE=MECHANISM:RATE or SITE=RATE
    pattern: str = Pattern.NATURAL

    def __post_init__(self) -> None:
        choose(Pattern, self.pattern, "--pattern")
        if self.mechanism is not None:
            choose(Mechanism, self.mechanism, "--mechanism")
            if self.rate is None:
                raise StudyError(f"--mechanism is {self.mechanism}, expected --missing-rate with it")
        elif self.rate is not None:
            raise StudyError(f"--missing-rate is {self.rate}, expected --mechanism such as mcar with it")
        if self.rate is not None:
            _check_rate(self.rate, "--missing-rate is")
        driven = self.used - {Mechanism.MCAR}
        for value, flag in ((self.slope, "--slope"), (next(iter(self.drivers), None), "--driver")):
            if value is not None and not driven:
                raise StudyError(f"{flag} is {value}, but only the mechanisms mar and mnar use it")
        if not abs(self.steepness) <= _STEEPEST:
            raise StudyError(
                f"--slope is {self.slope}, expected a number from {-_STEEPEST:g} to {_STEEPEST:g}"
            )
        self.driver_of(Mechanism.MAR)
        self.driver_of(Mechanism.MNAR)

    @property
    def active(self) -> bool:
        """Whether any modality is to be removed."""
        return bool(self.used) or self.pattern == Pattern.EXCLUSIVE

    @property
    def steepness(self) -> float:
        """The slope, or its default."""
        return SLOPE if self.slope is None else self.slope

    @property
    def default(self) -> SiteLoss | None:
        """The rule for sites without their own."""
        if self.mechanism is None or self.rate is None:
            return None
        return SiteLoss(Mechanism(self.mechanism), self.rate)

    @property
    def named(self) -> dict[str, SiteLoss]:
        """The rules of single sites, by site."""
        found: dict[str, SiteLoss] = {}
        for text in self.sites:
            site, loss = _parse_site(text, self.default)
            if site in found:
                raise StudyError(f"--site-missing names {site!r} twice, expected each site once")
            found[site] = loss
        return found

    @property
    def used(self) -> set[Mechanism]:
        """The mechanisms in use at any site."""
        losses = [*self.named.values(), *([] if self.default is None else [self.default])]
        return {loss.mechanism for loss in losses}

    def driver_of(self, mechanism: Mechanism) -> str | None:
        """The driver given for a mechanism, if any.

        Raises:
            StudyError: If there are two, or one that no mechanism in use accepts.
        """
        given = [word for word in self.drivers if _mechanism_of(word) is mechanism]
        if given and mechanism not in self.used:
            other = Mechanism.MNAR if mechanism is Mechanism.MAR else Mechanism.MAR
            takes = {
                Mechanism.MAR: "a column of the table",
                Mechanism.MNAR: f"{LABEL_DRIVER} or {PC1_DRIVER}",
            }
            raise StudyError(f"--driver is {given[0]!r}, but {other} is driven by {takes[other]}")
        if len(given) > 1:
            raise StudyError(f"--driver is {given[0]!r} and {given[1]!r}, expected one for {mechanism}")
        return given[0] if given else None


def _check_rate(rate: float, what: str) -> None:
    if not 0 <= rate < 1:
        raise StudyError(f"{what} {rate}, expected a number from 0 to below 1")


def _mechanism_of(driver: str) -> Mechanism:
    return Mechanism.MNAR if driver in {LABEL_DRIVER, PC1_DRIVER} else Mechanism.MAR


def _parse_site(text: str, default: SiteLoss | None) -> tuple[str, SiteLoss]:
    """``SITE=MECHANISM:RATE`` or ``SITE=RATE``."""
    site, _, value = (part.strip() for part in text.partition("="))
    word, colon, number = (part.strip() for part in value.rpartition(":"))
    try:
        rate = float(number)
    except ValueError:
        rate = math.nan
    if not site or math.isnan(rate):
        raise StudyError(
            f"--site-missing is {text!r}, expected SITE=MECHANISM:RATE such as north=mar:0.6, or SITE=RATE"
        )
    _check_rate(rate, f"--site-missing of {site} is")
    if colon:
        return site, SiteLoss(choose(Mechanism, word, f"--site-missing of {site}"), rate)
    if default is None:
        raise StudyError(
            f"--site-missing is {text!r}, expected SITE=MECHANISM:RATE or a --mechanism such as mcar"
        )
    return site, SiteLoss(default.mechanism, rate)
