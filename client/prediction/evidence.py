"""How the model did on test patients with the same examinations, and with one more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mmare.package.package import Package

__all__ = ["Evidence", "evidence_of", "one_more"]

_FEWEST: Final = 20  # test patients with the one more: resampling few gives intervals that are too narrow


@dataclass(frozen=True)
class Evidence:
    """The AUC of the run's test on patients with one presence pattern, with its 95 % interval."""

    patients: int
    auc: float
    low: float
    high: float


def evidence_of(package: Package, pattern: str) -> Evidence | None:
    """Of a presence pattern; None where the package tells no AUC with an interval of it."""
    metrics = package.results["metrics"].get("test", {}).get("patterns", {}).get(pattern, {})
    ends = (metrics.get("ci95") or {}).get("auc")
    if metrics.get("auc") is None or ends is None:
        return None
    return Evidence(metrics["n"], metrics["auc"], *ends)


def one_more(package: Package, pattern: str) -> tuple[str, Evidence] | None:
    """The absent modality with which the model did best, and how, on other test patients.

    None unless the test supports it: the whole interval is above the AUC of patients with ``pattern``.
    """
    own = evidence_of(package, pattern)
    if own is None:
        return None
    found = []
    for slot, modality in enumerate(package.study.modalities):
        more = (
            evidence_of(package, f"{pattern[:slot]}1{pattern[slot + 1 :]}") if pattern[slot] == "0" else None
        )
        if more is not None and more.patients >= _FEWEST and more.low > own.auc:
            found.append((more.auc, modality.name, more))
    return max(found)[1:] if found else None
