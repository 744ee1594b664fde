"""Read the folder of a grid: which cells it has, which are done, which failed.

A row of a table is an `Arm`: a model with its settings, in one mode, on one regime of data. It has one record
per seed; a statistic over an arm is one over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmare.errors import InputError
from simulation.grid.file import load_grid
from simulation.grid.plan import Cell
from simulation.grid.result_log import FAILURES, RESULTS
from simulation.report.results import MODES

__all__ = ["Arm", "Failure", "GridRecord", "Method", "Record", "Regime", "is_grid", "load_records"]

PLAN = "grid.toml"
_NAMED = ("data", "model", "mode")  # settings that a line must name, as text


@dataclass(frozen=True)
class Regime:
    """A data set with a task, and what was taken away from it."""

    data: str
    task: str
    mechanism: str | None
    rate: float | None
    arguments: tuple[str, ...] = ()

    @property
    def loss(self) -> str:
        """What was taken away, in words."""
        named = self.mechanism and self.rate is not None
        parts = [f"{str(self.mechanism).upper()} {100 * (self.rate or 0.0):.4g} %"] if named else []
        for word in self.arguments:  # a flag begins a part, its value follows
            if word.startswith("--") or not parts:
                parts.append(word.removeprefix("--"))
            else:
                parts[-1] += f" {word}"
        return ", ".join(parts) or "as it is"

    @property
    def title(self) -> str:
        """Data and loss, in words."""
        return self.data if self.loss == "as it is" else f"{self.data}, {self.loss}"


@dataclass(frozen=True)
class Method:
    """A model with its label and what was changed in it."""

    model: str
    label: str
    ablation: str
    strategy: str


@dataclass(frozen=True)
class Arm:
    """A row of a table: a method in one mode on one regime."""

    regime: Regime
    method: Method
    mode: str


@dataclass(frozen=True)
class Record:
    """A finished cell."""

    cell: str
    arm: Arm
    seed: int
    settings: tuple[str, ...]
    modalities: tuple[str, ...]
    result: Mapping[str, Any]
    amputation: Mapping[str, Any] | None
    seconds: float | None

    @property
    def test(self) -> Mapping[str, Any]:
        """Test metrics of the one model; empty for sites that each trained alone."""
        metrics: Mapping[str, Any] = self.result.get("metrics") or {}
        return metrics.get("test") or {}

    @property
    def alone(self) -> dict[str, Mapping[str, Any]]:
        """Test metrics of each site's own model, for mode ``local``."""
        told = self.result.get("local") or {}
        return {site: ((entry or {}).get("metrics") or {}).get("test") or {} for site, entry in told.items()}


@dataclass(frozen=True)
class Failure:
    """A cell that failed."""

    arm: Arm
    seed: int | None
    sentence: str


@dataclass(frozen=True)
class GridRecord:
    """Everything that a grid left behind.

    Args:
        title: Of the report.
        tables: Numbers of the thesis tables that the grid repeats.
        records: Finished cells in the order of the grid, by seed.
        arms: Every arm of the grid, finished or not, in its order.
        seeds: Of each arm, the seeds that it is to have.
        settings: Of each arm, what it sets over its study.
        failures: Cells that failed and were not finished since.
        notes: What a reader must know before trusting the tables, in sentences.
    """

    title: str
    tables: tuple[str, ...]
    records: tuple[Record, ...]
    arms: tuple[Arm, ...]
    seeds: Mapping[Arm, tuple[int, ...]]
    settings: Mapping[Arm, tuple[str, ...]]
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def runs(self) -> dict[Arm, dict[int, Record]]:
        """Finished cells of each arm, by seed."""
        found: dict[Arm, dict[int, Record]] = {arm: {} for arm in self.arms}
        for record in self.records:
            found[record.arm][record.seed] = record
        return found

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """In the order of the grid."""
        return tuple(dict.fromkeys(arm.regime for arm in self.arms))

    @property
    def methods(self) -> tuple[Method, ...]:
        """In the order of the grid."""
        return tuple(dict.fromkeys(arm.method for arm in self.arms))

    @property
    def modes(self) -> tuple[str, ...]:
        """Federated first: the mode that the grid is about."""
        told = {arm.mode for arm in self.arms}
        return tuple(mode for mode in ("federated", "centralised", "local") if mode in told)

    @property
    def missing(self) -> list[tuple[Arm, tuple[int, ...]]]:
        """Arms that lack seeds, with the seeds that they lack."""
        lacking = [
            (arm, tuple(seed for seed in self.seeds[arm] if seed not in self.runs[arm])) for arm in self.arms
        ]
        return [(arm, seeds) for arm, seeds in lacking if seeds]

    def name(self, method: Method) -> str:
        """The shortest text that tells a method from the others of the grid."""
        same = [other for other in self.methods if other.label == method.label]
        parts = [method.ablation] if method.ablation else []
        if len({other.strategy for other in same}) > 1:
            parts.append(method.strategy)
        if len({other.model for other in same}) > 1:
            parts.append(f"({method.model})")
        alone = len(same) == len(self.methods)  # then every row would begin with the same word
        return " · ".join(parts if alone and parts else [method.label, *parts])

    def modalities(self, regime: Regime) -> tuple[str, ...]:
        """Slot names of a regime's patients; empty while no cell of it is done."""
        return next((record.modalities for record in self.records if record.arm.regime == regime), ())


def is_grid(folder: Path) -> bool:
    """Whether a folder is that of a grid, and not one of runs."""
    return (folder / RESULTS).is_file() or (folder / PLAN).is_file()


def load_records(folder: Path) -> GridRecord:
    """Read the folder of a grid.

    Raises:
        InputError: If no cell is finished, or a line or the plan is damaged.
    """
    plan = load_grid(folder / PLAN) if (folder / PLAN).exists() else None
    planned = {cell.id: cell for cell in plan.cells} if plan else {}
    latest: dict[tuple[Arm, int], Record] = {}
    strange = 0
    for record in _records(folder / RESULTS, planned):
        if plan and record.cell not in planned:
            strange += 1  # of other settings than the plan's: its numbers must not stand among the plan's
            continue
        latest[record.arm, record.seed] = record
    if not latest:
        raise InputError(f"{folder / RESULTS}: no cell of the grid has finished yet")
    seeds: dict[Arm, dict[int, None]] = {}
    settings = {_arm(cell.settings): cell.assignments for cell in planned.values()}
    for cell in planned.values():
        seeds.setdefault(_arm(cell.settings), {})[cell.seed] = None
    if not plan:
        told = sorted({seed for _, seed in latest})
        seeds = {arm: dict.fromkeys(told) for arm, _ in latest}
        settings = {arm: record.settings for (arm, _), record in latest.items()}
    order = {arm: position for position, arm in enumerate(seeds)}
    done = {record.cell for record in latest.values()}
    head = plan.head if plan else None
    return GridRecord(
        title=(head and (head.title or head.name)) or folder.resolve().name,
        tables=head.tables if head else (),
        records=tuple(sorted(latest.values(), key=lambda record: (order[record.arm], record.seed))),
        arms=tuple(seeds),
        seeds={arm: tuple(told) for arm, told in seeds.items()},
        settings=settings,
        failures=tuple(_failures(folder / FAILURES, done)),
        notes=(
            f"Not counted: {strange} of {RESULTS}'s lines, which are of other settings than {PLAN} has now.",
        )
        if strange
        else (),
    )


def _arm(settings: Mapping[str, Any]) -> Arm:
    rate, model = settings.get("rate"), str(settings["model"])
    regime = Regime(
        data=str(settings["data"]),
        task=str(settings.get("task") or ""),
        mechanism=str(settings["mechanism"]) if settings.get("mechanism") else None,
        rate=None if rate is None else float(rate),
        arguments=tuple(map(str, settings.get("missing_arguments") or ())),
    )
    method = Method(
        model=model,
        label=str(settings.get("label") or model),
        ablation=str(settings.get("ablation") or ""),
        strategy=str(settings.get("strategy") or "fedavg"),
    )
    return Arm(regime, method, str(settings["mode"]))


def _records(path: Path, planned: Mapping[str, Cell]) -> Iterable[Record]:
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        settings, result = line.get("settings"), line.get("result")
        if not isinstance(settings, dict) or not all(isinstance(settings.get(key), str) for key in _NAMED):
            raise InputError(f"{where} does not name the {', '.join(_NAMED)} of its cell")
        if settings["mode"] not in MODES or not isinstance(settings.get("seed"), int):
            raise InputError(
                f"{where} needs a seed and a mode that is one of {', '.join(MODES)}, "
                f"found seed {settings.get('seed')!r} and mode {settings['mode']!r}"
            )
        part = "local" if settings["mode"] == "local" else "metrics"
        if not isinstance(result, dict) or not isinstance(result.get(part), dict):
            raise InputError(f"{where} has no result with {part!r}, which a {settings['mode']} run has")
        cell = planned.get(str(line.get("cell")))
        yield Record(
            cell=str(line.get("cell")),
            arm=_arm(cell.settings if cell else settings),  # labels may have been reworded since
            seed=settings["seed"],
            settings=tuple(map(str, settings.get("set") or ())),
            modalities=tuple(map(str, line.get("modalities") or ())),
            result=result,
            amputation=line.get("amputation"),
            seconds=line.get("seconds"),
        )


def _failures(path: Path, done: set[str]) -> Iterable[Failure]:
    """The last failure of each cell that was not finished since."""
    latest: dict[str, Failure] = {}
    for number, line in _lines(path) if path.exists() else []:
        settings = line.get("settings")
        if not isinstance(settings, dict) or not all(isinstance(settings.get(key), str) for key in _NAMED):
            raise InputError(f"{path}: line {number} does not name the {', '.join(_NAMED)} of its cell")
        sentence = str(line.get("reason") or "no reason was written")
        latest[str(line.get("cell"))] = Failure(_arm(settings), settings.get("seed"), sentence)
    return [failure for cell, failure in latest.items() if cell not in done]


def _lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """The objects of a file with one a line.

    Raises:
        InputError: If it cannot be read, or a line is not a whole object.
    """
    try:
        content: Sequence[str] = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: no cell of the grid has finished yet") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None
    for number, text in enumerate(content, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text, parse_constant=lambda _: None)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise InputError(
                f"{path}: line {number} is half-written or damaged: delete the line and run the grid again, "
                "which repeats that cell alone"
            )
        yield number, line
