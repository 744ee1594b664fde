"""What a grid is: GRID.toml as frozen dataclasses, and the cells that come of it.

A cell is one run: data x missing x model x ablation x strategy x mode x seed. Its id is a hash of everything
that determines its result, and of nothing else: labels can be reworded and data can lie elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Final

from mmare.errors import InputError
from mmare.tables import TableError, check_keys, from_table, read_toml
from server.rounds import Mode

__all__ = [
    "KEYS",
    "Cell",
    "DataChoice",
    "Grid",
    "GridHead",
    "MissingChoice",
    "ModelChoice",
    "Variant",
    "find_grid",
    "load_grid",
    "ready_grids",
    "resolve",
    "select",
]

READY: Final = Path(__file__).parent / "grids"
DATA_ROOT: Final = "MMARE_DATA"  # environment variable, and a name that every grid may use
KEYS: Final = ("data", "task", "mechanism", "rate", "model", "label", "ablation", "strategy", "mode", "seed")
_PLACE = re.compile(r"\{(\w+)\}")
_ID_DIGITS = 12


@dataclass(frozen=True)
class GridHead:
    """``[grid]``: what holds for all cells.

    Args:
        name: Of the grid; results in a folder are of one grid.
        title: Of the report.
        tables: Tables of the thesis whose layout the report follows.
        seeds: Of split, amputation and training.
        modes: Where the rows that train lie.
        subsets: Whether every subset of modalities is tested, too.
        set: ``section.key=value`` for all cells.
        skip: Cells that match all keys of an entry are left out.
    """

    name: str
    title: str = ""
    tables: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    modes: tuple[Mode, ...] = (Mode.FEDERATED,)
    subsets: bool = False
    set: tuple[str, ...] = ()
    skip: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class DataChoice:
    """``[[data]]``: data set and task.

    Args:
        name: Label.
        prepare: Arguments of ``mmare-sim prepare``, where ``{name}`` stands for a source.
        task: What is predicted, for the report.
    """

    name: str
    prepare: tuple[str, ...]
    task: str = ""


@dataclass(frozen=True)
class MissingChoice:
    """``[[missing]]``: what is taken away; by default nothing.

    Args:
        mechanism: ``--mechanism`` of ``mmare-sim prepare``.
        rate: ``--missing-rate``.
        arguments: Further ones, such as ``--pattern exclusive``.
    """

    mechanism: str | None = None
    rate: float | None = None
    arguments: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """As `mmare-sim prepare` takes them."""
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

    @property
    def prepare(self) -> tuple[str, ...]:
        """Arguments of ``mmare-sim prepare`` but ``--out``, sources as written."""
        return (*self.data.prepare, *self.missing.flags, "--seed", str(self.seed))

    @property
    def assignments(self) -> tuple[str, ...]:
        """``section.key=value`` over the prepared study, later ones over earlier ones."""
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
        """What a line of results says of the cell."""
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
        return _hash(
            {
                "prepare": self.prepare,
                "set": self.assignments,
                "mode": self.mode.value,
                "subsets": self.subsets,
            }
        )

    @cached_property
    def federation(self) -> str:
        """Hash of what the federation folder is prepared from."""
        return _hash({"prepare": self.prepare})

    @property
    def study_key(self) -> tuple[Any, ...]:
        """What the study depends on, apart from who lacks what: equal where one check does for both."""
        return (self.data.prepare, self.assignments, self.mode)

    @property
    def words(self) -> str:
        """The cell in a few words."""
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
    """A grid and the text that it was read from."""

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
        """All cells, seed by seed, so that a grid that is stopped early has whole tables of fewer seeds."""
        head = self.head
        axes = product(
            head.seeds, self.data, self.missing, self.model, self.ablation, self.strategy, head.modes
        )
        cells = (
            Cell(data, missing, model, ablation, strategy, mode, seed, head.subsets, head.set)
            for seed, data, missing, model, ablation, strategy, mode in axes
        )
        return tuple(cell for cell in cells if not any(_matches(cell, entry) for entry in head.skip))


def ready_grids() -> dict[str, Path]:
    """The grids that come with the program, by name."""
    return {path.stem: path for path in sorted(READY.glob("*.toml"))}


def find_grid(name: str) -> Path:
    """A path, or the bare name of a grid that comes with the program.

    Raises:
        InputError: If there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    ready = ready_grids()
    if name in ready:
        return ready[name]
    raise InputError(f"{name}: no such grid file, and the ready ones are {', '.join(ready)}")


def load_grid(path: Path) -> Grid:
    """Read GRID.toml.

    Raises:
        InputError: If it is missing, a key is unknown or missing, a value is of the wrong kind, a source has
            no name, an exclusion matches nothing, or two cells are the same.

    Example:
        >>> len(load_grid(find_grid("mmist-vital12")).cells) > 100
        True
    """
    try:
        grid = _from_tables(read_toml(path, "grid"), path.read_text(encoding="utf-8-sig"))
    except TableError as error:
        place = "" if str(error).startswith(str(path)) else f"{path}: "
        raise InputError(f"{place}{error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return grid


def select(cells: Sequence[Cell], only: Sequence[str]) -> tuple[Cell, ...]:
    """The cells that ``KEY=VALUE`` words ask for: of one key any value, of different keys all.

    Raises:
        InputError: If a word names no setting, or a value that no cell has.
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


def resolve(words: Sequence[str], sources: Mapping[str, str]) -> list[str]:
    """Words with ``{name}`` replaced by where the source lies on this machine.

    ``{MMARE_DATA}`` is the environment variable of that name, by default ``../shared/data``.

    Raises:
        InputError: If a name is no source.

    Example:
        >>> resolve(["--source", "{ixi}/all"], {"ixi": "/data/IXI"})
        ['--source', '/data/IXI/all']
    """
    root = os.environ.get(DATA_ROOT) or str(Path("../shared/data"))

    def place(match: re.Match[str]) -> str:
        name = match[1]
        if name == DATA_ROOT:
            return root
        if name not in sources:
            known = ", ".join([*sources, DATA_ROOT])
            raise InputError(f"prepare names the source {name!r}, expected one of {known} ([sources])")
        return _PLACE.sub(lambda inner: root if inner[1] == DATA_ROOT else inner[0], sources[name])

    return [_PLACE.sub(place, word) for word in words]


def _from_tables(content: Mapping[str, Any], text: str) -> Grid:
    kinds: dict[str, Any] = {
        "data": DataChoice,
        "model": ModelChoice,
        "missing": MissingChoice,
        "ablation": Variant,
        "strategy": Variant,
    }
    check_keys(content, {"grid", "sources", *kinds}, "the file")
    for name in ("grid", "data", "model"):
        if not content.get(name):
            raise TableError(f"lacks [{name}]" if name == "grid" else f"lacks [[{name}]]")
    lists = {name: tuple(_entries(content, name, kind)) for name, kind in kinds.items() if name in content}
    if not isinstance(content["grid"], Mapping):
        raise TableError("[grid] must be a table")
    head = from_table(GridHead, content["grid"], "[grid]")
    sources = content.get("sources", {})
    if not isinstance(sources, Mapping) or not all(isinstance(value, str) for value in sources.values()):
        raise TableError("[sources] must be a table of texts")
    grid = Grid(head, **lists, sources=sources, text=text)
    _check(grid)
    return grid


def _entries(content: Mapping[str, Any], name: str, kind: type[Any]) -> Iterator[Any]:
    entries = content[name]
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise TableError(f"{name} must be [[{name}]] tables")
    for entry in entries:
        yield from_table(kind, entry, f"[[{name}]]")


def _check(grid: Grid) -> None:
    """Refuse what would quietly give other cells than were meant."""
    if not grid.head.name:
        raise InputError("[grid] name is empty")
    if not grid.head.seeds or not grid.head.modes:
        raise InputError("[grid] seeds and modes must name at least one each")
    unskipped = Grid(
        GridHead(grid.head.name, seeds=grid.head.seeds[:1], modes=grid.head.modes),
        *(grid.data, grid.model, grid.missing, grid.ablation, grid.strategy),
    )
    for number, entry in enumerate(grid.head.skip, start=1):
        for key in entry:
            if key not in KEYS:
                raise InputError(
                    f"[grid] skip, entry {number}: unknown key {key!r}; expected one of {', '.join(KEYS)}"
                )
        seedless = {key: value for key, value in entry.items() if key != "seed"}
        if not entry or not any(_matches(cell, seedless) for cell in unskipped.cells):
            raise InputError(f"[grid] skip, entry {number} matches no cell: {dict(entry)}")
    if not grid.cells:
        raise InputError("no cell is left")
    seen: dict[str, Cell] = {}
    for cell in grid.cells:
        resolve(cell.prepare, grid.sources)
        if cell.id in seen:
            raise InputError(f"two cells have the same settings: {seen[cell.id].words}, and {cell.words}")
        seen[cell.id] = cell


def _matches(cell: Cell, entry: Mapping[str, Any]) -> bool:
    return all(cell.settings[key] == value for key, value in entry.items())


def _same(found: object, wanted: str) -> bool:
    if isinstance(found, float):
        try:
            return found == float(wanted)
        except ValueError:
            return False
    return _written(found) == wanted


def _written(value: object) -> str:
    """A setting as a person types it."""
    return "none" if value is None else str(value)


def _hash(settings: Mapping[str, Any]) -> str:
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_ID_DIGITS]
