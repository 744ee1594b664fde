"""The tables of GRID.toml as frozen dataclasses, and the cells that follow from them.

A cell is one run: data x missing x model x ablation x strategy x mode x seed. Its id is a hash of exactly
what determines its result: labels can be reworded and data can be moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Final

from mmare.errors import InputError
from mmare.study.choices import Mode

__all__ = [
    "KEYS",
    "Cell",
    "DataChoice",
    "Grid",
    "GridHead",
    "MissingChoice",
    "ModelChoice",
    "Variant",
    "matches",
    "select",
]

KEYS: Final = ("data", "task", "mechanism", "rate", "model", "label", "ablation", "strategy", "mode", "seed")
_ID_DIGITS = 12


@dataclass(frozen=True)
class GridHead:
    """``[grid]``: what holds for all cells."""

    name: str  # a folder holds results of one grid
    title: str = ""  # of the report
    tables: tuple[str, ...] = ()  # of the thesis, whose layout the report follows
    seeds: tuple[int, ...] = (0,)  # of split, amputation and training
    modes: tuple[Mode, ...] = (Mode.FEDERATED,)
    subsets: bool = False  # whether every subset of modalities is tested, too
    references: bool = False  # whether simple models on the same splits are tested, too
    set: tuple[str, ...] = ()  # section.key=value
    skip: tuple[Mapping[str, Any], ...] = ()  # cells that match all keys of an entry are left out


@dataclass(frozen=True)
class DataChoice:
    """``[[data]]``: data set and task."""

    name: str
    prepare: tuple[str, ...]  # arguments of mmare-sim prepare; {name} stands for a source
    task: str = ""  # what is predicted, for the report


@dataclass(frozen=True)
class MissingChoice:
    """``[[missing]]``: what is removed; by default nothing."""

    mechanism: str | None = None  # --mechanism of mmare-sim prepare
    rate: float | None = None  # --missing-rate
    arguments: tuple[str, ...] = ()  # others, such as --pattern exclusive

    @property
    def flags(self) -> tuple[str, ...]:
        """Arguments of ``mmare-sim prepare``."""
        mechanism = () if self.mechanism is None else ("--mechanism", self.mechanism)
        rate = () if self.rate is None else ("--missing-rate", f"{self.rate:g}")
        return (*mechanism, *rate, *self.arguments)


@dataclass(frozen=True)
class ModelChoice:
    """``[[model]]``: a key of the registry, a label (by default the key), and settings."""

    name: str
    label: str = ""
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """``[[ablation]]`` or ``[[strategy]]``: a label and settings."""

    name: str = ""
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    data: DataChoice
    missing: MissingChoice
    model: ModelChoice
    ablation: Variant
    strategy: Variant
    mode: Mode
    seed: int
    subsets: bool = False
    common: tuple[str, ...] = ()
    references: bool = False

    @property
    def prepare(self) -> tuple[str, ...]:
        """Arguments of ``mmare-sim prepare`` except ``--out``, with sources unresolved."""
        return (*self.data.prepare, *self.missing.flags, "--seed", str(self.seed))

    @property
    def assignments(self) -> tuple[str, ...]:
        """``section.key=value`` that override the prepared study; later ones win."""
        named = any(text.partition("=")[0].strip() == "federation.strategy" for text in self.strategy.set)
        strategy = () if named or not self.strategy.name else (f"federation.strategy={self.strategy.name}",)
        return (
            *self.common,
            f"model.name={self.model.name}",
            *self.model.set,
            *self.ablation.set,
            *strategy,
            *self.strategy.set,
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The cell in a line of results."""
        return {
            "data": self.data.name,
            "task": self.data.task,
            "mechanism": self.missing.mechanism,
            "rate": self.missing.rate,
            "missing_arguments": list(self.missing.arguments),
            "model": self.model.name,
            "label": self.model.label or self.model.name,
            "ablation": self.ablation.name,
            "strategy": self.strategy.name or "fedavg",
            "mode": self.mode.value,
            "seed": self.seed,
            "set": list(self.assignments),
        }

    @cached_property
    def id(self) -> str:
        """Hash of everything that determines the result."""
        choices = {"prepare": self.prepare, "set": self.assignments, "mode": self.mode.value}
        asked = {"references": True} if self.references else {}  # cells without keep their ids
        return _hash({**choices, "subsets": self.subsets, **asked})

    @cached_property
    def federation(self) -> str:
        """Hash of what the federation folder is prepared from."""
        return _hash({"prepare": self.prepare})

    @property
    def study_key(self) -> tuple[Any, ...]:
        """What the study depends on, missingness aside: for cells with equal keys one check is enough."""
        return (self.data.prepare, self.assignments, self.mode)

    @property
    def words(self) -> str:
        """The cell in words, for people."""
        found = self.settings
        rate = None if self.missing.rate is None else f"{self.missing.mechanism} {self.missing.rate:g}"
        parts = [
            found["data"],
            rate or self.missing.mechanism,
            " ".join(self.missing.arguments),
            found["label"],
            found["ablation"],
            self.strategy.name,
            found["mode"],
            f"seed {self.seed}",
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Grid:
    """A grid and the text it was read from."""

    head: GridHead
    data: tuple[DataChoice, ...]
    model: tuple[ModelChoice, ...]
    missing: tuple[MissingChoice, ...] = (MissingChoice(),)
    ablation: tuple[Variant, ...] = (Variant(),)
    strategy: tuple[Variant, ...] = (Variant(),)
    sources: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, seed by seed: a grid stopped early has complete tables of fewer seeds."""
        head = self.head
        axes = product(
            head.seeds, self.data, self.missing, self.model, self.ablation, self.strategy, head.modes
        )
        cells = (
            Cell(
                *(data, missing, model, ablation, strategy, mode, seed, head.subsets, head.set),
                references=head.references and mode is not Mode.LOCAL,  # which is of many models
            )
            for seed, data, missing, model, ablation, strategy, mode in axes
        )
        return tuple(cell for cell in cells if not any(matches(cell, entry) for entry in head.skip))


def select(cells: Sequence[Cell], only: Sequence[str]) -> tuple[Cell, ...]:
    """Select cells by ``KEY=VALUE``: any of the values of a key, all of the keys.

    Raises:
        InputError: If a key is no setting, or no cell has the value.
    """
    wanted: dict[str, list[str]] = {}
    for word in only:
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or key not in KEYS:
            raise InputError(f"--only is {word!r}, expected KEY=VALUE with one of {', '.join(KEYS)}")
        if not any(_same(cell.settings[key], value) for cell in cells):
            known = dict.fromkeys(_written(cell.settings[key]) for cell in cells)
            raise InputError(f"--only is {word!r}, expected one of {', '.join(known)}")
        wanted.setdefault(key, []).append(value)
    return tuple(
        cell
        for cell in cells
        if all(any(_same(cell.settings[key], value) for value in found) for key, found in wanted.items())
    )


def matches(cell: Cell, entry: Mapping[str, Any]) -> bool:
    """Whether a cell has all settings of an entry."""
    return all(cell.settings[key] == value for key, value in entry.items())


def _same(found: object, wanted: str) -> bool:
    if isinstance(found, float):
        try:
            return found == float(wanted)
        except ValueError:
            return False
    return _written(found) == wanted


def _written(value: object) -> str:
    """A setting as typed on the command line."""
    return "none" if value is None else str(value)


def _hash(settings: Mapping[str, Any]) -> str:
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_ID_DIGITS]
