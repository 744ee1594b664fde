"""Results of the checks: one row each, with a remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Finding", "Obstacle", "Verdict", "findings_table", "fine", "problem", "warning"]


class Verdict(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARNING = "warning"  # a run works, but degraded or not for long
    PROBLEM = "problem"  # a run does not work


_STYLE = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One row."""

    check: str  # what was checked, in a word or two
    verdict: Verdict
    found: str
    advice: str = ""  # remedy in one sentence, empty if none is needed


class Obstacle(Exception):  # noqa: N818 - reported as a finding
    """Ends a series of checks; ``found`` and ``advice`` as of `Finding`."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.found = found
        self.advice = advice


def fine(check: str, found: str) -> Finding:
    """A row that needs no action."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """A row that does not prevent a run."""
    return Finding(check, Verdict.WARNING, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """A row that prevents a run."""
    return Finding(check, Verdict.PROBLEM, found, advice)


def findings_table(findings: Iterable[Finding]) -> Table:
    """Rows for a terminal: verdict, check, and what was found above the advice."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.found)
        if finding.advice:
            text.append(f"\n→ {finding.advice}", style=_STYLE[finding.verdict])
        table.add_row(Text(finding.verdict.value, style=_STYLE[finding.verdict]), finding.check, text)
    return table
