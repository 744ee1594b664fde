"""Which columns of a table make which modality: by name, pattern, prefix or a TOML file.

[modality.rna]             # by columns or prefix; the other keys are for all of its columns
prefix = "ENSG"
log = true                 # log(1 + x)
[modality.exam]
columns = ["age", "sex", "lab_*"]
[column.sex]               # or a pattern, such as [column."lab_*"]
categorical = true         # or levels = ["f", "m"], their order
[column.age]
missing = ["-9"]
lowest = 0
highest = 120              # values beyond are clipped
blanks = true              # an indicator of blanks, even if no cell is blank here
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmare.errors import DataError, StudyError
from mmare.study.encoding import Column, Encoding
from mmare.study.tables import TableError, from_table, read_toml
from sites.numbers import cells_of, not_available, parse
from sites.tabular import TextTable, did_you_mean, finite_number, listed, unknown_column

__all__ = [
    "ColumnsFile",
    "Group",
    "Treatment",
    "choose_columns",
    "is_skewed",
    "learn",
    "level_notes",
    "load_columns",
    "log_notes",
]

_WILDCARDS = frozenset("*?[")
# Without blanks: words that many tables have where nothing is known, and others as a finding.
_DOUBTFUL = frozenset(
    {
        "-",
        "--",
        "---",
        ".",
        "..",
        "?",
        "??",
        "none",
        "nil",
        "empty",
        "blank",
        "missing",
        "unknown",
        "unk",
        "n.d.",
        "nd",
    }
    | {
        "notavailable",
        "notapplicable",
        "notreported",
        "notdone",
        "notknown",
        "undefined",
        "keineangabe",
        "k.a.",
    }
)
_FEW_LEVELS = 10  # numbers as names of groups, such as grades and stages
_ENOUGH, _SKEWED = 50, 2.0  # numbers of a column, and skewness (of an exponential distribution)
_NAMED = 3  # columns in a sentence


@dataclass(frozen=True)
class Treatment:
    """What is done with a column; ``None`` leaves it to the modality, then to the default."""

    categorical: bool | None = None
    levels: tuple[str, ...] | None = None
    missing: tuple[str, ...] | None = None
    lowest: float | None = None
    highest: float | None = None
    log: bool | None = None
    blanks: bool | None = None

    def over(self, other: Treatment) -> Treatment:
        """This one, and the other where this one says nothing."""
        given = {part.name: getattr(self, part.name) for part in fields(Treatment)}
        return replace(other, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Group(Treatment):
    """The columns of a modality."""

    columns: tuple[str, ...] = ()  # names, or patterns with * and ?
    prefix: str | None = None


@dataclass(frozen=True)
class ColumnsFile:
    """The content of a ``--columns`` file."""

    modality: Mapping[str, Group] = field(default_factory=dict)
    column: Mapping[str, Treatment] = field(default_factory=dict)  # by name or pattern; the last match wins


def load_columns(path: Path) -> ColumnsFile:
    """Read a ``--columns`` file.

    Raises:
        StudyError: If it is missing, not TOML, or has an unknown key or a value of the wrong kind.
    """
    try:
        return from_table(ColumnsFile, read_toml(path, "columns"), "the columns file")
    except TableError as error:
        text = str(error)
        raise StudyError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def choose_columns(table: TextTable, group: Group, reserved: Collection[str]) -> list[str]:
    """The columns of a modality, in the order of its names, those of a pattern in the order of the table.

    A pattern leaves out ``reserved`` columns: id, site, label and split.

    Raises:
        DataError: If a name is no column, or a pattern or prefix matches none.
    """
    names = [str(name) for name in table.frame.columns]
    known = set(names)
    chosen: dict[str, None] = {}
    for wanted in group.columns:
        if wanted in known:
            chosen[wanted] = None
        elif _WILDCARDS & set(wanted):
            found = [name for name in names if name not in reserved and fnmatchcase(name, wanted)]
            if not found:
                raise DataError(f"{table.source}: no column matches {wanted!r}")
            chosen |= dict.fromkeys(found)
        else:
            raise unknown_column(table.source, wanted, names)
    if group.prefix is not None:
        found = [name for name in names if name not in reserved and name.startswith(group.prefix)]
        if not found:
            raise DataError(f"{table.source}: no column begins with {group.prefix!r}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def learn(
    table: TextTable,
    groups: Mapping[str, Sequence[str]],
    spec: ColumnsFile = ColumnsFile(),
    categorical: Collection[str] = (),
    missing: Mapping[str, Sequence[str]] = {},
    decimal: str | None = None,
) -> Encoding:
    """The encoding of chosen columns: levels in sorted order, an indicator where a present row has a blank.

    Args:
        missing: Cells that mean missing by column, besides those of the file.
        decimal: Take the logarithm of skewed columns (`is_skewed`) whose numbers are written so, unless the
            file says of a column whether to.

    Raises:
        StudyError: If the file's treatments contradict each other or name a column of no modality.
        DataError: If a modality is blank in every row.
    """
    _check_treatments(table, groups, spec)
    patterns = [name for name in spec.column if _WILDCARDS & set(name)]
    encoding = {}
    for name, group in groups.items():
        base = spec.modality.get(name, Group())
        found: list[tuple[Column, NDArray[np.bool_]]] = []  # not the cells: a wide table's words fill memory
        for given in group:
            treatment = _treatment(given, base, spec, patterns)
            column = _column(given, treatment, categorical)
            codes = tuple(dict.fromkeys((*column.missing, *missing.get(given, ()))))
            held = cells_of(table, given, codes, column.levels or ())
            levels = tuple(sorted(held.words)) if column.levels == () else column.levels
            log = column.log
            if decimal is not None and levels is None and treatment.log is None:
                numbers, problems = parse(table, given, held, decimal)
                log = not problems and is_skewed(np.clip(numbers, column.lowest, column.highest))
            found.append((replace(column, levels=levels, missing=codes, log=log), held.present))
        present = np.any([held for _, held in found], axis=0)  # (N,)
        if not present.any():
            raise DataError(f"{table.source}: the columns {listed(group)} are blank in every row")
        encoding[name] = tuple(
            replace(column, blanks=column.blanks or bool((present & ~held).any())) for column, held in found
        )
    return Encoding(encoding)


def is_skewed(numbers: NDArray[np.float64]) -> bool:
    """Whether numbers ``(N,)``, NaN where blank, have a long upper tail that log(1 + x) takes away.

    At least 50, none negative, of a skewness above 2, which at most halves in size with the logarithm.

    Example:
        >>> is_skewed(np.exp(np.linspace(0, 9, 99))), is_skewed(np.linspace(0, 9, 99))
        (True, False)
    """
    known = numbers[~np.isnan(numbers)]
    if len(known) < _ENOUGH or known.min() < 0:
        return False
    before, after = _skewness(known), abs(_skewness(np.log1p(known)))
    return before > _SKEWED and after < before / 2


def _skewness(numbers: NDArray[np.float64]) -> float:
    centred = numbers - numbers.mean()
    deviation = centred.std()
    return float((centred**3).mean() / deviation**3) if deviation > 0 else 0.0


def log_notes(encoding: Encoding, spec: ColumnsFile, groups: Collection[str]) -> list[str]:
    """Which columns of groups became logarithms unasked."""
    notes = []
    for name in groups:
        logs = [column.name for column in encoding.modalities[name] if column.log]
        if logs and spec.modality.get(name, Group()).log is None:
            more = f" and {len(logs) - _NAMED} more columns" if len(logs) > _NAMED else ""
            notes.append(
                f"{name}: logarithms of {', '.join(logs[:_NAMED])}{more}, because of long upper tails "
                "(--keep-skewed, or log = false in --columns, leaves them as they are)"
            )
    return notes


def level_notes(table: TextTable, encoding: Encoding, missing: Mapping[str, Sequence[str]] = {}) -> list[str]:
    """Sentences about words of a table that its user may have meant otherwise.

    Args:
        missing: Cells that mean missing by column, as the user named them.
    """
    notes = []
    for columns in encoding.modalities.values():
        for column in columns:
            if column.levels is None or column.name not in table.frame.columns:
                continue
            found = table.frame[column.name].value_counts(sort=False)
            spelt = {str(word): int(n) for word, n in found.items()}
            named = (*column.levels, *column.missing, *missing.get(column.name, ()))
            gone = {word: n for word, n in spelt.items() if not_available(word) and word not in named}
            if gone:
                counts = ", ".join(f"{word!r} in {n}" for word, n in gone.items())
                notes.append(
                    f"{column.name}: {counts} rows taken as blank (levels in --columns keep such a word)"
                )
            notes += (
                _doubtful(column.name, column.levels, spelt)
                + _alike(column.name, column.levels)
                + _measured(column.name, column.levels)
            )
    return notes


def _doubtful(name: str, levels: Sequence[str], spelt: Mapping[str, int]) -> list[str]:
    words = ", ".join(f"{level!r} in {spelt.get(level, 0)}" for level in levels if _plain(level) in _DOUBTFUL)
    if not words:
        return []
    return [f"{name}: {words} rows are levels; if nothing is known there, name them in --missing-values"]


def _alike(name: str, levels: Sequence[str]) -> list[str]:
    alike: dict[str, list[str]] = {}
    for level in levels:
        alike.setdefault(_plain(level), []).append(level)
    same = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if not same:
        return []
    return [
        f"{name}: {'; '.join(same)} differ in case, blanks or accents only and are levels of their own; "
        "if they mean the same, write them alike in the table"
    ]


def _measured(name: str, levels: Sequence[str]) -> list[str]:
    if len(levels) <= _FEW_LEVELS or any(finite_number(level.replace(",", ".")) is None for level in levels):
        return []
    comma = ", with --decimal ," if any("," in level for level in levels) else ""
    return [
        f"{name}: {len(levels)} levels that are all numbers; if it is a measurement, leave it out of "
        f"--categorical{comma}"
    ]


def _plain(level: str) -> str:
    letters = unicodedata.normalize("NFKD", level.casefold())
    kept = (letter for letter in letters if not unicodedata.combining(letter) and not letter.isspace())
    return "".join(kept)


def _treatment(name: str, base: Treatment, spec: ColumnsFile, patterns: Sequence[str]) -> Treatment:
    """Of one column: its modality's, then of patterns, then its own."""
    treatment = base.over(Treatment())
    for pattern in patterns:
        if fnmatchcase(name, pattern):
            treatment = spec.column[pattern].over(treatment)
    return spec.column.get(name, Treatment()).over(treatment)


def _column(name: str, treatment: Treatment, categorical: Collection[str]) -> Column:
    """One column with its treatment; levels are ``()`` where they are still to be found."""
    if len(set(treatment.levels or ())) < len(treatment.levels or ()):
        raise StudyError(f"column {name!r} has a level twice, expected each once")
    words = name in categorical or treatment.categorical or treatment.levels is not None
    numeric = (treatment.lowest, treatment.highest, treatment.log or None)
    if words and any(value is not None for value in numeric):
        raise StudyError(f"column {name!r} holds words, expected no lowest, highest or log for it")
    if None not in numeric[:2] and treatment.lowest > treatment.highest:  # type: ignore[operator] # both given
        raise StudyError(f"column {name!r}: lowest is {treatment.lowest:g}, above highest")
    return Column(
        name,
        (treatment.levels or ()) if words else None,
        bool(treatment.blanks),
        treatment.missing or (),
        treatment.lowest,
        treatment.highest,
        bool(treatment.log),
    )


def _check_treatments(table: TextTable, groups: Mapping[str, Sequence[str]], spec: ColumnsFile) -> None:
    grouped = {column for group in groups.values() for column in group}
    for name in spec.column:
        used = name in grouped or (_WILDCARDS & set(name) and any(fnmatchcase(c, name) for c in grouped))
        if not used:
            raise StudyError(
                f"{table.source}: [column.{name!r}] is in no modality{did_you_mean(name, sorted(grouped))}"
            )
