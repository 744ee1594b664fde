"""SuperNode with short pauses, which takes its leave of the coordinator even after it was killed.

Five things that Flower has no settings for, around its own SuperNode:

- pauses between looks for messages, replies and objects: short with work, longer and longer without;
- a connection that was lost: tried again every two seconds at most, not every twenty;
- an answer that was lost on its way here (`client.relay.patched.lost_replies`): the coordinator
  holds the message that it may have carried to be delivered and waits for a reply until its deadline. So
  this node goes offline for a moment, whereby the coordinator gives the message up and asks again;
- a SuperNode that was killed: the coordinator holds its connection for a minute, in which it lets no other in
  and waits for an answer that will not come. The next one of the same site says first that the last one is
  gone, so that the message is given up at once and the site is back in seconds;
- a SuperNode that is told to stop: SuperLink looks first whether a node is gone, then whether its reply is
  there. So it finishes the message in hand and stays until its reply must have been taken.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from contextlib import contextmanager
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

from client.relay.flower_seams import HEARTBEAT, PULL, RETRY, SUPERNODE, WIRE, apply_default, named, replace
from client.relay.patched.clock import TAKEN_S, BriskClock
from client.relay.patched.lost_replies import Losses
from mmare.host.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["warm_up"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which the program shows

LOOK_S: Final = 3  # Flower's pause between looks for a message, and what it says that none is in hand
WORK_S: Final = 0.5  # Flower's pause between looks for the reply
BUSY: Final = {LOOK_S: 0.2, WORK_S: 0.05}
BACKOFF_S: Final = 0.05  # until an object that was not there is asked for again; Flower's is 1 s, doubling
LONGEST_BACKOFF_S: Final = 2.0  # Flower's is 10 s
MOST_TRIES: Final = 2500  # as long as Flower's 500 tries of 10 s
RETRY_S: Final = 2  # the longest pause before a lost connection is tried again; Flower's is 20 s
CONNECT: Final = httpx.Timeout(30.0, connect=5.0)  # Flower's is 30 s for all
LEAVE_S: Final = 5.0  # for the coordinator to see that a node is gone: it looks every 0.2 s
CONTACT_S: Final = 2.0  # between notes of a contact


def warm_up(folder: Path) -> None:
    """Change Flower's SuperNode, which is started after this.

    Args:
        folder: Where it notes its number (``node``) and its last contact (``contact``).
    """
    life = _Life(folder)
    clock = BriskClock(BUSY, on_pause=life.paused)
    life.worked = clock.worked
    signal.signal(signal.SIGUSR1, life.finish)
    stock_connection = named(SUPERNODE, "http_request_response")
    stock_pauses = named(HEARTBEAT, "exponential")

    @contextmanager
    def connection(*args: Any, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401 - Flower's
        door = _Door(*args[:4])
        life.leave_for_the_last(door)
        with stock_connection(*args, **kwargs) as found:
            node_id, receive, *others, push_object, confirm = found
            life.joined(node_id)
            asked = life.receiving(receive, lambda: door.leave(node_id, come_back=True))
            yield (node_id, asked, *others, life.losses.pushing(push_object), confirm)

    def pauses(base_delay: float = 1, multiplier: float = 2, max_delay: int | None = None) -> Any:  # noqa: ANN401
        return stock_pauses(base_delay, multiplier, min(max_delay or RETRY_S, RETRY_S))

    life.losses.watch()
    replace(SUPERNODE, "time", clock)
    replace(SUPERNODE, "http_request_response", connection)
    replace(HEARTBEAT, "exponential", pauses)
    replace(RETRY, "MAX_RETRY_DELAY", RETRY_S)
    apply_default(PULL, "pull_objects", "initial_backoff", BACKOFF_S)
    apply_default(PULL, "pull_objects", "backoff_cap", LONGEST_BACKOFF_S)
    apply_default(PULL, "pull_objects", "max_tries_per_object", MOST_TRIES)
    apply_default(WIRE, "ProtobufClient.__init__", "timeout", CONNECT)


class _Door:
    """The coordinator, as Flower's own connection reaches it.

    Args:
        address: HOST:PORT.
        insecure: Without TLS.
        certificates: Of the authority.
        keys: The node's, private and public; none where nodes are not known by keys.
    """

    def __init__(
        self, address: str, insecure: bool, certificates: bytes | str | None, keys: tuple[Any, Any] | None
    ) -> None:
        self._address = (address, insecure, certificates)
        self._keys = keys

    def leave(self, node_id: int, *, come_back: bool = False) -> bool:
        """Say that a node of this site is offline, and wait until that has been seen; it may then come back.

        Returns:
            Whether it was said: not where nodes have no keys, where nobody is there, or it was offline.
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
                if come_back:  # the next heartbeat would do it, too
                    client.SendNodeHeartbeat(
                        SendNodeHeartbeatRequest(
                            node=Node(node_id=node_id), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
                        )
                    )
        except (httpx.HTTPError, RuntimeError, ValueError):
            return False
        return True


class _Life:
    """What a SuperNode of this site does and leaves behind."""

    def __init__(self, folder: Path) -> None:
        self._node = folder / "node"
        self._contact = folder / "contact"
        self._noted = 0.0
        self._in_hand = False
        self._finishing = False
        self._replied = -math.inf
        self.losses = Losses()
        self.worked: Callable[[], None] = lambda: None

    def leave_for_the_last(self, door: _Door) -> None:
        """Say that this site's last SuperNode is gone, if there was one and nobody has said so."""
        try:
            last = json.loads(self._node.read_text())
        except (OSError, ValueError):
            return
        if last.get("boot") != _boot():  # after a restart of the machine a minute has gone by
            return
        if door.leave(int(last["node_id"])):
            LOG.info("Told the coordinator that the last SuperNode of this site is gone.")

    def joined(self, node_id: int) -> None:
        """Note who we are, for the next one."""
        write_whole(self._node, json.dumps({"node_id": node_id, "boot": _boot()}).encode(), mode=0o600)

    def receiving(self, receive: Callable[[], Any], rejoin: Callable[[], object]) -> Callable[[], Any]:
        """Flower's function that asks for a message, which says whether one is in hand.

        Args:
            receive: Flower's; it asks until it has an answer.
            rejoin: Called where that answer is that there is none, and one before it was lost.
        """

        def ask() -> Any:  # noqa: ANN401 - as Flower's
            if self._in_hand:
                self._in_hand, self._replied = False, time.monotonic()
            if self._finishing:
                self._leave()
            self.losses.forget()
            found = receive()
            self._in_hand = found is not None
            if found is not None:
                self.worked()
            elif self.losses.message:
                LOG.info(
                    "An answer of the coordinator was lost: whatever it carried will be asked for again."
                )
                rejoin()
            return found

        return ask

    def paused(self, seconds: float) -> None:
        """Flower's loop pauses; for `LOOK_S` only once the coordinator has said that nothing is there."""
        if self._in_hand:
            self.worked()
        now = time.monotonic()
        if seconds == LOOK_S and now - self._noted > CONTACT_S:
            self._noted = now
            self._contact.touch()

    def finish(self, _number: int, _frame: FrameType | None) -> None:
        """Take no message more, and end once none is in hand."""
        self._finishing = True
        if not self._in_hand:
            self._leave()

    def _leave(self) -> NoReturn:
        """End, once the coordinator has had the time to take the last reply."""
        time.sleep(max(0.0, self._replied + TAKEN_S - time.monotonic()))
        raise SystemExit(0)


def _boot() -> str:
    """This start of this machine: the number of a SuperNode is of use to no other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
