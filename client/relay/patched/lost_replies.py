"""Detects responses of the coordinator that were lost on their way to SuperNode.

A retried request may be answered differently:

- a message in the lost response counts as delivered and is not sent again;
- a part of a reply that had arrived is refused the second time, and Flower then drops the reply.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import httpx
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from client.relay.patch_points import FLEET, named, replace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LostResponses"]

LOG = logging.getLogger("flwr.mmare")  # child of Flower's logger, so that it is printed

# request not sent, so no response can be lost
NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class LostResponses:
    """What may have been lost in the current exchange."""

    def __init__(self) -> None:
        self.message = False  # whether a response that may have carried one was lost
        self._parts: set[str] = set()  # of a reply, which may have arrived unconfirmed

    def watch(self) -> None:
        """Patch Flower's client to record requests without a response."""
        _watch("PullMessages", self._lost_message)
        _watch("PushObject", lambda request: self._parts.add(request.object_id))

    def forget(self) -> None:
        """Start a new exchange."""
        self.message = False
        self._parts.clear()

    def pushing(self, push: Callable[[int, str, str, bytes], None]) -> Callable[[int, str, str, bytes], None]:
        """Wrap Flower's ``push``, which sends a part of a reply, to accept one that has already arrived."""

        def send(run_id: int, session_id: str, object_id: str, contents: bytes) -> None:
            try:
                push(run_id, session_id, object_id, contents)
            except ObjectPushError:
                if object_id not in self._parts:
                    raise
                LOG.info("A part of the reply had arrived, but its confirmation was lost.")

        return send

    def _lost_message(self, _request: object) -> None:
        self.message = True


def _watch(name: str, record: Callable[[Any], object]) -> None:
    stock = named(FLEET, f"FleetHttpClient.{name}")

    def request_once(client: Any, request: Any) -> Any:  # noqa: ANN401 - Flower's
        try:
            return stock(client, request)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if not isinstance(error, NOT_SENT):
                record(request)
            raise

    replace(FLEET, f"FleetHttpClient.{name}", request_once)
