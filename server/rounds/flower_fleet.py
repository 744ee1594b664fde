"""The nodes of a Flower Grid: messages out, replies in, lost ones requested again."""

from __future__ import annotations

import inspect
import logging
import math
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from mmare.errors import Reason
from mmare.wire.line import LINE_KEY, LINE_RECORD, ROUND_BYTES_KEY
from mmare.wire.messages import (
    HEADER_KEY,
    HEADER_RECORD,
    PAYLOAD_KEY,
    PAYLOAD_RECORD,
    PAYLOAD_STYPE,
    Request,
    Task,
    decode,
)
from server.rounds.fleet import LATE, Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from flwr.serverapp import Grid

__all__ = ["POLL_S", "GridFleet", "shorten_polling"]

LOG = logging.getLogger("flwr.mmare")  # below Flower's own logger, which prints a run's output

POLL_S: Final = 0.2  # between polls for replies; the in-process Grid waits by itself
SETTLED_S: Final = 1.0  # for which the set of nodes must not change
BLOCKED_S: Final = 2.0  # a poll for replies that took longer was waiting for tensors in transit
GRACE_S: Final = 1.0  # after the deadline, for tensors that were announced
PUSHES: Final = 2  # attempts per message: a SuperLink killed during a push forgets what it accepted
LOST: Final = (3, 4)  # Flower's codes: the message, or the reply to it, is unavailable
OFFLINE: Final = 5  # Flower's code: the node is offline
RETURN_S: Final = 30.0  # for a node to come back; a hospital's restart takes half of it
ONLINE_POLL_S: Final = 0.5  # between polls for nodes that may come back
TTL_MARGIN_S: Final = 60.0  # of a message beyond its deadline, since clocks differ
_NODE_FAILURES: Final = {  # Flower's ErrorCode, in words
    1: "its relay cannot load the app",
    2: "its relay raised an error",
    3: "the message was lost on the way",
    4: "its reply was lost on the way",
    5: "it went offline",
    8: "the process that answered ended before its reply",
}
_TYPES: Final = {
    Task.TRAIN: "train",
    Task.EVALUATE: "evaluate",
    Task.COMPARE: "evaluate",
    Task.DESCRIBE: "query",
    Task.STATISTICS: "query",
    Task.UNMASK: "query",
}


class _TensorPolling:
    """Limits how long Flower waits for tensors in transit.

    Flower polls after 1, 2, 4, … 10 s and, if the site died during the transfer, for minutes beyond any
    deadline. There is no setting for it, so the function that its Grid calls is replaced if its signature is
    as expected.
    """

    FIRST_S, LONGEST_S = 0.05, 1.0
    MODULE, FUNCTION = "flwr.superlink.grid.http_grid", "pull_objects"

    def __init__(self) -> None:
        self.end = 0.0
        self._stock: Callable[..., Any] | None = None

    def shorten(self) -> None:
        """Replace Flower's function; does nothing the second time."""
        if self._stock is not None:
            return
        settings = {"max_time", "max_tries_per_object", "initial_backoff", "backoff_cap"}
        try:
            module = import_module(self.MODULE)
            found = getattr(module, self.FUNCTION)
            known = settings <= set(inspect.signature(found).parameters)
        except (ImportError, AttributeError, TypeError):
            known = False
        if not known:
            LOG.warning("this version of Flower fetches tensors in an unknown way: rounds take longer")
            return
        self._stock = found
        setattr(module, self.FUNCTION, self._pull)

    def _pull(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - Flower's
        assert self._stock is not None  # noqa: S101 - set before this is called
        own = {
            "max_time": max(self.end - time.monotonic(), GRACE_S),
            "max_tries_per_object": None,
            "initial_backoff": self.FIRST_S,
            "backoff_cap": self.LONGEST_S,
        }
        return self._stock(*arguments, **{**options, **own})


_TENSOR_POLLING = _TensorPolling()


def shorten_polling() -> None:
    """Make this process's Flower Grid poll for tensors often, and only until a round's deadline."""
    _TENSOR_POLLING.shorten()


class GridFleet:
    """Carries headers and payloads as Flower messages."""

    def __init__(self, grid: Grid, poll_s: float = POLL_S) -> None:
        self._grid = grid
        self._poll_s = poll_s
        self._names: dict[int, str] = {}
        self._online = _Online()

    def nodes(self, at_least: int, deadline_s: float) -> Sequence[int]:
        """Online nodes, once at least ``at_least`` are and their set has settled."""
        end = time.monotonic() + deadline_s
        found: list[int] = []
        since = time.monotonic()
        while True:
            now = sorted(self._poll_online())
            if now != found:
                found, since = now, time.monotonic()
            settled = not self._poll_s or time.monotonic() - since >= SETTLED_S
            if (len(found) >= at_least and settled) or time.monotonic() > end:
                return found
            time.sleep(self._poll_s)

    def ask(
        self, requests: Mapping[int, str], payload: bytes, deadline_s: float, round_bytes: int = 0
    ) -> Iterator[Answer]:
        """Push one message per node and yield replies as they arrive.

        A node is asked a second time if SuperLink lost the message or its reply (it was killed meanwhile), or
        if the node went offline, losing its work, and returned within `RETURN_S`. Repeated work gives the
        same answer.
        """
        _TENSOR_POLLING.end = end = time.monotonic() + deadline_s
        self._poll_online()
        question = _Question(requests, payload, deadline_s, round_bytes)
        waiting: dict[str, int] = {}
        yield from self._send(question, set(requests), waiting)
        blocked = False
        while (waiting or question.away) and (blocked or time.monotonic() < end):
            began = time.monotonic()
            replies = list(self._grid.pull_messages(set(waiting))) if waiting else []
            now = time.monotonic()
            blocked = began < end < now and now - began > BLOCKED_S  # more may have arrived: poll once more
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id, 0)  # 0: a duplicate reply
                if node and not self._must_repeat(question, node, reply, now):
                    yield self._answer(node, reply)
            for node in self._give_up(question, now):
                yield self._failed(node, OFFLINE)
            if question.again and now < end:
                yield from self._send(question, question.again, waiting)
                question.again.clear()
            if not replies:
                time.sleep(self._poll_s)
        for node in sorted(question.away):
            yield self._failed(node, OFFLINE)
        for node in sorted({*waiting.values(), *question.again}):
            yield self._no_answer(node, LATE, Reason.LATE)

    def _send(self, question: _Question, nodes: set[int], waiting: dict[str, int]) -> Iterator[Answer]:
        """Push to nodes and add the pending messages to ``waiting``; yields failures of rejected nodes."""
        accepted = self._push(question.to(nodes))
        waiting |= accepted
        for node in sorted(nodes - set(accepted.values())):
            yield self._no_answer(node, "node failed (no longer admitted)", Reason.NODE_FAILED)

    def _must_repeat(self, question: _Question, node: int, reply: Message, now: float) -> bool:
        """Whether a reply only reports a lost message or an absent node; marks the node to be asked again."""
        if _is(reply, *LOST) and node not in question.lost:
            question.lost.add(node)
            question.again.add(node)
            return True
        if _is(reply, OFFLINE) and self._online.may_return(node, now):
            question.away.add(node)
            return True
        return False

    def _give_up(self, question: _Question, now: float) -> list[int]:
        """Nodes that were away too long; those that are back will be asked again."""
        if not question.away:
            return []
        back = question.away & self._poll_online(ONLINE_POLL_S)
        gone = {node for node in question.away - back if not self._online.may_return(node, now)}
        question.away -= back | gone
        question.again |= back
        return sorted(gone)

    def _poll_online(self, max_age_s: float = 0.0) -> set[int]:
        """Nodes that are online, or were at the last poll if that is recent enough."""
        now = time.monotonic()
        if now - self._online.polled >= max_age_s:
            names = {node.node_id: node.name for node in self._grid.get_nodes()}
            self._names |= names
            self._online.update(names, now)
        return self._online.nodes

    def _push(self, messages: Mapping[int, Message]) -> dict[str, int]:
        """Push messages; returns the node of each accepted message by message id."""
        for left in reversed(range(PUSHES)):
            try:
                identities = list(self._grid.push_messages(list(messages.values())))
                break
            except Exception:
                if not left:
                    raise
                LOG.warning("SuperLink did not accept all of a message; pushing again", exc_info=True)
        return {identity: node for identity, node in zip(identities, messages, strict=True) if identity}

    def _no_answer(self, node: int, why: str, code: Reason = Reason.OTHER) -> Answer:
        return Answer(node, None, failure=why, code=code, name=self._names.get(node, ""))

    def _failed(self, node: int, flower: int) -> Answer:
        why = _NODE_FAILURES.get(flower, "for another reason")
        return self._no_answer(node, f"node failed: {why} (Flower error {flower})", Reason.NODE_FAILED)

    def _answer(self, node: int, reply: Message) -> Answer:
        if reply.has_error():  # checked first: an error that Flower itself made names no node as its source
            return self._failed(node, reply.error.code)
        if reply.metadata.src_node_id != node:
            return self._no_answer(node, "an answer from another node")
        try:
            header = str(reply.content.config_records[HEADER_RECORD][HEADER_KEY])
        except KeyError:
            return self._no_answer(node, "an answer without a header")
        tensors = reply.content.array_records.get(PAYLOAD_RECORD)
        if tensors is not None and (
            list(tensors) != [PAYLOAD_KEY] or tensors[PAYLOAD_KEY].stype != PAYLOAD_STYPE
        ):
            return self._no_answer(node, "tensors in an unexpected form", Reason.LAYOUT)
        payload = b"" if tensors is None else tensors[PAYLOAD_KEY].data
        return Answer(node, header, payload, line=_line(reply), name=self._names.get(node, ""))


def _line(reply: Message) -> float | None:
    """Bytes per second of a site's line, as its relay says."""
    said = reply.content.config_records.get(LINE_RECORD, ConfigRecord()).get(LINE_KEY)
    return said if isinstance(said, float) and 0 < said < math.inf else None


class _Question:
    """A request to nodes, and which of them must be asked again."""

    def __init__(
        self, requests: Mapping[int, str], payload: bytes, deadline_s: float, round_bytes: int
    ) -> None:
        self._requests = requests
        self._more = {ROUND_BYTES_KEY: round_bytes} if round_bytes else {}
        array = Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)
        self._tensors = ArrayRecord({PAYLOAD_KEY: array}) if payload else None
        self._ttl_s = deadline_s + TTL_MARGIN_S
        self.lost: set[int] = set()  # whose message SuperLink has lost once
        self.away: set[int] = set()  # that may return
        self.again: set[int] = set()  # to ask again

    def to(self, nodes: Collection[int]) -> dict[int, Message]:
        """A new message for each node."""
        return {
            node: _message(node, self._requests[node], self._tensors, self._ttl_s, self._more)
            for node in nodes
        }


class _Online:
    """The nodes online at the last poll, and when each was last online."""

    def __init__(self) -> None:
        self.nodes: set[int] = set()
        self.polled = float("-inf")
        self._last: dict[int, float] = {}

    def update(self, nodes: Collection[int], now: float) -> None:
        self.nodes, self.polled = set(nodes), now
        self._last |= dict.fromkeys(nodes, now)

    def may_return(self, node: int, now: float) -> bool:
        """Whether an offline node was online a moment ago."""
        if node in self.nodes:  # it left after the last poll, which may be a whole training ago
            self.nodes.remove(node)
            self._last[node] = now
        return now - self._last.get(node, float("-inf")) < RETURN_S


def _is(reply: Message, *codes: int) -> bool:
    return reply.has_error() and reply.error.code in codes


def _message(
    node: int, header: str, tensors: ArrayRecord | None, ttl_s: float, more: Mapping[str, int]
) -> Message:
    content = RecordDict({HEADER_RECORD: ConfigRecord({HEADER_KEY: header, **more})})
    if tensors is not None:
        content[PAYLOAD_RECORD] = tensors
    kind = _TYPES[decode(Request, header).task]
    return Message(content, dst_node_id=node, message_type=kind, ttl=ttl_s)
