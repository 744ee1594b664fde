"""The strategies that a study can name. A new one is one function and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from mmare.errors import StudyError
from server.aggregation import Contribution, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STRATEGIES", "Strategy", "fedavg", "strategy_of"]

Strategy = Callable[[Mapping[str, "Tensor"], Sequence[Contribution]], dict[str, "Tensor"]]


def fedavg(current: Mapping[str, Tensor], contributions: Sequence[Contribution]) -> dict[str, Tensor]:
    """FedAvg (McMahan et al. 2017): the mean of the sites' models, weighted by their training samples.

    Args:
        current: The model that the sites started from; tensors that no site returns stay.
        contributions: At least one with samples.
    """
    return {**current, **weighted_mean(contributions, {each.site: each.samples for each in contributions})}


STRATEGIES: Final[dict[str, Strategy]] = {"fedavg": fedavg}


def strategy_of(name: str) -> Strategy:
    """Look a strategy up.

    Raises:
        StudyError: If there is none of that name.
    """
    if name not in STRATEGIES:
        raise StudyError(
            f"[federation] strategy must be one of {', '.join(sorted(STRATEGIES))}, found {name!r}"
        )
    return STRATEGIES[name]
