"""The metrics of all finished cells as one long frame, and what tables ask of it: means, differences, counts.

The frame has one line per metric of a set of test rows:

=========  ==========================================================================================
arm, seed  of the cell; ``arm`` is its place in the grid
kind       ``pooled``, ``sites``, ``patterns`` or ``subsets`` of test rows; ``worst`` is the site with the
           lowest balanced accuracy, ``calibrated`` all test rows, losses before and after calibration,
           ``shapley`` those of a site or of all, whose metrics are the shares of modalities; ``run`` what
           is of no rows: parameters, rounds, seconds, megabytes
name       of the site, pattern or subset
trained    the site whose own model it is; empty for the one model of the cell. Of sites that each trained
           alone, the empty one has each site's model on its own rows, and the mean over sites on all rows
metric     as in ``result.json``
value      NaN where it is not defined or withheld
low, high  of the 95 % interval over rows, NaN where there is none
=========  ==========================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from simulation.grid_report.statistics import Difference, paired
from simulation.report.results import Estimate

if TYPE_CHECKING:
    from simulation.grid_report.records import Arm, Record

__all__ = ["CALIBRATED", "POOLED", "RUN", "SHAPLEY", "THRESHOLD", "WORST", "Rows", "Values", "blocks"]


class Rows(NamedTuple):
    """Which rows a metric is over, and whose model it is of."""

    kind: str
    name: str = ""
    trained: str = ""


POOLED, WORST, RUN, CALIBRATED = Rows("pooled"), Rows("worst"), Rows("run"), Rows("calibrated")
THRESHOLD = Rows("threshold")  # all rows, classes by a threshold instead of the larger probability
SHAPLEY = "shapley"  # a kind
_CELL = ["arm", "seed"]
_KEY = ["arm", *Rows._fields, "metric"]
Block = Mapping[str, Any] | None


class Values:
    """Means, differences and counts over the seeds of each arm."""

    def __init__(self, arms: Sequence[Arm], records: Iterable[Record]) -> None:
        self._places = {arm: place for place, arm in enumerate(arms)}
        self.frame = _long_frame(self._places, records)
        defined = self.frame.dropna(subset=["value"]).groupby(_KEY)
        summary = defined.agg(
            runs=("value", "size"),
            value=("value", "mean"),
            sd=("value", "std"),
            low=("low", "first"),
            high=("high", "first"),
        )
        self._estimates = {line[0]: line[1:] for line in summary.itertuples()}
        self._by_seed = self.frame.pivot(index=_KEY, columns="seed", values="value")
        self._lines = {key: line for line, key in enumerate(self._by_seed.index)}
        counts = self.frame[self.frame.metric == "n"].groupby(["arm", "kind", "trained"]).name
        self._names = {key: Counter(names) for key, names in counts}
        scores = _own_scores(self.frame)
        self._lowest = scores.loc[scores.groupby(_CELL).value.idxmin()]

    def estimate(self, arm: Arm, metric: str, rows: Rows = POOLED) -> Estimate:
        """A metric over seeds: of one its interval over rows, of several mean and sd."""
        found = self._estimates.get((self._places[arm], *rows, metric))
        if found is None:
            return Estimate(None)
        runs, value, *spread = found
        sd, low, high = (None if pd.isna(number) else number for number in spread)
        if sd is not None:
            low, high = value - sd, value + sd
        return Estimate(value, low, high, sd, runs)

    def by_seed(self, arm: Arm, metric: str, rows: Rows = POOLED) -> pd.Series[float]:
        """A metric by seed; NaN where it is not defined."""
        line = self._lines.get((self._places[arm], *rows, metric))
        return pd.Series(float("nan"), self._by_seed.columns) if line is None else self._by_seed.iloc[line]

    def difference(self, arm: Arm, other: Arm, metric: str, rows: Rows = POOLED) -> Difference:
        """A metric of one arm less that of another, over the seeds that both have."""
        return paired(self.by_seed(arm, metric, rows), self.by_seed(other, metric, rows))

    def names(self, arm: Arm, kind: str) -> Counter[str]:
        """The sites, patterns or subsets that an arm was tested on, with the number of seeds of each."""
        return self._names.get((self._places[arm], kind, ""), Counter())

    def lowest(self, arm: Arm) -> Counter[str]:
        """The sites with the lowest balanced accuracy, with the number of seeds of each."""
        return Counter(self._lowest.name[self._lowest.arm == self._places[arm]])


def blocks(result: Mapping[str, Any]) -> Iterator[tuple[Rows, Block]]:
    """Every set of test rows that a result can have, with its metrics."""
    tests = {"": result} | (result.get("local") or {})
    for trained, entry in tests.items():
        test = ((entry or {}).get("metrics") or {}).get("test") or {}
        yield Rows("pooled", "", trained), test.get("pooled")
        yield Rows("own", "", trained), test.get("own")
        if point := test.get("operating_point"):
            yield Rows(THRESHOLD.kind, "", trained), point["pooled"]
        for kind in ("sites", "patterns", "subsets"):
            for name, metrics in (test.get(kind) or {}).items():
                yield Rows(kind, name, trained), metrics


def _long_frame(places: Mapping[Arm, int], records: Iterable[Record]) -> pd.DataFrame:
    columns = [*_CELL, *Rows._fields, "metric", "value", "low", "high"]
    lines = ((places[record.arm], record.seed, *line) for record in records for line in _lines(record))
    frame = pd.DataFrame(lines, columns=columns).astype({"value": float, "low": float, "high": float})
    own = frame[(frame.kind == "own") & (frame.trained != "")]
    own = own.assign(kind="sites", name=own.trained)
    frame = pd.concat([frame[frame.kind != "own"], own, own.assign(trained="")])
    frame = frame.drop_duplicates([*_CELL, *_KEY[1:]], ignore_index=True)
    pooled = frame[frame.kind == "pooled"]
    by_site = pooled[pooled.trained != ""].pivot(index=[*_CELL, "trained"], columns="metric", values="value")
    # NaN where a site does not define it.
    mean = by_site.groupby(_CELL).agg(fmean).reset_index().melt(_CELL)
    scores = _own_scores(frame).groupby(_CELL).value
    lowest, spread = scores.min(), scores.max() - scores.min()
    of_pooled = lowest[lowest.index.isin(pooled.set_index(_CELL).index)]
    derived = pd.concat(
        [
            mean.assign(kind="pooled"),
            of_pooled.reset_index().assign(kind="pooled", metric="worst_site"),
            lowest.reset_index().assign(kind="worst", metric="balanced_accuracy"),
            spread[scores.size() > 1].reset_index().assign(kind="worst", metric="spread"),
        ]
    )
    return pd.concat([frame, derived.assign(name="", trained="")], ignore_index=True)


def _own_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy on each site's own rows, of the one model or of the site's own; by site."""
    own = (frame.kind == "sites") & (frame.trained == "") & (frame.metric == "balanced_accuracy")
    return frame[own & frame.value.notna()].sort_values(["name", "seed"])


def _lines(record: Record) -> Iterator[tuple[str | float | None, ...]]:
    """Kind, name, trained, metric, value, low and high of all that a cell measured."""
    costs = _costs(record)
    for rows, block in [*blocks(record.result), *_explained(record), (RUN, costs)]:
        metrics = {"n": None, **(block or {})}  # so that a name has a line, whatever is withheld
        if rows.kind == "pooled":
            metrics["parameters"] = costs["parameters"] and costs["parameters"] / 1e6
        for metric, value in metrics.items() if block or rows.kind != "pooled" else ():
            if value is None or isinstance(value, int | float):
                yield (*rows, metric, value, *((metrics.get("ci95") or {}).get(metric) or (None, None)))


def _explained(record: Record) -> Iterator[tuple[Rows, Block]]:
    test = (record.result.get("metrics") or {}).get("test") or {}
    shapley = test.get("shapley") or {}
    for site, found in {"": shapley.get("pooled"), **(shapley.get("sites") or {})}.items():
        if found:
            shares = {f"share_{modality}": values["share"] for modality, values in found.items()}
            yield Rows(SHAPLEY, site), shares
    calibration = record.decisions.get("calibration") or {}
    pairs = {
        loss: calibration[loss].get("test") or () for loss in ("log_loss", "brier", "ece") if calibration
    }
    losses = {
        f"{loss}_{way}": value
        for loss, pair in pairs.items()
        for way, value in zip(("before", "after"), pair, strict=False)
    }
    if losses:
        yield CALIBRATED, losses


def _costs(record: Record) -> dict[str, float | None]:
    result = record.result
    parameters, seconds = result.get("parameters") or {}, result.get("seconds") or {}
    rounds, train = result.get("rounds_run"), seconds.get("train")
    sent = (result.get("bytes") or {}).get("up_per_round")
    return {
        "parameters": parameters.get("trainable"),
        "travelling": parameters.get("federated"),
        "rounds": rounds,
        "best_round": result.get("best_round"),
        "seconds": seconds.get("total", record.seconds),
        "train_seconds": train,
        "train_seconds_per_round": train / rounds if train is not None and rounds else None,
        "megabytes_per_round": None if sent is None else sent / 1e6,
    }
