"""Models shared by the services of one process, their device and CPU threads, and what runs begin with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final

import torch

from client.data.latest import Latest
from mmare.errors import InputError, SiteCode, SiteError
from mmare.host.memory import keep_freed_memory
from mmare.models.registry import build_model
from mmare.package.graft import graft
from mmare.package.start import StartModel
from mmare.wire.tensors import global_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study

__all__ = ["ModelPool", "Origin"]

LOG = logging.getLogger(__name__)

FindStart = Callable[[str], StartModel | None]  # by digest, where a site keeps start models


def no_start(_digest: str) -> StartModel | None:
    """Where no start model is kept."""
    return None


@dataclass(frozen=True)
class Origin:
    """The model that a run begins with: the seed's own, with what fits of the study's start model in it."""

    tensors: Mapping[str, Tensor]  # which must not be changed
    fixed: frozenset[str] = frozenset()  # scaling that is the start model's


MOST_STUDIES: Final = 2  # whose models are kept, as of the tables


class ModelPool:
    """Models to borrow, so that a hundred simulated sites in one process need not hold a hundred.

    Args:
        device: Where models live.
        threads: CPU threads; another number sums in another order and changes the last bits.
        find_start: Where start models are kept.
    """

    def __init__(self, device: torch.device, threads: int = 1, find_start: FindStart = no_start) -> None:
        keep_freed_memory()
        self._device = device
        self._threads = threads
        self._find_start = find_start
        self._lock = Lock()
        self._origin: Latest[tuple[str, int], Origin] = Latest(MOST_STUDIES)
        self._idle: Latest[tuple[str, int], list[MultimodalModel]] = Latest(MOST_STUDIES)

    def apply_threads(self) -> None:
        """Apply the thread count to the calling thread: PyTorch keeps it per thread."""
        torch.set_num_threads(self._threads)

    def origin(self, study: Study) -> Origin:
        """What runs of a study begin with.

        Raises:
            SiteError: If the study names a start model that is not here, or does not fit.
        """
        key = (study.hash, study.seed)
        with self._lock:
            origin = self._origin.get(key)
            if origin is None:
                origin = _origin_of(study, self._find_start)
                self._origin.put(key, origin)
            return origin

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


def _origin_of(study: Study, find_start: FindStart) -> Origin:
    model = build_model(study)
    if study.start is None:
        return Origin(global_tensors(model))
    start = find_start(study.start.digest)
    if start is None:
        LOG.error("no start model %s is here; mmare-site install keeps a package", study.start.digest)
        raise SiteError(SiteCode.START)
    try:
        fixed = graft(model, study, start).fixed
    except InputError as error:
        LOG.error("%s", error)  # noqa: TRY400 - the sentence is enough
        raise SiteError(SiteCode.START) from None
    return Origin(global_tensors(model), frozenset(fixed))
