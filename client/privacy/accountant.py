"""How much noise a study's budget asks of a site: privacy loss distributions of Google's ``dp-accounting``.

Every patient of a run is in one split. Those of the train split are in the steps, each drawn with the same
probability in each step (Poisson sampling); those of the others in the histograms of scores that metrics are
made of. So one (epsilon, delta) holds for all of them. Neighbours differ by a patient who is there or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from mmare.errors import InputError
from mmare.wire.sharing import steps_at_coordinator

if TYPE_CHECKING:
    from mmare.study.specs import DifferentialPrivacySpec
    from mmare.study.study import Study

__all__ = ["BudgetError", "Plan", "epsilon_of", "plan_of", "public_rows"]

EVALUATIONS: Final = 2  # of validation rows: the last round's model, and the same again at the end
STEP: Final = 10  # rows are told in multiples of it
_INTERVAL: Final = 1e-3  # of the discrete loss distribution, which overestimates
_LEAST_NOISE: Final = 0.1  # more than a budget asks for does no harm
_PRECISION: Final = 5e-3  # of the noise, relative


class BudgetError(InputError):
    """A study that a site's data cannot carry, or its budget does not allow; for people of the site."""


@dataclass(frozen=True)
class Plan:
    """How a site answers a study under differential privacy."""

    rows: int  # of the train split, rounded: taken as public
    rate: float  # probability that a patient is drawn for a step
    steps: int  # of an epoch
    noise: float  # deviation of the noise on a step's sum, in clips
    histogram_noise: float  # deviation of the noise on each bin of scores, in patients

    @property
    def expected(self) -> float:
        """Patients of a step on average, by which its sum is divided."""
        return self.rate * self.rows


def public_rows(rows: int) -> int:
    """The number of train rows as it is told: it weighs the site, and the noise shows it in any case.

    Example:
        >>> public_rows(7), public_rows(239)
        (10, 230)
    """
    return max(rows // STEP, 1) * STEP


def plan_of(study: Study, train_rows: int) -> Plan:
    """The least noise with which all rounds of a study stay within its budget.

    Args:
        study: With ``dp``.
        train_rows: 0 at a site that only evaluates.

    Raises:
        BudgetError: If the noise would hide all that so many patients can teach, or delta is no small risk.
    """
    dp, training = study.privacy.dp, study.training
    assert dp is not None  # noqa: S101 - asked for by the caller
    rows = public_rows(train_rows)
    if train_rows and dp.delta * rows >= 1:
        raise BudgetError(
            f"delta {dp.delta:g} of the study {study.name} is the risk of telling all of a patient, expected "
            f"below one in its {rows} train rows"
        )
    rate = 1.0 if steps_at_coordinator(study) else min(training.batch_size / rows, 1.0)
    steps = math.ceil(1 / rate)
    total = steps * training.local_epochs * training.rounds
    noise, histogram_noise = _noise(dp, rate, total), _noise(dp, 1.0, EVALUATIONS)
    plan = Plan(rows, rate, steps, noise, histogram_noise)
    most = plan.expected * math.sqrt(
        total
    )  # clips by which a run can move along one direction, in deviations
    if train_rows and noise > most:
        raise BudgetError(
            f"epsilon {dp.epsilon:g} of the study {study.name} is more than {rows} train rows can carry: "
            f"each of {total} steps needs noise of {noise:.3g} clips, expected at most {most:.3g}; a larger "
            "epsilon, fewer rounds or more patients help"
        )
    return plan


def epsilon_of(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon of ``steps`` Gaussian sums of deviation ``noise`` (in clips) over Poisson samples of ``rate``.

    Example:
        >>> round(epsilon_of(1.0, 0.01, 1000, 1e-5), 2)  # published: 1.828
        1.83
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent  # noqa: PLC0415 - slow
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415 - takes a second

    accountant = PLDAccountant(
        value_discretization_interval=_INTERVAL
    )  # of neighbours that add or remove one
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps))
    return float(accountant.get_epsilon(delta))


@lru_cache
def _noise(dp: DifferentialPrivacySpec, rate: float, steps: int) -> float:
    """The least noise of a budget, rounded up."""
    if rate == 1:  # sums of Gaussians are Gaussian
        from dp_accounting import get_sigma_gaussian  # noqa: PLC0415 - slow

        return math.sqrt(steps) * float(get_sigma_gaussian(dp.epsilon, dp.delta))
    high = 1.0
    while epsilon_of(high, rate, steps, dp.delta) > dp.epsilon:
        high *= 2
    low = high / 2
    while low > _LEAST_NOISE and epsilon_of(low, rate, steps, dp.delta) <= dp.epsilon:
        low, high = low / 2, low
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        if epsilon_of(middle, rate, steps, dp.delta) > dp.epsilon:
            low = middle
        else:
            high = middle
    return high
