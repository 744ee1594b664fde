"""SuperNode with adaptive polling that deregisters a killed predecessor.

Patches five things for which Flower has no settings:

- polling for messages, replies and objects: often during work, less and less when idle;
- lost connections: retried at least every 2 s instead of every 20 s;
- lost responses (`client.relay.patched.lost_replies`): the coordinator considers a message in one delivered
  and would wait for its reply until the deadline. Going offline for a moment makes it send the message again;
- a killed SuperNode: the coordinator holds its connection for a minute, admits no other node of the site and
  waits for a reply that cannot come. The successor first deregisters it, so the site is back in seconds;
- shutdown: SuperLink checks whether a node is gone before it checks for its reply. So the node finishes the
  current message and stays until the reply must have been picked up.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import httpx
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.relay.patch_points import (
    FLEET,
    HEARTBEAT,
    PULL,
    RETRY,
    SUPERNODE,
    WIRE,
    apply_default,
    named,
    replace,
)
from client.relay.patched.clock import PICKUP_S, AdaptiveClock
from client.relay.patched.lost_replies import LostResponses
from mmare.host.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["warm_up"]

LOG = logging.getLogger("flwr.mmare")  # child of Flower's logger, so that it is printed

MESSAGE_POLL_S: Final = 3  # Flower's; only slept if the coordinator has no message
REPLY_POLL_S: Final = 0.5  # Flower's
BUSY: Final = {MESSAGE_POLL_S: 0.2, REPLY_POLL_S: 0.05}
BACKOFF_S: Final = 0.05  # first retry of a missing object, then doubling; Flower's is 1 s
LONGEST_BACKOFF_S: Final = 2.0  # Flower's is 10 s
MOST_TRIES: Final = 2500  # as long in total as Flower's 500 tries of 10 s
RETRY_S: Final = 2  # longest pause before reconnecting; Flower's is 20 s
CONNECT: Final = httpx.Timeout(30.0, connect=5.0)  # Flower's is 30 s for every phase
LEAVE_S: Final = 5.0  # for the coordinator to notice that a node is offline: it polls every 0.2 s
CONTACT_S: Final = 2.0  # shortest interval between updates of the contact file
SAY_S: Final = 3600.0  # between lines of a node that waits


def warm_up(folder: Path) -> None:
    """Patch Flower's SuperNode, to be started after this.

    It writes its node id (``node``) and the time of its last contact (``contact``) into ``folder``.
    """
    life = _Lifecycle(folder)
    clock = AdaptiveClock(BUSY, on_pause=life.paused)
    life.worked = clock.worked
    signal.signal(signal.SIGUSR1, life.finish)
    stock_connection = named(SUPERNODE, "http_request_response")
    stock_pauses = named(HEARTBEAT, "exponential")

    @contextmanager
    def connection(*args: Any, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401 - Flower's
        coordinator = _Coordinator(*args[:4])
        life.deregister_predecessor(coordinator)
        with stock_connection(*args, **kwargs) as found:
            node_id, receive, *others, push_object, confirm = found
            life.joined(node_id)
            ask = life.receiving(receive, lambda: coordinator.deregister(node_id, rejoin=True))
            yield (node_id, ask, *others, life.lost.pushing(push_object), confirm)

    def pauses(base_delay: float = 1, multiplier: float = 2, max_delay: int | None = None) -> Any:  # noqa: ANN401
        return stock_pauses(base_delay, multiplier, min(max_delay or RETRY_S, RETRY_S))

    stock_heartbeat = named(FLEET, "FleetHttpClient.SendNodeHeartbeat")

    def heartbeat(client: Any, request: Any) -> Any:  # noqa: ANN401 - Flower's
        found = stock_heartbeat(client, request)
        life.in_contact()
        return found

    life.lost.watch()
    replace(FLEET, "FleetHttpClient.SendNodeHeartbeat", heartbeat)
    replace(SUPERNODE, "time", clock)
    replace(SUPERNODE, "http_request_response", connection)
    replace(HEARTBEAT, "exponential", pauses)
    replace(RETRY, "MAX_RETRY_DELAY", RETRY_S)
    apply_default(PULL, "pull_objects", "initial_backoff", BACKOFF_S)
    apply_default(PULL, "pull_objects", "backoff_cap", LONGEST_BACKOFF_S)
    apply_default(PULL, "pull_objects", "max_tries_per_object", MOST_TRIES)
    apply_default(WIRE, "ProtobufClient.__init__", "timeout", CONNECT)


class _Coordinator:
    """A coordinator, reached with the arguments of Flower's connection; ``keys`` may be None."""

    def __init__(
        self, address: str, insecure: bool, certificates: bytes | str | None, keys: tuple[Any, Any] | None
    ) -> None:
        self._address = (address, insecure, certificates)
        self._keys = keys

    def deregister(self, node_id: int, *, rejoin: bool = False) -> bool:
        """Report a node of this site offline and wait until that has been noticed; then optionally rejoin.

        Returns:
            False if nodes have no keys, the coordinator does not answer, or the node was offline.
        """
        if self._keys is None:
            return False
        interceptors: list[Any] = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(*self._keys),
        ]
        try:
            with FleetHttpClient.from_server_address(*self._address, interceptors) as client:
                client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
                time.sleep(LEAVE_S)
                if rejoin:  # otherwise the next heartbeat would
                    client.SendNodeHeartbeat(
                        SendNodeHeartbeatRequest(
                            node=Node(node_id=node_id), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
                        )
                    )
        except (httpx.HTTPError, RuntimeError, ValueError):
            return False
        return True


class _Lifecycle:
    """State of a SuperNode: its current message, its shutdown, and the files it leaves for its successor."""

    def __init__(self, folder: Path) -> None:
        self._node = folder / "node"
        self._contact = folder / "contact"
        self._contact_noted = 0.0
        self._said = time.monotonic()  # or worked: when the log last showed life
        self._busy = False
        self._stopping = False
        self._replied = -math.inf
        self.lost = LostResponses()
        self.worked: Callable[[], None] = lambda: None

    def deregister_predecessor(self, coordinator: _Coordinator) -> None:
        """Deregister this site's last SuperNode unless it did so itself."""
        try:
            last = json.loads(self._node.read_text())
        except (OSError, ValueError):
            return
        if last.get("boot") != _boot():  # a reboot takes longer than the minute
            return
        if coordinator.deregister(int(last["node_id"])):
            LOG.info("Deregistered the last SuperNode of this site at the coordinator.")

    def joined(self, node_id: int) -> None:
        """Write the node id for the successor, which without it has to wait for a minute."""
        try:
            write_whole(self._node, json.dumps({"node_id": node_id, "boot": _boot()}).encode(), mode=0o600)
        except OSError as error:  # such as a full disk
            LOG.warning("The node id cannot be written (%s).", error.strerror)

    def receiving(self, receive: Callable[[], Any], rejoin: Callable[[], object]) -> Callable[[], Any]:
        """Wrap Flower's ``receive``, which retries until it has a response, to track the current message.

        ``rejoin`` is called if that response has no message and one before it was lost.
        """

        def ask() -> Any:  # noqa: ANN401 - as Flower's
            if self._busy:
                self._busy, self._replied = False, time.monotonic()
            if self._stopping:
                self._exit()
            self.lost.forget()
            found = receive()
            self._busy = found is not None
            if found is not None:
                self.worked()
            elif self.lost.message:
                LOG.info("A response of the coordinator was lost; requesting its message again.")
                rejoin()
            return found

        return ask

    def paused(self, seconds: float) -> None:
        """Called for each pause of Flower's loop; `MESSAGE_POLL_S`: the coordinator has answered."""
        now = time.monotonic()
        if self._busy:
            self.worked()
            self._said = now
        if seconds != MESSAGE_POLL_S:
            return
        self.in_contact()
        if now - self._said > SAY_S:
            self._said = now
            LOG.info("Connected; no message for an hour.")

    def in_contact(self) -> None:
        """Note that the coordinator has just answered; called by the heartbeat's thread, too."""
        now = time.monotonic()
        if now - self._contact_noted > CONTACT_S:
            self._contact_noted = now
            with suppress(OSError):  # such as a full disk
                self._contact.touch()

    def finish(self, _number: int, _frame: FrameType | None) -> None:
        """Accept no further message and exit after the current one."""
        self._stopping = True
        if not self._busy:
            self._exit()

    def _exit(self) -> NoReturn:
        """Exit once the coordinator has had time to pick up the last reply."""
        time.sleep(max(0.0, self._replied + PICKUP_S - time.monotonic()))
        raise SystemExit(0)


def _boot() -> str:
    """Id of the machine's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
