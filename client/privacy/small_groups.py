"""Statistical disclosure control: which small groups of patients an answer withholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from typing import TypeVar

    Group = TypeVar("Group", bound=Hashable)

__all__ = ["ShownGroups", "shown_groups", "withheld_groups", "withheld_patterns"]


@dataclass(frozen=True)
class ShownGroups:
    """What of one split may be told, in the roll call as in metrics: two rules could be subtracted."""

    classes: frozenset[int]  # whose size and metrics are withheld
    patterns: frozenset[str]  # the same


def shown_groups(patterns: Mapping[str, Sequence[int]], min_count: int, *, total_told: bool) -> ShownGroups:
    """Decide for one split, from the sizes per presence pattern and class.

    Args:
        patterns: Patients per pattern and class.
        min_count: Smallest size that may be disclosed; 0 discloses all.
        total_told: Whether the size of the split is known, as that of the train split is: then one withheld
            class follows from the others.

    Example:
        >>> sizes = {"11": [9, 40], "10": [0, 8]}
        >>> sorted(shown_groups(sizes, 10, total_told=False).classes)
        [0]
        >>> sorted(shown_groups(sizes, 10, total_told=True).classes)
        [0, 1]
    """
    sizes = dict(enumerate(map(sum, zip(*patterns.values(), strict=True))))
    classes = (
        withheld_groups(sizes, min_count)
        if total_told
        else {index for index, size in sizes.items() if 0 < size < min_count}
    )
    hidden = withheld_patterns(patterns, min_count)
    if any(sizes[index] for index in classes):
        hidden = set(patterns)  # together they would tell the class
    return ShownGroups(frozenset(classes), frozenset(hidden))


def withheld_groups(sizes: Mapping[Group, int], min_count: int) -> set[Group]:
    """Groups of one partition whose size must not be disclosed.

    A single withheld size follows from the total, and so do two of one row each: the next smallest groups are
    withheld too, until those withheld are large enough together.

    Args:
        sizes: Rows per group.
        min_count: Smallest size that may be disclosed; 0 discloses all.

    Example:
        >>> sorted(withheld_groups({"dead": 2, "alive": 40, "unknown": 0}, min_count=5))
        ['alive', 'dead']
    """
    filled = sorted((size, index, group) for index, (group, size) in enumerate(sizes.items()) if size > 0)
    n_withheld = sum(size < min_count for size, _, _ in filled)
    if n_withheld:
        together = sum(size for size, _, _ in filled[:n_withheld])
        while n_withheld < len(filled) and together < max(min_count, n_withheld + 1):
            together += filled[n_withheld][0]
            n_withheld += 1
    return {group for _, _, group in filled[:n_withheld]}


def withheld_patterns(sizes: Mapping[str, Sequence[int]], min_count: int) -> set[str]:
    """Presence patterns whose metric states, which contain class sizes, must not be disclosed.

    Those withheld must be large enough together in each class: they follow from the state of the whole split.

    Args:
        sizes: Rows per pattern and class.
        min_count: Smallest size that may be disclosed; 0 discloses all.

    Example:
        >>> sorted(withheld_patterns({"11": [9, 40], "10": [2, 8], "01": [6, 7]}, min_count=5))
        ['01', '10']
    """

    def small(counts: Sequence[int]) -> bool:
        return any(0 < count < min_count for count in counts)

    ordered = sorted(sizes, key=lambda name: (sum(sizes[name]), name))
    withheld = {name for name in ordered if small(sizes[name])}
    for name in ordered:
        together = [sum(counts) for counts in zip(*(sizes[each] for each in withheld), strict=True)]
        if not withheld or (len(withheld) > 1 and not small(together)):
            break
        withheld.add(name)
    return withheld
