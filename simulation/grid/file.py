"""Find, read and validate GRID.toml."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mmare.errors import InputError
from mmare.study.tables import TableError, check_keys, from_table, read_toml
from simulation.grid.plan import (
    KEYS,
    Cell,
    DataChoice,
    Grid,
    GridHead,
    MissingChoice,
    ModelChoice,
    Variant,
    matches,
)

__all__ = ["find_grid", "load_grid", "ready_grids", "resolve"]

READY: Final = Path(__file__).parents[1] / "grids"
DATA_ROOT: Final = "MMARE_DATA"  # environment variable; also a source of every grid
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def ready_grids() -> dict[str, Path]:
    """The grids that come with the program, by name."""
    return {path.stem: path for path in sorted(READY.glob("*.toml"))}


def find_grid(name: str) -> Path:
    """Find a grid by path, or by name if it comes with the program.

    Raises:
        InputError: If there is none.
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
        InputError: If it is missing, a key is unknown or missing, a value has the wrong type, a source is
            unknown, an entry of ``skip`` matches no cell, or two cells are the same.

    Example:
        >>> len(load_grid(find_grid("mmist-vital12")).cells) > 100
        True
    """
    try:
        return _from_tables(read_toml(path, "grid"), path.read_text(encoding="utf-8-sig"))
    except TableError as error:
        place = "" if str(error).startswith(str(path)) else f"{path}: "
        raise InputError(f"{place}{error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def resolve(words: Sequence[str], sources: Mapping[str, str]) -> list[str]:
    """Replace each ``{name}`` by the path of that source on this machine.

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
        return _PLACEHOLDER.sub(lambda inner: root if inner[1] == DATA_ROOT else inner[0], sources[name])

    return [_PLACEHOLDER.sub(place, word) for word in words]


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
    """Refuse what would silently give other cells than intended."""
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
        if not entry or not any(matches(cell, seedless) for cell in unskipped.cells):
            raise InputError(f"[grid] skip, entry {number} matches no cell: {dict(entry)}")
    if not grid.cells:
        raise InputError("no cell is left")
    seen: dict[str, Cell] = {}
    for cell in grid.cells:
        resolve(cell.prepare, grid.sources)
        if cell.id in seen:
            raise InputError(f"two cells have the same settings: {seen[cell.id].words}, and {cell.words}")
        seen[cell.id] = cell
