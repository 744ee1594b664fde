"""Tables of a grid by method: metrics beside the thesis's, differences over equal seeds, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from simulation.grid_report.page import NONE, Cell, Key, Row, Table
from simulation.grid_report.published_results import PublishedRow
from simulation.grid_report.records import Arm, GridRecord, Regime
from simulation.grid_report.statistics import Difference, Verdict, ranks
from simulation.grid_report.values import POOLED, Rows
from simulation.report.results import HEADLINE, Estimate

__all__ = [
    "BLANK",
    "WORST_TITLE",
    "Keys",
    "Line",
    "change",
    "clinical",
    "difference_table",
    "generic_columns",
    "increment_tables",
    "keys_of",
    "less",
    "line_name",
    "mean",
    "method_table",
    "mixed",
    "reference",
    "seeds_done",
    "show",
    "variant",
]

Keys = Mapping[Arm, Key]

BLANK = Cell("", none=True)
WORST_TITLE = "Worst site's balanced accuracy"
DECIMALS = 3
_FEWER_IS_BETTER = frozenset(
    {"log_loss", "balanced_log_loss", "brier", "ece", "integrated_brier", "mae", "rmse"}
)
_OTHER_ROWS = "not the same number of test rows"
_ANY = {"accuracy": "Acc.", "balanced_accuracy": "Bacc.", "auc": "AUC"}
_BINARY = {**_ANY, "f1": "F1", "precision": "Prec.", "recall": "Rec.", "macro_f1": "mF1"}
_MANY = {**_ANY, "macro_f1": "mF1", "macro_precision": "mPrec.", "macro_recall": "mRec."}


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


def show(found: Estimate, done: int, below: Sequence[str] = ()) -> Cell:
    """A mean with its deviation; ``done`` finished cells, some of which may not define the metric."""
    if not done:
        return Cell("missing", below, none=True)
    if found.value is None:
        return Cell("—", below, none=True)
    spread = "" if found.sd is None else f" ± {found.sd:.{DECIMALS}f}"
    under = [f"{found.runs} of {done} seeds"] if found.runs < done else []
    if found.sd is None and found.low is not None and found.high is not None:
        under.append(f"{found.low:.{DECIMALS}f} to {found.high:.{DECIMALS}f}")  # of its rows, not of seeds
    return Cell(f"{found.value:.{DECIMALS}f}{spread}", (*under, *below))


def mean(grid: GridRecord, arm: Arm, metric: str, rows: Rows = POOLED, below: Sequence[str] = ()) -> Cell:
    """A metric of an arm over its seeds."""
    return show(grid.values.estimate(arm, metric, rows), len(grid.done[arm]), below)


def change(found: Difference) -> Cell:
    """A difference with its interval, and the word when zero is in it."""
    if found.mean is None:
        return NONE
    text = f"{found.mean:+.{DECIMALS}f}".replace("-", "−")  # noqa: RUF001 - a minus sign
    if found.low is None or found.high is None:
        return Cell(text, ("one pair",))
    span = f"{found.low:+.{DECIMALS}f} to {found.high:+.{DECIMALS}f}".replace("-", "−")  # noqa: RUF001 - as above
    return Cell(text, (span, str(Verdict.OPEN)) if found.verdict is Verdict.OPEN else (span,))


def less(grid: GridRecord, arm: Arm, other: Arm, metric: str, rows: Rows = POOLED) -> Cell:
    """A metric of one arm less that of another, over the seeds that both have."""
    return change(grid.values.difference(arm, other, metric, rows))


def seeds_done(grid: GridRecord, arm: Arm) -> Cell:
    """How many seeds of an arm are finished."""
    done, wanted = len(grid.done[arm]), len(grid.seeds[arm])
    return Cell(f"{done} of {wanted}", none=done < wanted)


def keys_of(grid: GridRecord, arms: Sequence[Arm], *, by_data: bool) -> dict[Arm, Key]:
    """A colour and a dash for each method among some arms, or for each method on each data set."""
    several = by_data and mixed([arms])
    pairs = [(arm.method, by_data and arm.regime.data) for arm in arms]
    places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    return {
        arm: Key(line_name(grid, arm, several=several), places[pair])
        for arm, pair in zip(arms, pairs, strict=True)
    }


def line_name(grid: GridRecord, arm: Arm, *, several: bool) -> str:
    """What a row is called; with its data where there are several in the table."""
    return f"{grid.name(arm.method)}, {arm.regime.data}" if several else grid.name(arm.method)


def mixed(groups: Iterable[Sequence[Arm]]) -> bool:
    """Whether a group of rows has several data sets, so that each row must say which."""
    return any(len({arm.regime.data for arm in arms}) > 1 for arms in groups)


def reference(grid: GridRecord, arms: Sequence[Arm]) -> Arm:
    """What others are compared with: MMARE as it is, with clinical data if it can be, else the first."""
    plain = [arm for arm in arms if arm.method.model == "mmare" and variant(grid, arm) == (True, "pairwise")]
    plain.sort(key=lambda arm: (not clinical(grid, arm.regime), bool(arm.method.ablation)))
    return [*plain, *arms][0]


def clinical(grid: GridRecord, regime: Regime) -> bool:
    """Whether clinical data are among a regime's modalities; judged by its name until a cell is done."""
    names = grid.modalities(regime)
    return "clinical" in names if names else not {"without", "w/o", "no"} & set(regime.data.lower().split())


def variant(grid: GridRecord, arm: Arm) -> tuple[bool, str]:
    """Conditioning and fusion of MMARE in an arm."""
    conditioning = grid.setting(arm, "model.conditioning", "true")
    return conditioning == "true", grid.setting(arm, "model.fusion", "pairwise")


def generic_columns(grid: GridRecord, arms: Sequence[Arm]) -> dict[str, str]:
    """The metrics of a table that the thesis has not: binary ones where there are two classes."""
    return _BINARY if any(grid.values.estimate(arm, "f1").runs for arm in arms) else _MANY


def method_table(
    grid: GridRecord,
    caption: str,
    columns: Mapping[str, str],
    groups: Mapping[str, Sequence[Line]],
    keys: Keys,
    notes: Sequence[str] = (),
) -> Table:
    """Methods by metrics: mean ± sd over seeds, best and second of each group, printed values below ours."""
    several = mixed([line.arm for line in lines if line.arm] for lines in groups.values())
    made = []
    for title, lines in groups.items():
        marks = {metric: _marks(grid, lines, metric) for metric in columns}
        places = [{metric: marks[metric][at] for metric in columns} for at in range(len(lines))]
        rows = [_row(grid, *line, keys, several=several) for line in zip(lines, places, strict=True)]
        made.append((title, rows))
    return Table(caption, "Method", ("Seeds", *columns.values()), made, notes)


def difference_table(
    grid: GridRecord, columns: Mapping[str, str], groups: Mapping[str, Sequence[Arm]], keys: Keys
) -> Table:
    """Each method less the reference of its group, over equal seeds."""
    measured = {metric: title for metric, title in columns.items() if metric != "parameters"}
    several = mixed(groups.values())
    firsts = {title: reference(grid, arms) for title, arms in groups.items() if arms}
    names = dict.fromkeys(line_name(grid, first, several=several) for first in firsts.values())
    made = []
    for title, first in firsts.items():
        rows = []
        for arm in (arm for arm in groups[title] if arm != first):
            found = [grid.values.difference(arm, first, metric) for metric in measured]
            cells = [Cell(str(max(one.pairs for one in found))), *map(change, found)]
            under = "" if _same_rows(grid, arm, first) else _OTHER_ROWS
            rows.append(Row(line_name(grid, arm, several=several), cells, under, keys[arm]))
        if rows:
            made.append((title, rows))
    interval = "mean difference with its 95\u00a0% interval (Student's t)"
    caption = f"Less {' or '.join(names)}, seed by seed: {interval}"
    note = f"“{_OTHER_ROWS.capitalize()}”: seeds are paired, but the patients are not all the same."
    notes = [note] if any(row.under for _, rows in made for row in rows) else []
    return Table(caption, "Method", ("Pairs", *measured.values()), made, notes)


def increment_tables(
    grid: GridRecord, head: str, chains: Mapping[str, Sequence[tuple[str, Arm]]]
) -> list[Table]:
    """Named steps, each less the one before and the first, by headline metric and on the worst site."""
    tables = []
    for metric, title in {**HEADLINE, "worst_site": WORST_TITLE}.items():
        groups = []
        for heading, steps in chains.items():
            first, rows = steps[0][1], []
            for before, (name, arm) in zip([None, *(arm for _, arm in steps)], steps, strict=False):
                changes = [BLANK] * 3
                if before:
                    found = grid.values.difference(arm, first, metric)
                    changes = [Cell(str(found.pairs)), less(grid, arm, before, metric), change(found)]
                rows.append(Row(name, [seeds_done(grid, arm), mean(grid, arm, metric), *changes]))
            groups.append((heading, rows))
        columns = ("Seeds", title, "Pairs with the first", "Less the step before", "Less the first")
        tables.append(Table(f"{title}: mean ± sd over seeds, test rows of all sites", head, columns, groups))
    return tables


def _marks(grid: GridRecord, lines: Sequence[Line], metric: str) -> list[str]:
    """Best and second of a group."""
    if metric == "parameters":
        return [""] * len(lines)
    means = [grid.values.estimate(line.arm, metric).value if line.arm else None for line in lines]
    places = ranks(means, decimals=DECIMALS, most=metric not in _FEWER_IS_BETTER)
    return [{1: "best", 2: "second", None: ""}[place] for place in places]


def _row(grid: GridRecord, line: Line, marks: Mapping[str, str], keys: Keys, *, several: bool) -> Row:
    printed = dict(zip(marks, line.printed.values, strict=True)) if line.printed else {}
    cells = []
    for metric, mark in marks.items():
        digits = 1 if metric == "parameters" else 4
        below = [f"thesis {printed[metric]:.{digits}f}"] if metric in printed else []
        cell = mean(grid, line.arm, metric, POOLED, below) if line.arm else Cell("—", below, none=True)
        if metric == "parameters" and not cell.none:  # the same with every seed
            cell = Cell(cell.text.partition(" ")[0], below)
        cells.append(replace(cell, mark=mark))
    under = "" if line.doubt is None else f"printed row: see note {line.doubt}"
    if line.arm:
        name = line_name(grid, line.arm, several=several)
        return Row(name, [seeds_done(grid, line.arm), *cells], under, keys[line.arm])
    return Row(line.printed.name if line.printed else "", [Cell("not run", none=True), *cells], under)


def _same_rows(grid: GridRecord, arm: Arm, other: Arm) -> bool:
    both = sorted(set(grid.done[arm]) & set(grid.done[other]))
    ours, theirs = (grid.values.by_seed(one, "n")[both] for one in (arm, other))
    return ours.equals(theirs)
