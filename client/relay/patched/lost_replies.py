"""Answers of the coordinator that were lost on their way to SuperNode, and what SuperNode makes of it.

A question that is asked again after its answer was lost is not always answered the same:

- a message that the lost answer carried counts as delivered, and is not given again;
- a part of a reply that had arrived is refused the second time, and Flower drops the reply for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import httpx
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from client.relay.flower_seams import FLEET, named, replace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Losses"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which the program shows

NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
)  # the rest may be lost answers


class Losses:
    """What may have been lost of the exchange under way."""

    def __init__(self) -> None:
        self.message = False  # an answer that may have carried one
        self._parts: set[str] = set()  # that may have arrived, though nobody has said so

    def watch(self) -> None:
        """Notice from now on, in Flower's client, which questions got no answer."""
        _watch("PullMessages", self._lost_message)
        _watch("PushObject", lambda request: self._parts.add(request.object_id))

    def forget(self) -> None:
        """A new exchange begins."""
        self.message = False
        self._parts.clear()

    def pushing(self, push: Callable[[int, str, str, bytes], None]) -> Callable[[int, str, str, bytes], None]:
        """Flower's function that sends a part of a reply; a part that was there already is no failure."""

        def send(run_id: int, session_id: str, object_id: str, contents: bytes) -> None:
            try:
                push(run_id, session_id, object_id, contents)
            except ObjectPushError:
                if object_id not in self._parts:
                    raise
                LOG.info("A part of the reply had arrived, though its receipt was lost.")

        return send

    def _lost_message(self, _request: object) -> None:
        self.message = True


def _watch(name: str, note: Callable[[Any], object]) -> None:
    stock = named(FLEET, f"FleetHttpClient.{name}")

    def question(client: Any, request: Any) -> Any:  # noqa: ANN401 - Flower's
        try:
            return stock(client, request)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if not isinstance(error, NOT_SENT):
                note(request)
            raise

    replace(FLEET, f"FleetHttpClient.{name}", question)
