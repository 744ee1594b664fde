"""Models that arrive at a site: checked against the last one of their run, which stays on its disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from client.privacy.descent import DescentError, SeenModel, check_descent, check_fixed, model_number
from mmare.errors import SiteCode, SiteError
from mmare.tasks.registry import task_of
from mmare.wire.messages import Task, WireError
from mmare.wire.received import flat_of
from mmare.wire.tensors import unpack

if TYPE_CHECKING:
    from torch import Tensor

    from client.training.kept.state import StateStore
    from client.training.model_pool import Origin
    from mmare.study.study import Study
    from mmare.wire.messages import Layout, Request

__all__ = ["check_arrival", "keep_arrival"]

LOG = logging.getLogger(__name__)

COORDINATED: Final = ("scaling.", "task.")  # prefixes of buffers that come from all sites


@dataclass(frozen=True)
class _Question:
    """What a check is about; held, so that nothing else gets the same identity."""

    objects: tuple[object, ...]  # none of which changes
    facts: tuple[object, ...]

    def is_like(self, other: _Question) -> bool:
        same = (one is another for one, another in zip(self.objects, other.objects, strict=True))
        return self.facts == other.facts and all(same)


_PASSED: Final[list[_Question]] = []  # the last one of this process that was answered well


def check_arrival(
    request: Request,
    study: Study,
    flat: Tensor,
    layout: Layout,
    store: StateStore,
    origin: Origin,
) -> None:
    """Check that a model descends from what this site has seen.

    Without a stored one, at a site that joins late or lost its cache, what the run begins with is the last.
    The sites of a simulation are handed the same tensors, for which one check is enough.

    Args:
        request: That brought it.
        study: Approved.
        flat: The model, ``(bytes,)`` uint8, as of `flat_of`.
        layout: Of it.
        store: Of the run's last model.
        origin: What runs of the study begin with.

    Raises:
        SiteError: If it does not descend from the last one.
    """
    number, last = model_number(request), store.last_model(request.run)
    facts = (number, last and last[0], study.hash, study.seed)
    question = _Question((flat, last and last[1], origin), facts)
    if any(map(question.is_like, _PASSED)):
        return
    received = unpack(flat, layout)
    try:
        seen = None if last is None else SeenModel(last[0], unpack(last[1], layout))
    except WireError:  # of another study under the same name
        seen = None
    learned = {f"task.{name}" for name, _ in task_of(study).named_parameters()}
    scaling = {name for name in received if name.startswith(COORDINATED)} - learned
    if seen is None:
        seen = SeenModel(0, origin.tensors, sent=False)
    elif number == 0:  # the run began anew, with the scaling that it had
        kept = {name: seen.tensors[name] for name in scaling}
        seen = SeenModel(0, {**origin.tensors, **kept})
    try:
        check_fixed(received, origin.tensors, origin.fixed)
        check_descent(received, number, seen, scaling, study)
    except DescentError as error:
        LOG.error("refused: %s", error)  # noqa: TRY400 - the sentence is enough
        raise SiteError(SiteCode.MODEL) from None
    _PASSED[:] = [question]


def keep_arrival(request: Request, payload: bytes, store: StateStore) -> None:
    """Store the model of an answered request: the next one must descend from it."""
    if request.task in (Task.TRAIN, Task.EVALUATE) and not request.final:
        store.save_model(request.run, model_number(request), flat_of(payload))
