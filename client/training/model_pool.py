"""Models shared by the services of one process, with their device and CPU threads."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Final

import torch

from client.data.latest import Latest
from mmare.models.registry import build_model
from mmare.wire.tensors import global_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study

__all__ = ["ModelPool"]

MOST_STUDIES: Final = 2  # whose models are kept, as of the tables


class ModelPool:
    """Models to borrow, so that a hundred simulated sites in one process need not hold a hundred.

    Args:
        device: Where models live.
        threads: CPU threads; another number sums in another order and changes the last bits.
    """

    def __init__(self, device: torch.device, threads: int = 1) -> None:
        self._device = device
        self._threads = threads
        self._lock = Lock()
        self._fresh: Latest[tuple[str, int], Mapping[str, Tensor]] = Latest(MOST_STUDIES)
        self._idle: Latest[tuple[str, int], list[MultimodalModel]] = Latest(MOST_STUDIES)

    def apply_threads(self) -> None:
        """Apply the thread count to the calling thread: PyTorch keeps it per thread."""
        torch.set_num_threads(self._threads)

    def fresh(self, study: Study) -> Mapping[str, Tensor]:
        """The tensors of the seed's own model, which must not be changed."""
        key = (study.hash, study.seed)
        with self._lock:
            fresh = self._fresh.get(key)
            if fresh is None:
                fresh = global_tensors(build_model(study))
                self._fresh.put(key, fresh)
            return fresh

    @contextmanager
    def borrow(self, study: Study) -> Iterator[MultimodalModel]:
        """A model of the study with arbitrary weights: the borrower loads its own."""
        key = (study.hash, study.seed)
        with self._lock:
            idle = self._idle.get(key)
            model = idle.pop() if idle else None
        if model is None:
            model = build_model(study).to(self._device)
        try:
            yield model
        finally:
            with self._lock:
                self._idle.put(key, [*(self._idle.get(key) or []), model])
