"""What a check found: one row each, with what to do about it."""

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
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"  # a run works, but not as well, or not for long
    PROBLEM = "problem"  # a run does not work


_STYLE = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One row.

    Args:
        check: What was looked at, in a word or two.
        verdict: How it ended.
        found: What is there.
        advice: What to do about it, one sentence; empty where nothing is to be done.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


class Obstacle(Exception):  # noqa: N818 - it is what stands in the way, and is told as a finding
    """What keeps a check from going on.

    Args:
        found: What is there.
        advice: What to do about it.
    """

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.found = found
        self.advice = advice


def fine(check: str, found: str) -> Finding:
    """A row that asks for nothing."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """A row that a run survives."""
    return Finding(check, Verdict.WARNING, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """A row that keeps a run from working."""
    return Finding(check, Verdict.PROBLEM, found, advice)


def findings_table(findings: Iterable[Finding]) -> Table:
    """Rows for a terminal: verdict, check, and below what was found what to do about it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        said = Text(finding.found)
        if finding.advice:
            said.append(f"\n→ {finding.advice}", style=_STYLE[finding.verdict])
        table.add_row(Text(finding.verdict.value, style=_STYLE[finding.verdict]), finding.check, said)
    return table
