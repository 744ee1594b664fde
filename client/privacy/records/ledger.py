"""A site's budget of differential privacy: one chained ledger over all studies, seeds, runs and resumes.

A run is charged its study's whole epsilon before the first answer that patients have a part in leaves; run to
its end, resumed, or given up, it costs the same. Epsilons and deltas of runs add up (basic composition).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from client.privacy.accountant import BudgetError
from client.privacy.records.chained_log import ChainedLog
from mmare.host.console import visible

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from client.privacy.accountant import Plan
    from client.privacy.records.audit_chain import Head
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["FILE", "Charge", "Ledger", "budget_table", "budget_text", "ledger_of"]


FILE: Final = "budget.jsonl"  # beside site.toml, in a simulation in the site's cache


class Spending(StrEnum):
    """Kinds of lines."""

    CHARGED = "charged"


@dataclass(frozen=True)
class Charge:
    """What one run cost, and how the noise of its steps was chosen."""

    study: str  # hash
    name: str  # of the study
    seed: int
    run: str
    epsilon: float
    delta: float
    rows: int  # as told
    rate: float
    noise: float  # in clips
    time: str = ""  # ISO, in UTC


class Ledger(ChainedLog):
    """The file of charges.

    Args:
        limit: Of the sum of all epsilons; None for any.
    """

    Events = Spending
    REMEDY = (
        "no study with differential privacy is answered; restore the ledger and its head from a backup, for "
        "what it held was spent"
    )

    def __init__(self, path: Path, limit: float | None = None, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self.limit = limit

    def charges(self) -> list[Charge]:
        """Every charge in order."""
        fields = Charge.__dataclass_fields__
        return [
            Charge(**{key: value for key, value in line.items() if key in fields}) for line in self.lines()
        ]

    @property
    def spent(self) -> float:
        """The sum of all epsilons."""
        return math.fsum(each.epsilon for each in self.charges())

    @property
    def left(self) -> float | None:
        """What the limit leaves; None without one."""
        return None if self.limit is None else max(self.limit - self.spent, 0.0)

    def admit(self, study: Study, run: str = "", since: str = "") -> None:
        """Check that the budget has enough for a run that was not charged yet, by default for a new one.

        Args:
            study: Of the run.
            run: Its name.
            since: ISO time in UTC; a charge before it, of whose run the records were lost, does not count.

        Raises:
            BudgetError: If it has not.
        """
        dp = study.privacy.dp
        if dp is None or self.limit is None or self._is_charged(study, run, since):
            return
        spent = self.spent
        if spent + dp.epsilon > self.limit:
            raise BudgetError(
                f"the study {study.name} asks for an epsilon of {dp.epsilon:g}, {spent:g} is spent at this "
                f"site and its limit is {self.limit:g} ([policy] epsilon_limit in site.toml)"
            )

    def charge(self, study: Study, run: str, plan: Plan, since: str = "") -> Head | None:
        """Write down what a run costs, unless it was charged before; returns the new head. As of `admit`.

        Raises:
            BudgetError: If the budget has not enough.
            OSError: If it cannot be written; then nothing may leave.
            ChainError: If the ledger does not verify; then nothing may leave either.
        """
        dp = study.privacy.dp
        if dp is None or self._is_charged(study, run, since):
            return None
        charge = Charge(
            study.hash, study.name, study.seed, run, dp.epsilon, dp.delta, plan.rows, plan.rate, plan.noise
        )
        content: dict[str, Any] = {"event": Spending.CHARGED, **asdict(charge)}
        del content["time"]  # of the line itself
        return self.add(content, allowed=lambda: self.admit(study, run, since))

    def _is_charged(self, study: Study, run: str, since: str) -> bool:
        key = study.hash, study.seed, run
        return any((each.study, each.seed, each.run) == key for each in self.charges() if each.time >= since)


def ledger_of(site: SiteConfig) -> Ledger:
    """The hospital's ledger, beside ``site.toml`` like its audit log."""
    return Ledger(site.folder / FILE, site.epsilon_limit, durable=True)


def budget_table(site: str, ledger: Ledger) -> dict[str, Any]:
    """What was spent, by study in the order of first charges, in all, and what is left, for JSON."""
    studies: dict[str, dict[str, Any]] = {}
    for each in ledger.charges():
        study = studies.setdefault(
            each.study, {"name": each.name, "hash": each.study, "epsilon": 0.0, "delta": 0.0, "runs": []}
        )
        study["epsilon"] += each.epsilon
        study["delta"] += each.delta
        own = asdict(each)
        study["runs"].append({key: own[key] for key in own if key not in ("study", "name")})
    return {
        "site": site,
        "limit": ledger.limit,
        "spent": ledger.spent,
        "left": ledger.left,
        "delta": math.fsum(study["delta"] for study in studies.values()),
        "studies": list(studies.values()),
    }


def budget_text(table: Mapping[str, Any]) -> str:
    """The same in lines for people."""
    lines = [
        f"{visible(study['name'])} {study['hash'][:12]}: epsilon {study['epsilon']:g}, "
        f"delta {study['delta']:g}, {len(study['runs'])} run{'s' * (len(study['runs']) != 1)}"
        for study in table["studies"]
    ]
    spent = f"in all: epsilon {table['spent']:g}, delta {table['delta']:g}"
    if table["limit"] is None:
        return "\n".join([*lines, f"{spent}; no limit ([policy] epsilon_limit in site.toml)"])
    return "\n".join([*lines, f"{spent}; limit {table['limit']:g}, left {table['left']:g}"])
