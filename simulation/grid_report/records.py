"""Read the folder of a grid: which cells it has, which are done, which failed.

A row of a table is an `Arm`: a model with its settings, in one mode, on one regime of data. It has one record
per seed; a statistic over an arm is one over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmare.errors import InputError
from simulation.grid.file import load_grid
from simulation.grid.plan import Cell
from simulation.grid.result_log import FAILURES, RESULTS
from simulation.report.results import MODES

if TYPE_CHECKING:
    from simulation.grid_report.values import Values

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
    decisions: Mapping[str, Any]  # report of `server.release.decide.decide`; empty in older lines
    references: Mapping[str, Any]  # scores by model, this run's among them


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
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    @cached_property
    def values(self) -> Values:
        """The metrics of all finished cells."""
        from simulation.grid_report.values import Values  # noqa: PLC0415 - pandas takes seconds

        return Values(self.arms, self.records)

    @cached_property
    def done(self) -> dict[Arm, tuple[int, ...]]:
        """The seeds of each arm that are finished."""
        found: dict[Arm, tuple[int, ...]] = dict.fromkeys(self.arms, ())
        for record in self.records:
            found[record.arm] += (record.seed,)
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
        present = {arm.mode for arm in self.arms}
        return tuple(mode for mode in ("federated", "centralised", "local") if mode in present)

    @property
    def missing(self) -> dict[Arm, list[int]]:
        """Arms that lack seeds, with the seeds that they lack."""
        lacking = {arm: [seed for seed in self.seeds[arm] if seed not in self.done[arm]] for arm in self.arms}
        return {arm: seeds for arm, seeds in lacking.items() if seeds}

    def of(self, regime: Regime, mode: str) -> list[Arm]:
        """The arms of one regime in one mode."""
        return [arm for arm in self.arms if (arm.regime, arm.mode) == (regime, mode)]

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

    def setting(self, arm: Arm, key: str, default: str = "") -> str:
        """What an arm sets a ``section.key`` to."""
        chosen = dict(text.partition("=")[::2] for text in self.settings[arm])
        return {name.strip(): value.strip().strip("\"'") for name, value in chosen.items()}.get(key, default)


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
    written = list(_records(folder / RESULTS, planned))
    # Lines of other settings than the plan's must not stand among the plan's.
    counted = [record for record in written if not plan or record.cell in planned]
    latest = {(record.arm, record.seed): record for record in counted}
    if not latest:
        raise InputError(f"{folder / RESULTS}: no cell of the grid has finished yet")
    settings = {arm: record.settings for (arm, _), record in latest.items()}
    wanted = {arm: dict.fromkeys(sorted({seed for _, seed in latest})) for arm in settings}
    if plan:
        settings, wanted = {}, {}
        for cell in plan.cells:
            arm = _arm(cell.settings)
            settings[arm] = cell.assignments
            wanted.setdefault(arm, {})[cell.seed] = None
    order = {arm: place for place, arm in enumerate(wanted)}
    strange = len(written) - len(counted)
    note = f"Not counted: {strange} of {RESULTS}'s lines, which are of other settings than {PLAN} has now."
    return GridRecord(
        title=(plan and (plan.head.title or plan.head.name)) or folder.resolve().name,
        tables=plan.head.tables if plan else (),
        records=tuple(sorted(latest.values(), key=lambda record: (order[record.arm], record.seed))),
        arms=tuple(wanted),
        seeds={arm: tuple(seeds) for arm, seeds in wanted.items()},
        settings=settings,
        failures=_failures(folder / FAILURES, {record.cell for record in latest.values()}),
        notes=(note,) if strange else (),
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
    if not path.exists():
        raise InputError(f"{path}: no such file: no cell of the grid has finished yet")
    for where, line, settings in _lines(path):
        if settings["mode"] not in MODES or not isinstance(settings.get("seed"), int):
            raise InputError(
                f"{where} needs a seed and a mode that is one of {', '.join(MODES)}, "
                f"found seed {settings.get('seed')!r} and mode {settings['mode']!r}"
            )
        result, part = line.get("result"), "local" if settings["mode"] == "local" else "metrics"
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
            decisions=line.get("decisions") or {},
            references=line.get("references") or {},
        )


def _failures(path: Path, done: set[str]) -> tuple[Failure, ...]:
    """The last failure of each cell that was not finished since."""
    latest = {
        str(line.get("cell")): Failure(
            _arm(settings), settings.get("seed"), str(line.get("reason") or "no reason was written")
        )
        for _, line, settings in (_lines(path) if path.exists() else ())
    }
    return tuple(failure for cell, failure in latest.items() if cell not in done)


def _lines(path: Path) -> Iterable[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The lines of a file that name a cell: where each is, the line, the settings of its cell.

    Raises:
        InputError: If the file cannot be read, or a line is not a whole object or names no cell.
    """
    try:
        content = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None
    for number, text in enumerate(content, 1):
        if not text.strip():
            continue
        where = f"{path}: line {number}"
        try:
            line = json.loads(text, parse_constant=lambda _: None)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise InputError(
                f"{where} is half-written or damaged: delete the line and run the grid again, "
                "which repeats that cell alone"
            )
        settings = line.get("settings")
        if not isinstance(settings, dict) or not all(isinstance(settings.get(key), str) for key in _NAMED):
            raise InputError(f"{where} does not name the {', '.join(_NAMED)} of its cell")
        yield where, line, settings
