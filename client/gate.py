"""What may leave a site: sizes and metric states of groups that are large enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from typing import TypeVar

    Group = TypeVar("Group", bound=Hashable)

__all__ = ["withheld_groups"]


def withheld_groups(sizes: Mapping[Group, int], min_count: int) -> set[Group]:
    """Groups of one partition whose size must not be told.

    A single withheld group could be read off the total, and so could two of one row each: the next smallest
    go with them until what is withheld is large enough together.

    Args:
        sizes: Rows per group; groups without rows are not there or 0.
        min_count: Smallest size that may be told; 0 tells all.

    Returns:
        The groups to withhold.

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
