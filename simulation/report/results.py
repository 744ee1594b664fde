"""Read finished run folders, and compare the runs of one study on the same test rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmare.errors import InputError
from mmare.study.outcome import CLASSES
from mmare.study.study import STUDY_FILE, Study, load_study
from server.monitoring.followed_run import read_run
from server.monitoring.run_state import RunState
from server.store.events import SiteLeftOut
from server.store.journal import JOURNAL, RESULT

__all__ = [
    "HEADLINE",
    "MODES",
    "Absence",
    "Comparison",
    "Contender",
    "Curves",
    "Estimate",
    "RunRecord",
    "absences",
    "estimate",
    "find_runs",
    "line_up",
    "load_run",
    "local_journals",
    "site_names",
    "validation_curves",
]

HEADLINE = CLASSES.shown
# In the order of a comparison.
MODES = {"local": "Each site alone", "federated": "Federated", "centralised": "Centralised"}

Points = list[tuple[int, float | None]]


@dataclass(frozen=True)
class RunRecord:
    """The files of a finished run."""

    folder: Path
    study: Study  # study.toml, defaults filled in
    result: dict[str, Any]  # result.json
    state: RunState  # from rounds.jsonl

    @property
    def mode(self) -> str:
        """``federated``, ``centralised`` or ``local``."""
        return str(self.result["mode"])

    @property
    def seed(self) -> int:
        """Seed of the run; runs of one study may differ in it."""
        return int(self.result.get("seed", self.study.seed))


@dataclass(frozen=True)
class Curves:
    """A validation metric over rounds, pooled and per site."""

    pooled: Points
    sites: dict[str, Points]


@dataclass(frozen=True)
class Absence:
    """A site left out for one reason over consecutive rounds; round 0 is the roll call."""

    site: str
    first: int
    last: int
    reason: str
    code: str = field(default="", compare=False)


@dataclass(frozen=True)
class Estimate:
    """A metric over one or several runs."""

    value: float | None  # of several runs the mean; None if no run defines it
    low: float | None = None  # of the 95 % interval; of several runs mean - sd
    high: float | None = None
    sd: float | None = None  # sample standard deviation over at least two runs
    runs: int = 0  # that define the metric


@dataclass(frozen=True)
class Contender:
    """A way to train, with its test metrics in each run."""

    mode: str
    site: str | None  # the hospital that trained alone, for mode local
    runs: tuple[Mapping[str, Any], ...]  # one per seed: {"pooled": metrics, "sites": {site: metrics}}

    def on(self, rows: str | None, metric: str) -> Estimate:
        """The metric on the test rows of one site, or (``None``) of all sites together."""
        blocks = [run.get("pooled") if rows is None else run["sites"].get(rows) for run in self.runs]
        return estimate(blocks, metric)


@dataclass(frozen=True)
class Comparison:
    """Runs of one study side by side."""

    study: Study
    records: tuple[RunRecord, ...]  # by mode and seed
    sites: tuple[str, ...]  # sorted
    contenders: tuple[Contender, ...]  # each hospital alone, federated, centralised
    notes: tuple[str, ...]  # caveats, in sentences


def load_run(path: Path) -> RunRecord:
    """Read a finished run folder.

    Raises:
        InputError: If one of the files is missing or damaged.
    """
    study = load_study(path / STUDY_FILE)
    result = _read_result(path / RESULT)
    journal = path / JOURNAL
    if result["mode"] != "local" and not journal.is_file():  # local: one journal beside each site's model
        raise InputError(f"{journal}: no such file")
    return RunRecord(folder=path, study=study, result=result, state=read_run(path))


def find_runs(path: Path) -> list[Path]:
    """The folder itself if it is a finished run, else those one or two levels below it, sorted.

    Raises:
        InputError: If there is none.
    """
    if _is_run(path):
        return [path]
    found: list[Path] = []
    for child in _folders(path):
        found += [child] if _is_run(child) else [below for below in _folders(child) if _is_run(below)]
    if not found:
        raise InputError(f"no finished run below {path}")
    return sorted(found)


def local_journals(record: RunRecord) -> dict[str, RunState]:
    """The state of each site that trained alone and left a journal."""
    folders = {site: record.folder / "local" / site for site in site_names(record)}
    return {site: read_run(folder) for site, folder in folders.items() if (folder / JOURNAL).is_file()}


def site_names(record: RunRecord) -> tuple[str, ...]:
    """Every site that the run mentions, whether or not it took part, sorted by id."""
    metrics = record.result.get("metrics") or {}
    names = set(record.result.get("local") or {})
    for split in metrics.values():
        names |= set(split.get("sites") or {})
    names |= {*record.state.calls, *(absence.site for absence in record.state.absences)}
    names |= {site for row in record.state.rounds.values() for site in row.updates}
    names |= {str(entry["site"]) for entry in record.result.get("left_out") or []}
    return tuple(sorted(names))


def validation_curves(state: RunState, metric: str) -> Curves:
    """A validation metric over rounds."""
    pooled: Points = []
    sites: dict[str, Points] = {}
    for number, row in sorted(state.rounds.items()):
        if row.metrics:
            pooled.append((number, (row.metrics.get("pooled") or {}).get(metric)))
        for site, values in sorted((row.metrics.get("sites") or {}).items()):
            sites.setdefault(site, []).append((number, (values or {}).get(metric)))
    return Curves(pooled=pooled, sites=sites)


def absences(record: RunRecord) -> list[Absence]:
    """Sites left out at the roll call or in rounds, and why; consecutive rounds are joined."""
    noted = record.result.get("left_out")
    if noted is None:  # written by an earlier version
        noted = [vars(each) for each in record.state.misses]
    entries = {(str(each["site"]), str(each.get("reason")), each.get("round") or 0): each for each in noted}
    known = {key[:2] for key in entries}
    for event in record.state.absences:
        if not isinstance(event, SiteLeftOut) and (event.site, str(event.reason)) not in known:
            entries[event.site, str(event.reason), 0] = vars(event)
    joined: list[Absence] = []
    for site, reason, number in sorted(entries):
        before = joined[-1] if joined else None
        if before and (before.site, before.reason) == (site, reason) and 0 < before.last == number - 1:
            joined[-1] = replace(before, last=number)
        else:
            code = str(entries[site, reason, number].get("code") or reason)
            joined.append(Absence(site, number, number, reason, code))
    return sorted(joined, key=lambda absence: (absence.first, absence.site))


def estimate(blocks: Sequence[Mapping[str, Any] | None], metric: str) -> Estimate:
    """Summarise a metric: one run with its 95 % interval, several as mean and sd.

    Example:
        >>> estimate([{"auc": 0.7}, {"auc": 0.8}, {"auc": None}], "auc").value
        0.75
    """
    defined = [block for block in blocks if block is not None and block.get(metric) is not None]
    if not defined:
        return Estimate(value=None)
    if len(defined) == 1:
        low, high = (defined[0].get("ci95") or {}).get(metric) or (None, None)
        return Estimate(value=defined[0][metric], low=low, high=high, runs=1)
    values = [float(block[metric]) for block in defined]
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    return Estimate(value=mean, low=mean - sd, high=mean + sd, sd=sd, runs=len(values))


def line_up(records: Sequence[RunRecord]) -> Comparison:
    """Compare runs of one study: each hospital alone, federated, centralised.

    Of two runs with the same mode and seed only the first counts, and a note says so.

    Raises:
        InputError: If the runs are of different studies.
    """
    notes: list[str] = []
    counted: dict[tuple[int, int], RunRecord] = {}
    for record in records:
        if record.study.hash != records[0].study.hash:
            raise InputError(
                f"{record.folder}: its settings are not those of {records[0].folder}; a comparison needs "
                "runs of one study, which may differ in seed and mode only"
            )
        key = (list(MODES).index(record.mode), record.seed)
        if key in counted:
            notes.append(
                f"{record.folder.name} is not counted: {counted[key].folder.name} has the same mode and seed."
            )
        counted.setdefault(key, record)
    ordered = tuple(counted[key] for key in sorted(counted))
    contenders = tuple(_contenders(ordered))
    tested = {site for contender in contenders for run in contender.runs for site in run["sites"]}
    sites = sorted(tested | {contender.site for contender in contenders if contender.site is not None})
    notes += _warnings(ordered)
    return Comparison(ordered[0].study, ordered, tuple(sites), contenders, tuple(notes))


def _contenders(records: Sequence[RunRecord]) -> list[Contender]:
    alone = [record.result["local"] for record in records if record.mode == "local"]
    found = [
        Contender("local", site, tuple(_alone(local[site], site) for local in alone if site in local))
        for site in sorted({site for local in alone for site in local})
    ]
    for mode in ("federated", "centralised"):
        runs = tuple(_test(record.result["metrics"]) for record in records if record.mode == mode)
        found += [Contender(mode, None, runs)] if runs else []
    return found


def _test(metrics: Mapping[str, Any]) -> dict[str, Any]:
    test = metrics.get("test") or {}
    return {"pooled": test.get("pooled"), "sites": test.get("sites") or {}}


def _alone(entry: Mapping[str, Any], site: str) -> dict[str, Any]:
    """Test metrics of a site trained alone, those on its own rows under its name."""
    metrics = entry.get("metrics") or {}
    test = _test(metrics)
    own = (metrics.get("test") or {}).get("own")
    return {**test, "sites": {**({site: own} if own else {}), **test["sites"]}}


def _warnings(records: Sequence[RunRecord]) -> list[str]:
    """Caveats of a comparison: different test rows, missing seeds, notes of the runs."""
    rows: dict[int, set[int]] = {}
    seeds: dict[str, list[int]] = {}
    for record in records:
        seeds.setdefault(record.mode, []).append(record.seed)
        tests = [run["pooled"] for contender in _contenders([record]) for run in contender.runs]
        rows.setdefault(record.seed, set()).update(test["n"] for test in tests if test and test.get("n"))
    found = [
        f"With seed {seed} the runs were tested on different numbers of rows "
        f"({', '.join(map(str, sorted(n)))}): their values are not of the same patients."
        for seed, n in sorted(rows.items())
        if len(n) > 1
    ]
    if len({tuple(numbers) for numbers in seeds.values()}) > 1:
        listed = "; ".join(f"{mode}: {', '.join(map(str, numbers))}" for mode, numbers in seeds.items())
        found.append(f"Not every mode was run with the same seeds ({listed}).")
    notes = (str(note) for record in records for note in record.result.get("notes") or [])
    return [*found, *dict.fromkeys(notes)]


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(_read(path), parse_constant=lambda _: None)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(result, dict) or result.get("mode") not in MODES:
        raise InputError(f"{path}: not the result of a run: mode must be one of {', '.join(MODES)}")
    part = "local" if result["mode"] == "local" else "metrics"
    if not isinstance(result.get(part), dict) or not result[part]:
        raise InputError(f"{path}: not the result of a {result['mode']} run: it has no {part!r}")
    return result


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; has the run finished?") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if child.is_dir())
    except OSError as error:
        raise InputError(f"{path}: cannot be listed ({type(error).__name__})") from None


def _is_run(path: Path) -> bool:
    return (path / RESULT).is_file()
