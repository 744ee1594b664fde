"""Which cells of a grid belong beside which printed rows of the thesis."""

from __future__ import annotations

from simulation.grid_report.method_tables import Line, clinical, reference, variant
from simulation.grid_report.published_results import Published, PublishedRow
from simulation.grid_report.records import Arm, GridRecord, Regime

__all__ = ["thesis_groups"]


def thesis_groups(
    grid: GridRecord, printed: Published, mode: str
) -> tuple[dict[str, list[Line]], tuple[str, ...]]:
    """The rows of a thesis table: printed ones in their order with ours beside them, then our others.

    A printed row and an arm belong together if model, presence of clinical data, variant and rate agree.

    Returns:
        Heading -> rows, and the footnotes.
    """
    arms = [arm for arm in grid.arms if arm.mode == mode and _belongs(grid, printed, arm)]
    shelves: dict[tuple[str, float | None], list[Arm]] = {}
    for row in printed.rows:
        shelves.setdefault((_title(row.rate), row.rate), [])
    for arm in arms:
        rate = _rate(arm.regime)
        known = (_title(rate), rate)
        plain = arm.regime.mechanism in {None, "mcar"} and not arm.regime.arguments and known in shelves
        shelves.setdefault(known if plain else (arm.regime.loss, -1.0), []).append(arm)
    notes: list[str] = []
    groups: dict[str, list[Line]] = {}
    for (title, rate), members in shelves.items():
        lines: list[Line] = []
        for row in printed.rows:
            if row.rate != rate:
                continue
            if row.doubt:
                place = f", {title}" if row.rate is not None else ""
                notes.append(f"Note {len(notes) + 1}, {row.name}{place}: {row.doubt}")
            doubt = len(notes) if row.doubt else None
            ours = [arm for arm in members if _is(grid, row, arm, printed)]
            # Another label of the same model is a variant that the thesis has not.
            ours = [arm for arm in ours if arm.method.label == ours[0].method.label]
            lines += [Line(arm, row, doubt) for arm in ours] or [Line(None, row, doubt)]
        beside = {line.arm for line in lines}
        groups[title] = [*lines, *(Line(arm) for arm in members if arm not in beside)]
    return groups, tuple(notes)


def _belongs(grid: GridRecord, printed: Published, arm: Arm) -> bool:
    if _letters(arm.regime.task) != _letters(printed.task):
        return False
    if not printed.ablation:
        plain = variant(grid, arm) == (True, "pairwise")
        return plain and (not arm.method.ablation or arm == reference(grid, _family(grid, arm)))
    row = printed.rows[0]
    return (
        arm.method.model == "mmare"
        and clinical(grid, arm.regime) == row.clinical
        and _rate(arm.regime) == row.rate
        and arm.regime.mechanism in {None, "mcar"}
        and not arm.regime.arguments
    )


def _family(grid: GridRecord, arm: Arm) -> list[Arm]:
    """The ablations of one model; the one without a change first."""
    alike = [
        other
        for other in grid.arms
        if (other.regime, other.mode, other.method.label, other.method.strategy)
        == (arm.regime, arm.mode, arm.method.label, arm.method.strategy)
    ]
    return sorted(alike, key=lambda other: bool(other.method.ablation))


def _is(grid: GridRecord, row: PublishedRow, arm: Arm, printed: Published) -> bool:
    same = arm.method.model == row.model and clinical(grid, arm.regime) == row.clinical
    if not printed.ablation:
        return same
    first = next(
        (
            other
            for other in sorted(grid.arms, key=lambda other: bool(other.method.ablation))
            if (other.regime, other.mode, other.method.strategy)
            == (arm.regime, arm.mode, arm.method.strategy)
            and other.method.model == row.model
            and variant(grid, other) == (row.conditioning, row.fusion)
        ),
        None,
    )
    return same and arm == first


def _rate(regime: Regime) -> float | None:
    return regime.rate or None if regime.mechanism else None


def _title(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.4g} % missing rate"


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())
