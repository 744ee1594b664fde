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
    shelves: dict[str, list[Arm]] = {_title(row.rate): [] for row in printed.rows}
    for arm in grid.arms:
        if arm.mode == mode and _belongs(grid, printed, arm):
            title = _title(_rate(arm.regime))
            known = _is_plain(arm.regime) and title in shelves
            shelves.setdefault(title if known else arm.regime.loss, []).append(arm)
    notes: list[str] = []
    groups: dict[str, list[Line]] = {}
    for title, arms in shelves.items():
        lines: list[Line] = []
        for row in (row for row in printed.rows if _title(row.rate) == title):
            if row.doubt:
                place = f"{row.name}, {title}" if title else row.name
                notes.append(f"Note {len(notes) + 1}, {place}: {row.doubt}")
            doubt = len(notes) if row.doubt else None
            ours = [arm for arm in arms if _is(grid, row, arm, printed)]
            # Another label of the same model is a variant that the thesis has not.
            ours = [arm for arm in ours if arm.method.label == ours[0].method.label]
            lines += [Line(arm, row, doubt) for arm in ours] or [Line(None, row, doubt)]
        beside = {line.arm for line in lines}
        groups[title] = [*lines, *(Line(arm) for arm in arms if arm not in beside)]
    return groups, tuple(notes)


def _belongs(grid: GridRecord, printed: Published, arm: Arm) -> bool:
    if _letters(arm.regime.task) != _letters(printed.task):
        return False
    if printed.ablation:
        first = printed.rows[0]
        same = clinical(grid, arm.regime) == first.clinical and _rate(arm.regime) == first.rate
        return same and arm.method.model == "mmare" and _is_plain(arm.regime)
    family = [
        other
        for other in _plain_first(grid, arm)
        if (other.method.label, other.method.strategy) == (arm.method.label, arm.method.strategy)
    ]
    plain = not arm.method.ablation or arm == reference(grid, family)
    return plain and variant(grid, arm) == (True, "pairwise")


def _is(grid: GridRecord, row: PublishedRow, arm: Arm, printed: Published) -> bool:
    """Whether an arm is what a row was printed of; of several arms that are one variant, the first."""
    if arm.method.model != row.model or clinical(grid, arm.regime) != row.clinical:
        return False
    if not printed.ablation:
        return True
    alike = (
        other
        for other in _plain_first(grid, arm)
        if other.method.strategy == arm.method.strategy
        and other.method.model == row.model
        and variant(grid, other) == (row.conditioning, row.fusion)
    )
    return arm == next(alike, None)


def _plain_first(grid: GridRecord, arm: Arm) -> list[Arm]:
    """The arms on the same data in the same mode, those without a change first."""
    return sorted(grid.of(arm.regime, arm.mode), key=lambda other: bool(other.method.ablation))


def _is_plain(regime: Regime) -> bool:
    """Whether a regime is one of the thesis's: nothing is taken away but at random."""
    return regime.mechanism in {None, "mcar"} and not regime.arguments


def _rate(regime: Regime) -> float | None:
    return regime.rate or None if regime.mechanism else None


def _title(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.4g} % missing rate"


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())
