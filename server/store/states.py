"""Merged metric states of a run's model, as its journal keeps them: what decisions can be made of later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mmare.errors import InputError
from mmare.metrics.calibration import CalibrationState
from mmare.metrics.state import MetricState

if TYPE_CHECKING:
    from mmare.tasks.base import State

__all__ = ["Kept", "KeptStates", "parse_states"]

S = TypeVar("S", bound="State")


@dataclass(frozen=True)
class Kept(Generic[S]):
    """The states of one split."""

    pooled: S
    sites: Mapping[str, S] = field(default_factory=dict)  # none under secure sums
    calibration: CalibrationState | None = None  # over all sites, if the study names it

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `parse_states` reverses it."""
        return {
            "pooled": self.pooled.to_dict(),
            "sites": {site: state.to_dict() for site, state in self.sites.items()},
            "calibration": self.calibration.to_dict() if self.calibration else None,
        }


KeptStates = Kept[MetricState]  # of classes


def parse_states(splits: Mapping[str, Any], n_classes: int) -> dict[str, KeptStates]:
    """The states of classes by split; empty for a run of an earlier version, which kept none.

    Raises:
        InputError: If they are damaged.
    """
    try:
        return {
            name: KeptStates(
                MetricState.from_dict(split["pooled"], n_classes),
                {site: MetricState.from_dict(state, n_classes) for site, state in split["sites"].items()},
                CalibrationState.from_dict(split["calibration"], n_classes) if split["calibration"] else None,
            )
            for name, split in splits.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"the metric states in the run's journal are damaged ({error})") from None
