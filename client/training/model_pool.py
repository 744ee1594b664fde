"""Models that the services of one process share, and what they compute with."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import torch

from mmare.models.registry import build_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study

__all__ = ["ModelPool"]


class ModelPool:
    """Models to borrow, so that a hundred simulated sites in one process need not hold a hundred.

    Args:
        device: Where models live.
        threads: CPU threads that they compute with; sums of another number of threads are other bits.
    """

    def __init__(self, device: torch.device, threads: int = 1) -> None:
        self._device = device
        self._threads = threads
        self._lock = Lock()
        self._idle: dict[tuple[str, int], list[MultimodalModel]] = {}

    def take_threads(self) -> None:
        """Let the calling thread compute with as many as are given: PyTorch keeps the number per thread."""
        torch.set_num_threads(self._threads)

    @contextmanager
    def borrow(self, study: Study) -> Iterator[MultimodalModel]:
        """A model of the study whose weights are anyone's: the borrower loads its own."""
        key = (study.hash, study.seed)
        with self._lock:
            idle = self._idle.setdefault(key, [])
            model = idle.pop() if idle else None
        if model is None:
            model = build_model(study).to(self._device)
        try:
            yield model
        finally:
            with self._lock:
                self._idle = {key: [*self._idle.get(key, []), model]}  # models of earlier studies go
