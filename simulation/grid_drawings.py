"""Drawings of a grid's report: from arms and their colours to figures, where there is something to draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from simulation.figures import Drawing, Interval, interval_figure
from simulation.grid_figures import Dot, Shape, Trend, radar_figure, rate_figure, size_figure
from simulation.grid_page import Key
from simulation.grid_records import Arm, GridRecord, Method, Regime
from simulation.grid_tables import line_name, told
from simulation.results import HEADLINE

__all__ = ["Keys", "drawings", "forests", "used"]

Keys = Mapping[tuple[Method, str], Key]
Position = Callable[[Arm], int]

_CROWD = 10  # methods beyond which a radar is a tangle
_SPOKES = 3  # fewer make no area


def used(keys: Keys, members: Mapping[str, Sequence[Arm]]) -> list[Key]:
    """The colours that some arms have, each once."""
    pairs = ((arm.method, arm.regime.data) for arms in members.values() for arm in arms)
    return list(dict.fromkeys(keys[pair] for pair in pairs))


def forests(
    grid: GridRecord, identity: str, members: Mapping[str, Sequence[Arm]], keys: Keys
) -> list[Drawing]:
    """Headline metrics of each group's methods as marks with bars of one standard deviation."""
    drawn = []
    for number, (title, arms) in enumerate(members.items()):
        if len(arms) < 2 or not any(grid.runs[arm] for arm in arms):  # noqa: PLR2004 - nothing to compare
            continue
        for metric in ("balanced_accuracy", "auc"):
            marks = []
            for arm in arms:
                found = told(grid, arm, metric)
                colour = keys[arm.method, arm.regime.data].variable
                marks.append(Interval(grid.name(arm.method), found.value, found.low, found.high, colour))
            name = f"{HEADLINE[metric]}: {title}"
            label = f"{name}; the bar is one standard deviation over seeds"
            drawn.append(
                Drawing(name, label, interval_figure(f"{identity}-forest-{number}-{metric}", label, marks))
            )
    return drawn


def drawings(
    grid: GridRecord,
    identity: str,
    columns: Mapping[str, str],
    members: Mapping[str, Sequence[Arm]],
    keys: Keys,
    *,
    radar: bool = True,
) -> list[Drawing]:
    """Figures 5.3 to 5.5: radar per group, AUC against the rate, metrics against the size."""
    places = {key: place for place, key in enumerate(dict.fromkeys(keys.values()))}
    arms = [arm for told_ in members.values() for arm in told_ if grid.runs[arm]]

    def position(arm: Arm) -> int:
        return places[keys[arm.method, arm.regime.data]]

    drawn = []
    spokes = {metric: title for metric, title in columns.items() if metric != "parameters"}
    sized = "parameters" in columns
    for number, (title, told_) in enumerate(members.items() if radar and not sized else ()):
        shapes = [
            Shape([told(grid, arm, metric).value for metric in spokes], position(arm))
            for arm in told_
            if grid.runs[arm]
        ]
        if not 0 < len(shapes) <= _CROWD or len(spokes) < _SPOKES:
            continue
        name = title or "All metrics"
        label = f"{name}: {', '.join(spokes.values())} of each method; the centre is not zero"
        figure = radar_figure(f"{identity}-radar-{number}", label, tuple(spokes.values()), shapes)
        drawn.append(Drawing(name, label, figure))
    drawn += _trends(grid, identity, arms, position)
    if sized or not radar:
        drawn += _sizes(grid, identity, arms, position)
    return drawn


def _trends(grid: GridRecord, identity: str, arms: Sequence[Arm], position: Position) -> list[Drawing]:
    """AUC against the missing rate, one drawing per mechanism with at least two rates.

    Where a method has one colour on all data, as in tables of no paper, one per data set, too.
    """
    apart = len({position(arm) for arm in arms}) < len({(arm.method, arm.regime.data) for arm in arms})
    found: dict[str, dict[Arm, list[tuple[float, float, float | None]]]] = {}
    for arm in arms:
        regime, value = arm.regime, told(grid, arm, "auc")
        if regime.mechanism and regime.rate is not None and value.value is not None:
            one = Arm(Regime(regime.data, regime.task, None, None), arm.method, arm.mode)
            kind = " ".join((f"AUC against the missing rate ({regime.mechanism.upper()})", *regime.arguments))
            lines = found.setdefault(f"{kind}: {regime.data}" if apart else kind, {})
            lines.setdefault(one, []).append((regime.rate, value.value, value.sd))
    drawn = []
    for number, (name, lines) in enumerate(found.items()):
        if max(map(len, lines.values())) < 2:  # noqa: PLR2004 - one rate is no curve
            continue
        trends = [Trend(sorted(points), position(arm)) for arm, points in lines.items()]
        label = f"{name}, mean and one standard deviation over seeds"
        drawn.append(Drawing(name, label, rate_figure(f"{identity}-rates-{number}", label, trends)))
    return drawn


def _sizes(grid: GridRecord, identity: str, arms: Sequence[Arm], position: Position) -> list[Drawing]:
    """Metrics against trainable parameters, where one set of rows holds models of different sizes."""
    regimes = {arm.regime.loss for arm in arms}
    sizes = {arm: told(grid, arm, "parameters").value for arm in arms}
    if len(regimes) != 1 or len({arm.method.model for arm in arms}) < 2 or not all(sizes.values()):  # noqa: PLR2004 - nothing to compare
        return []
    drawn = []
    for metric, title in HEADLINE.items():
        dots = []
        for arm in arms:
            found, size = told(grid, arm, metric), sizes[arm]
            if found.value is not None and size:
                twice = sum(other.method == arm.method for other in arms) > 1
                name = line_name(grid, arm, several=twice)
                dots.append(Dot(name, round(size * 1e6), found.value, found.sd, position(arm)))
        if dots:
            name = f"{title} against trainable parameters"
            label = f"{name} (log axis), mean and one standard deviation over seeds"
            drawn.append(Drawing(name, label, size_figure(f"{identity}-size-{metric}", label, dots)))
    return drawn
