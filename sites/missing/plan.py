"""What shall be taken away of a data set, as the flags of ``mmare-sim prepare`` say it.

Light, so that ``--help`` is fast; `sites.missing.amputate` does what is said here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmare.errors import StudyError
from sites.options import Mechanism, Pattern, choose

__all__ = ["LABEL_DRIVER", "PC1_DRIVER", "Missingness", "SiteLoss"]

LABEL_DRIVER, PC1_DRIVER = "label", "pc1"  # of mnar
SLOPE = 2.0  # by default, of the logit per standard deviation of what drives the loss
_STEEPEST = 100.0


@dataclass(frozen=True)
class SiteLoss:
    """How one site loses modalities."""

    mechanism: Mechanism
    rate: float


@dataclass(frozen=True)
class Missingness:
    """What shall be taken away, as the flags of the command say it; by default nothing.

    Args:
        mechanism: A `Mechanism`, of every site that ``sites`` does not name.
        rate: Mean probability that a modality is lost, from 0 to below 1.
        drivers: Of mar a column of the data set's table, of mnar ``label`` or ``pc1``; at most one of each.
        slope: Of the logit per standard deviation of the driver; `SLOPE` by default.
        sites: ``SITE=MECHANISM:RATE`` or ``SITE=RATE``.
        pattern: A `Pattern`.

    Raises:
        StudyError: If they are none that exist, out of range, or contradict each other.
    """

    mechanism: str | None = None
    rate: float | None = None
    drivers: tuple[str, ...] = ()
    slope: float | None = None
    sites: tuple[str, ...] = ()
    pattern: str = Pattern.NATURAL

    def __post_init__(self) -> None:
        choose(Pattern, self.pattern, "--pattern")
        if self.mechanism is not None:
            choose(Mechanism, self.mechanism, "--mechanism")
            if self.rate is None:
                raise StudyError(
                    f"--mechanism is {self.mechanism}, but no --missing-rate says how much is lost"
                )
        elif self.rate is not None:
            raise StudyError(f"--missing-rate is {self.rate}, but no --mechanism such as mcar says how")
        if self.rate is not None:
            _check_rate(self.rate, "--missing-rate is")
        driven = self.used - {Mechanism.MCAR}
        for value, flag in ((self.slope, "--slope"), (next(iter(self.drivers), None), "--driver")):
            if value is not None and not driven:
                raise StudyError(f"{flag} is {value}, but only the mechanisms mar and mnar have one")
        if not abs(self.steepness) <= _STEEPEST:
            raise StudyError(
                f"--slope is {self.slope}, expected a number from {-_STEEPEST:g} to {_STEEPEST:g}"
            )
        self.driver_of(Mechanism.MAR)
        self.driver_of(Mechanism.MNAR)

    @property
    def active(self) -> bool:
        """Whether anything is to be taken away."""
        return bool(self.used) or self.pattern == Pattern.EXCLUSIVE

    @property
    def steepness(self) -> float:
        """The slope, given or not."""
        return SLOPE if self.slope is None else self.slope

    @property
    def default(self) -> SiteLoss | None:
        """Of the sites that are not named."""
        if self.mechanism is None or self.rate is None:
            return None
        return SiteLoss(Mechanism(self.mechanism), self.rate)

    @property
    def named(self) -> dict[str, SiteLoss]:
        """Of the sites that are named, by site."""
        found: dict[str, SiteLoss] = {}
        for text in self.sites:
            site, loss = _parse_site(text, self.default)
            if site in found:
                raise StudyError(f"--site-missing names {site!r} twice, expected each site once")
            found[site] = loss
        return found

    @property
    def used(self) -> set[Mechanism]:
        """Every mechanism that some site has."""
        losses = [*self.named.values(), *([] if self.default is None else [self.default])]
        return {loss.mechanism for loss in losses}

    def driver_of(self, mechanism: Mechanism) -> str | None:
        """The driver that was given for a mechanism, if one was.

        Raises:
            StudyError: If there are two, or one that no mechanism in use takes.
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
        raise StudyError(f"--site-missing is {text!r}, but no --mechanism such as mcar says how")
    return site, SiteLoss(default.mechanism, rate)
