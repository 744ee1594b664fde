"""Tables of a grid: methods by metrics, differences over equal seeds, increments, the thesis's own tables.

A table is made of `Line`: one arm of the grid, a printed row of the thesis, or both side by side.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulation.grid_report.page import Cell, Group, Key, Row, Table
from simulation.grid_report.published_results import PublishedRow
from simulation.grid_report.records import Arm, GridRecord, Method, Record, Regime
from simulation.grid_report.statistics import Difference, Verdict, paired, ranks
from simulation.report.figures import site_dash, site_variable
from simulation.report.results import HEADLINE, Estimate, estimate

__all__ = [
    "FEWER_IS_BETTER",
    "Line",
    "Pick",
    "change",
    "clinical",
    "difference_table",
    "differences",
    "generic_columns",
    "increment_tables",
    "keys_of",
    "line_name",
    "method_table",
    "mixed",
    "pooled",
    "reference",
    "told",
    "values",
    "variant",
    "worst",
]

# Which metrics of a finished cell a statistic is over.
Pick = Callable[[Record], Mapping[str, Any] | None]

FEWER_IS_BETTER = frozenset({"log_loss", "balanced_log_loss", "brier", "ece"})
UNMARKED = frozenset({"parameters"})
DECIMALS = 3
_BINARY = {
    "accuracy": "Acc.",
    "balanced_accuracy": "Bacc.",
    "auc": "AUC",
    "f1": "F1",
    "precision": "Prec.",
    "recall": "Rec.",
    "macro_f1": "mF1",
}
_MANY = {
    "accuracy": "Acc.",
    "balanced_accuracy": "Bacc.",
    "auc": "AUC",
    "macro_f1": "mF1",
    "macro_precision": "mPrec.",
    "macro_recall": "mRec.",
}
_PARTS = {**HEADLINE, "worst_site": "Worst site's balanced accuracy"}


@dataclass(frozen=True)
class Line:
    """A row to be: ours, printed, or both.

    Args:
        arm: ``None`` for a printed row that the grid does not repeat.
        printed: ``None`` for an arm that the thesis has not.
        doubt: Number of the printed row's footnote.
    """

    arm: Arm | None
    printed: PublishedRow | None = None
    doubt: int | None = None


def pooled(record: Record) -> Mapping[str, Any] | None:
    """Metrics of all test rows, with trainable parameters in millions and the worst site's balanced accuracy.

    Of sites that each trained alone: the mean over sites of what their models reach on all test rows.
    """
    test = record.test.get("pooled")
    if record.arm.mode == "local":
        test = _mean([metrics.get("pooled") for metrics in record.alone.values()])
    if test is None:
        return None
    trainable = (record.result.get("parameters") or {}).get("trainable")
    return {
        **test,
        "parameters": None if trainable is None else trainable / 1e6,
        "worst_site": (worst(record) or {}).get("balanced_accuracy"),
    }


def worst(record: Record) -> Mapping[str, Any] | None:
    """The site with the lowest balanced accuracy on its own test rows: name, value, distance to the best."""
    sites = record.test.get("sites") or {}
    if record.arm.mode == "local":
        sites = {site: metrics.get("own") for site, metrics in record.alone.items()}
    scores = {
        site: float(value)
        for site, metrics in sorted(sites.items())
        if (value := (metrics or {}).get("balanced_accuracy")) is not None
    }
    if not scores:
        return None
    site = min(scores, key=scores.__getitem__)
    return {
        "site": site,
        "balanced_accuracy": scores[site],
        "spread": max(scores.values()) - scores[site] if len(scores) > 1 else None,
    }


def values(grid: GridRecord, arm: Arm, metric: str, pick: Pick = pooled) -> dict[int, float | None]:
    """A metric of an arm by seed."""
    return {seed: (pick(record) or {}).get(metric) for seed, record in grid.runs[arm].items()}


def told(grid: GridRecord, arm: Arm, metric: str, pick: Pick = pooled) -> Estimate:
    """A metric of an arm over its seeds."""
    return estimate([pick(record) for record in grid.runs[arm].values()], metric)


def differences(
    grid: GridRecord, arm: Arm | None, other: Arm | None, metric: str, pick: Pick = pooled
) -> Difference:
    """A metric of one arm less that of another, over the seeds that both have."""
    if arm is None or other is None:
        return Difference(None, None, None, 0)
    return paired(values(grid, arm, metric, pick), values(grid, other, metric, pick))


def show(found: Estimate, done: int, below: Sequence[str] = ()) -> Cell:
    """A mean with its deviation; ``done`` finished cells, some of which may not define the metric."""
    if not done:
        return Cell("missing", tuple(below), none=True)
    if found.value is None:
        return Cell("—", tuple(below), none=True)
    spread = "" if found.sd is None else f" ± {found.sd:.{DECIMALS}f}"
    under = [f"{found.runs} of {done} seeds"] if found.runs < done else []
    if found.sd is None and found.low is not None and found.high is not None:
        under.append(f"{found.low:.{DECIMALS}f} to {found.high:.{DECIMALS}f}")  # of its rows, not of seeds
    return Cell(f"{found.value:.{DECIMALS}f}{spread}", (*under, *below))


def change(found: Difference) -> Cell:
    """A difference with its interval, and the word when zero is in it."""
    if found.mean is None:
        return Cell("—", none=True)
    text = f"{found.mean:+.{DECIMALS}f}".replace("-", "−")  # noqa: RUF001 - a minus sign
    if found.low is None or found.high is None:
        return Cell(text, ("one pair",))
    span = f"{found.low:+.{DECIMALS}f} to {found.high:+.{DECIMALS}f}".replace("-", "−")  # noqa: RUF001 - as above
    open_ = (str(Verdict.OPEN),) if found.verdict is Verdict.OPEN else ()
    return Cell(text, (span, *open_))


def keys_of(grid: GridRecord, arms: Iterable[Arm]) -> dict[tuple[Method, str], Key]:
    """A colour and a dash for each method and data set among some arms."""
    several = mixed([arms := list(arms)])
    pairs = dict.fromkeys((arm.method, arm.regime.data) for arm in arms)
    return {
        (method, data): Key(
            f"{grid.name(method)}, {data}" if several else grid.name(method),
            site_variable(position),
            " ".join(map(str, site_dash(position))),
        )
        for position, (method, data) in enumerate(pairs)
    }


def line_name(grid: GridRecord, arm: Arm, *, several: bool) -> str:
    """What a row is called; with its data where there are several in the table."""
    return f"{grid.name(arm.method)}, {arm.regime.data}" if several else grid.name(arm.method)


def mixed(groups: Iterable[Sequence[Arm]]) -> bool:
    """Whether a group of rows has several data sets, so that each row must say which."""
    return any(len({arm.regime.data for arm in arms}) > 1 for arms in groups)


def reference(grid: GridRecord, arms: Sequence[Arm]) -> Arm | None:
    """What others are compared with: MMARE as it is, with clinical data if it can be, else the first."""
    plain = [arm for arm in arms if arm.method.model == "mmare" and variant(grid, arm) == (True, "pairwise")]
    plain.sort(key=lambda arm: bool(arm.method.ablation))
    full = [arm for arm in plain if clinical(grid, arm.regime)]
    return next(iter([*full, *plain, *arms]), None)


def clinical(grid: GridRecord, regime: Regime) -> bool:
    """Whether clinical data are among a regime's modalities; judged by its name until a cell is done."""
    names = grid.modalities(regime)
    return "clinical" in names if names else not {"without", "w/o", "no"} & set(regime.data.lower().split())


def variant(grid: GridRecord, arm: Arm) -> tuple[bool, str]:
    """Conditioning and fusion of MMARE in an arm."""
    chosen = dict(text.partition("=")[::2] for text in grid.settings[arm])
    chosen = {key.strip(): value.strip().strip("\"'") for key, value in chosen.items()}
    return chosen.get("model.conditioning", "true") == "true", chosen.get("model.fusion", "pairwise")


def generic_columns(grid: GridRecord, arms: Sequence[Arm]) -> dict[str, str]:
    """The metrics of a table that the thesis has not: binary ones where there are two classes."""
    blocks = [pooled(record) or {} for arm in arms for record in grid.runs[arm].values()]
    return _BINARY if any(block.get("f1") is not None for block in blocks) else _MANY


def method_table(
    grid: GridRecord,
    caption: str,
    columns: Mapping[str, str],
    groups: Mapping[str, Sequence[Line]],
    keys: Mapping[tuple[Method, str], Key],
    notes: Sequence[str] = (),
) -> Table:
    """Methods by metrics: mean ± sd over seeds, best and second of each group, printed values below ours.

    Args:
        grid: Whose results.
        caption: Of the table.
        columns: Metric -> heading.
        groups: Heading -> its rows; ranked among themselves.
        keys: Colours of the methods.
        notes: Below the table.
    """
    several = mixed([line.arm for line in lines if line.arm] for lines in groups.values())
    made = []
    for title, lines in groups.items():
        marked = {
            metric: ranks(
                [told(grid, line.arm, metric).value if line.arm else None for line in lines],
                decimals=DECIMALS,
                most=metric not in FEWER_IS_BETTER,
            )
            for metric in columns
            if metric not in UNMARKED
        }
        rows = [
            _line(
                grid, line, columns, keys, {metric: places[at] for metric, places in marked.items()}, several
            )
            for at, line in enumerate(lines)
        ]
        made.append(Group(title, tuple(rows)))
    return Table(caption, "Method", ("Seeds", *columns.values()), tuple(made), tuple(notes))


def _line(
    grid: GridRecord,
    line: Line,
    columns: Mapping[str, str],
    keys: Mapping[tuple[Method, str], Key],
    places: Mapping[str, int | None],
    several: bool,
) -> Row:
    printed = dict(zip(columns, line.printed.values, strict=True)) if line.printed else {}
    under = "" if line.doubt is None else f"printed row: see note {line.doubt}"
    if line.arm is None:
        name = line.printed.name if line.printed else ""
        cells = [
            Cell(
                "—", (f"thesis {_printed(metric, printed[metric])}",) if metric in printed else (), none=True
            )
            for metric in columns
        ]
        return Row(name, (Cell("not run", none=True), *cells), under)
    done = grid.runs[line.arm]
    shown = []
    for metric in columns:
        below = (f"thesis {_printed(metric, printed[metric])}",) if metric in printed else ()
        found = told(grid, line.arm, metric)
        cell = show(found, len(done), below)
        if metric == "parameters" and found.value is not None:
            cell = Cell(f"{found.value:.{DECIMALS}f}", below)
        place = places.get(metric)
        mark = {1: "best", 2: "second"}.get(place or 0, "")
        shown.append(Cell(cell.text, cell.small, mark, none=cell.none))  # type: ignore[arg-type] # a literal
    seeds = Cell(f"{len(done)} of {len(grid.seeds[line.arm])}", none=len(done) < len(grid.seeds[line.arm]))
    key = keys.get((line.arm.method, line.arm.regime.data))
    return Row(line_name(grid, line.arm, several=several), (seeds, *shown), under, key)


def difference_table(
    grid: GridRecord,
    against: str,
    columns: Mapping[str, str],
    groups: Mapping[str, tuple[Arm, Sequence[Arm]]],
    keys: Mapping[tuple[Method, str], Key],
) -> Table | None:
    """Each method less the reference of its group, over equal seeds.

    Args:
        grid: Whose results.
        against: What the reference is called.
        columns: Metric -> heading.
        groups: Heading -> the reference, the others.
        keys: Colours of the methods.

    Returns:
        ``None`` if there is nothing to compare.
    """
    several = mixed((first, *others) for first, others in groups.values())
    made, other_rows = [], False
    for title, (first, others) in groups.items():
        rows = []
        for arm in others:
            found = {metric: differences(grid, arm, first, metric) for metric in columns}
            other_rows |= not _same_rows(grid, arm, first)
            pairs = max((one.pairs for one in found.values()), default=0)
            rows.append(
                Row(
                    line_name(grid, arm, several=several),
                    (Cell(str(pairs)), *(change(one) for one in found.values())),
                    "" if _same_rows(grid, arm, first) else "not the same number of test rows",
                    keys.get((arm.method, arm.regime.data)),
                )
            )
        if rows:
            made.append(Group(title, tuple(rows)))
    if not made:
        return None
    caption = f"Less {against}, seed by seed: mean difference with its 95\u00a0% interval (Student's t)"
    notes = (
        ("“Not the same number of test rows”: seeds are paired, but the patients are not all the same.",)
        if other_rows
        else ()
    )
    return Table(caption, "Method", ("Pairs", *columns.values()), tuple(made), notes)


def increment_tables(
    grid: GridRecord, head: str, chains: Mapping[str, Sequence[tuple[str, Arm]]]
) -> list[Table]:
    """Steps in order: each with its difference to the step before and to the first, over equal seeds.

    Args:
        grid: Whose results.
        head: What a step is.
        chains: Heading -> its steps, named.

    Returns:
        A table each for the headline metrics and the worst site.
    """
    tables = []
    for metric, title in _PARTS.items():
        groups = []
        for heading, steps in chains.items():
            rows = []
            for number, (name, arm) in enumerate(steps):
                before = differences(grid, arm, steps[max(number - 1, 0)][1], metric)
                first = differences(grid, arm, steps[0][1], metric)
                changes = [Cell(str(first.pairs)), change(before), change(first)]
                done = len(grid.runs[arm])
                rows.append(
                    Row(
                        name,
                        (
                            Cell(f"{done} of {len(grid.seeds[arm])}", none=done < len(grid.seeds[arm])),
                            show(told(grid, arm, metric), done),
                            *(changes if number else [Cell("", none=True)] * 3),
                        ),
                    )
                )
            groups.append(Group(heading, tuple(rows)))
        columns = ("Seeds", title, "Pairs with the first", "Less the step before", "Less the first")
        tables.append(
            Table(f"{title}: mean ± sd over seeds, test rows of all sites", head, columns, tuple(groups))
        )
    return tables


def _same_rows(grid: GridRecord, arm: Arm, other: Arm) -> bool:
    counts, others = values(grid, arm, "n"), values(grid, other, "n")
    return all(counts[seed] == others[seed] for seed in counts.keys() & others.keys())


def _mean(blocks: Sequence[Mapping[str, Any] | None]) -> dict[str, float | None] | None:
    """Mean over sites of each metric, where all of them define it."""
    known = [block for block in blocks if block]
    if not known:
        return None
    keys = [key for key, value in known[0].items() if isinstance(value, int | float)]
    return {
        key: statistics.fmean(block[key] for block in known)
        if all(block.get(key) is not None for block in known)
        else None
        for key in keys
    }


def _printed(metric: str, value: float) -> str:
    return f"{value:.1f}" if metric == "parameters" else f"{value:.4f}"
