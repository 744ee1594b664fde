"""Scaled rows of a split, kept between rounds: scaling is frozen during a run."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final
from weakref import ref

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from client.data.dataset import SiteData
    from mmare.models.adapters import InputScaling

__all__ = ["ScaledRows", "scaled_rows"]


class ScaledRows:
    """The rows used last, over all sites of a process, up to ``most`` bytes; what is larger is not kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # by the id of the rows asked for

    def of(self, scaling: InputScaling, data: SiteData, rows: Tensor) -> Tensor:
        """Rows ``(N, W)`` of ``data`` at ``rows``, on the device of ``scaling``; to be read only."""
        moments = [*scaling.buffers()]
        with self._lock:
            found = self._kept.get(id(rows))
            if found is not None and found.is_of(data, scaling, moments):
                self._kept.move_to_end(id(rows))
                return found.scaled
        device = moments[0].device
        with torch.no_grad():
            scaled: Tensor = scaling(
                [part[rows].to(device) for part in data.embedding], data.present[rows].to(device)
            )
        kept = _Kept(rows, ref(data), _settings(scaling), [moment.clone() for moment in moments], scaled)
        with self._lock:
            self._kept[id(rows)] = kept
            self._kept.move_to_end(id(rows))
            while sum(each.scaled.nbytes for each in self._kept.values()) > self._most:
                self._kept.popitem(last=False)
        return scaled


@dataclass(frozen=True)
class _Kept:
    """Scaled rows and what they follow from."""

    rows: Tensor  # held, so that no others get its id
    data: ref[SiteData]
    settings: tuple[object, ...]
    moments: list[Tensor]
    scaled: Tensor

    def is_of(self, data: SiteData, scaling: InputScaling, moments: list[Tensor]) -> bool:
        """Whether they follow from these."""
        return (
            self.data() is data
            and self.settings == _settings(scaling)
            and len(self.moments) == len(moments)
            and all(
                one.device == other.device and torch.equal(one, other)
                for one, other in zip(self.moments, moments, strict=True)
            )
        )


def _settings(scaling: InputScaling) -> tuple[object, ...]:
    return scaling.scalings, scaling.clip


_SHARED: Final = ScaledRows(32 * 2**20)
scaled_rows: Final = _SHARED.of
