"""Pick one of a patient's series by the site's rule, and say why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from client.ingest.report import Outcome, SeriesEntry
from client.ingest.volume import Plane
from mmare.errors import InputError

__all__ = ["Choice", "Prefer", "SeriesRule", "choose_each", "choose_series"]


class Prefer(StrEnum):
    """What decides between series that fit the rule."""

    MOST_SLICES = "most-slices"
    THINNEST = "thinnest"


@dataclass(frozen=True)
class SeriesRule:
    """Which series a modality is taken from; None means any.

    Raises:
        InputError: If ``description`` is no regular expression.
    """

    plane: Plane | None = None
    description: str | None = None  # regular expression, searched in any case
    prefer: Prefer = Prefer.MOST_SLICES  # ties: the other measure, series number, name
    modality: str | None = None  # DICOM modality, such as CT or MR

    def __post_init__(self) -> None:
        try:
            re.compile(self.description or "")
        except re.error as error:
            message = f"series rule: {self.description!r} is not a regular expression: {error}"
            raise InputError(message) from error


@dataclass(frozen=True)
class Choice:
    """What a rule decided."""

    entry: SeriesEntry | None  # None if no series fits
    why: str  # one sentence
    passed_over: tuple[tuple[str, str], ...]  # output name and reason of every other converted series


def choose_series(entries: Sequence[SeriesEntry], rule: SeriesRule) -> Choice:
    """Pick one series of one patient; refused entries are ignored.

    Raises:
        InputError: If the entries are of several patients.
    """
    usable = [entry for entry in entries if entry.outcome is Outcome.CONVERTED]
    if len({entry.patient for entry in usable}) > 1:
        raise InputError("the folder holds several patients; convert each patient's folder separately")
    misfits = {entry.identity: misfit for entry in usable if (misfit := _misfit(entry, rule))}
    fitting = sorted(
        (entry for entry in usable if entry.identity not in misfits), key=lambda e: _rank(e, rule.prefer)
    )
    passed_over = [
        (entry.output or "", misfits[entry.identity]) for entry in usable if entry.identity in misfits
    ]
    if not fitting:
        why = "No usable series." if not usable else f"None of {len(usable)} usable series fits the rule."
        return Choice(None, why, tuple(passed_over))
    best, others = fitting[0], fitting[1:]
    passed_over += [(entry.output or "", _comparison(best, entry, rule.prefer)) for entry in others]
    if not others:
        why = "The only usable series." if not misfits else "The only usable series that fits the rule."
    else:
        why = f"{_measures(best)}: {_SUPERLATIVE[rule.prefer]} of {len(fitting)} that fit."
    return Choice(best, why, tuple(passed_over))


def choose_each(entries: Sequence[SeriesEntry], rules: Mapping[str, SeriesRule]) -> dict[str, Choice]:
    """Pick a series of one patient for each modality, in the order of ``rules``; none is used twice."""
    left = list(entries)
    choices = {}
    for modality, rule in rules.items():
        choice = choose_series(left, rule)
        choices[modality] = choice
        left = [entry for entry in left if choice.entry is None or entry.identity != choice.entry.identity]
    return choices


_SUPERLATIVE = {Prefer.MOST_SLICES: "the most slices", Prefer.THINNEST: "the thinnest slices"}


def _misfit(entry: SeriesEntry, rule: SeriesRule) -> str:
    if rule.modality is not None and entry.modality != rule.modality:
        return f"modality {entry.modality}, wanted {rule.modality}"
    if rule.plane is not None and entry.plane is not rule.plane:
        return f"{entry.plane}, wanted {rule.plane}"
    if rule.description is not None and not re.search(rule.description, entry.description, re.IGNORECASE):
        return f"description does not match {rule.description!r}"
    return ""


def _slices(entry: SeriesEntry) -> tuple[int, float]:
    return (entry.size or (0, 0, 0))[2], (entry.spacing_mm or (0.0, 0.0, 0.0))[2]


def _rank(entry: SeriesEntry, prefer: Prefer) -> tuple[float, float, int, str]:
    n_slices, gap_mm = _slices(entry)
    first, second = (-n_slices, gap_mm) if prefer is Prefer.MOST_SLICES else (gap_mm, -n_slices)
    return first, second, entry.series_number, entry.output or ""


def _measures(entry: SeriesEntry) -> str:
    n_slices, gap_mm = _slices(entry)
    return f"{n_slices} slices of {gap_mm:.3g} mm"


def _comparison(best: SeriesEntry, entry: SeriesEntry, prefer: Prefer) -> str:
    if _rank(best, prefer)[:2] == _rank(entry, prefer)[:2]:
        return f"{_measures(entry)} as well, but a later series number or name"
    return f"{_measures(entry)} against {_measures(best)}"
