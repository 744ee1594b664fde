"""The nodes of a Flower Grid: messages out, replies in, and what got lost on the way asked for again."""

from __future__ import annotations

import inspect
import logging
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from mmare.errors import Reason
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

__all__ = ["POLL_S", "GridFleet", "hurry"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which shows what a run says

POLL_S: Final = 0.2  # between looks for replies; the in-process Grid waits by itself
SETTLED_S: Final = 1.0  # that the number of nodes must stay the same where it is not known
BLOCKED_S: Final = 2.0  # a look for replies that took longer waited for tensors still on their way
LEFT_S: Final = 1.0  # for tensors that were announced, once the deadline has passed
PUSHES: Final = 2  # of the same message; SuperLink, killed in the middle of one, does not know what it took
LOST: Final = (3, 4)  # of Flower's codes: the message, or the reply to it, is unavailable
AWAY: Final = 5  # of Flower's codes: the node is offline
BACK_S: Final = 30.0  # for a node that went away just now; one that a hospital starts again needs half of it
LOOK_S: Final = 0.5  # between looks for nodes that may come back
OUTLIVES_S: Final = (
    60.0  # a message its deadline, so that clocks may differ; then no node is given it any more
)
_TYPES: Final = {
    Task.TRAIN: "train",
    Task.EVALUATE: "evaluate",
    Task.COMPARE: "evaluate",
    Task.DESCRIBE: "query",
    Task.STATISTICS: "query",
}


class _Tensors:
    """How long replies whose tensors are still on their way are waited for.

    Flower looks for them again after 1, 2, 4, … 10 s and, of a site that died in the middle, for minutes
    beyond every deadline. It has no setting for that, so the function that its Grid calls is replaced, where
    it is the one known here.
    """

    FIRST_S, LONGEST_S = 0.05, 1.0
    MODULE, FUNCTION = "flwr.superlink.grid.http_grid", "pull_objects"

    def __init__(self) -> None:
        self.end = 0.0
        self._stock: Callable[..., Any] | None = None

    def hurry(self) -> None:
        """Replace Flower's function, once."""
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
            LOG.warning("this Flower fetches tensors in a way that is not known here: rounds take longer")
            return
        self._stock = found
        setattr(module, self.FUNCTION, self._pull)

    def _pull(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - Flower's
        assert self._stock is not None  # noqa: S101 - set before this is called
        own = {
            "max_time": max(self.end - time.monotonic(), LEFT_S),
            "max_tries_per_object": None,
            "initial_backoff": self.FIRST_S,
            "backoff_cap": self.LONGEST_S,
        }
        return self._stock(*arguments, **{**options, **own})


_TENSORS = _Tensors()


def hurry() -> None:
    """Let Flower's Grid of this process look for tensors often, and no longer than until a deadline."""
    _TENSORS.hurry()


class GridFleet:
    """Carries headers and payloads as Flower messages.

    Args:
        grid: Flower's.
        poll_s: Pause between looks for replies.
    """

    def __init__(self, grid: Grid, poll_s: float = POLL_S) -> None:
        self._grid = grid
        self._poll_s = poll_s
        self._names: dict[int, str] = {}
        self._online = _Online()

    def nodes(self, at_least: int, deadline_s: float) -> Sequence[int]:
        """Node ids, once ``at_least`` are there and no more come."""
        end = time.monotonic() + deadline_s
        found: list[int] = []
        since = time.monotonic()
        while True:
            now = sorted(self._look())
            if now != found:
                found, since = now, time.monotonic()
            settled = not self._poll_s or time.monotonic() - since >= SETTLED_S
            if (len(found) >= at_least and settled) or time.monotonic() > end:
                return found
            time.sleep(self._poll_s)

    def ask(self, requests: Mapping[int, str], payload: bytes, deadline_s: float) -> Iterator[Answer]:
        """Push one message per node and yield replies as they come, until all are in or the deadline.

        Where SuperLink has lost a message or its reply, as when it was killed in the middle, the node is
        asked once more. So is a node that went offline and is back within `BACK_S`: what it had in hand is
        lost, too. A site that does the same work again gives the same answer.
        """
        _TENSORS.end = end = time.monotonic() + deadline_s
        self._look()
        question = _Question(requests, payload, deadline_s)
        waiting: dict[str, int] = {}
        yield from self._send(question, set(requests), waiting)
        blocked = False
        while (waiting or question.away) and (blocked or time.monotonic() < end):
            began = time.monotonic()
            replies = list(self._grid.pull_messages(set(waiting))) if waiting else []
            now = time.monotonic()
            blocked = began < end < now and now - began > BLOCKED_S  # others came meanwhile: one more look
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id, 0)
                if node and not self._is_to_repeat(question, node, reply, now):
                    yield self._answer(node, reply)  # a second answer to the same message is none
            for node in self._given_up(question, now):
                yield self._failed(node, AWAY)
            if question.again and now < end:
                yield from self._send(question, question.again, waiting)
                question.again.clear()
            if not replies:
                time.sleep(self._poll_s)
        for node in sorted(question.away):
            yield self._failed(node, AWAY)
        for node in sorted({*waiting.values(), *question.again}):
            yield self._none(node, LATE, Reason.LATE)

    def _send(self, question: _Question, nodes: set[int], waiting: dict[str, int]) -> Iterator[Answer]:
        """Push to nodes, note what is waited for, and say who is not there any more."""
        taken = self._pushed(question.to(nodes))
        waiting |= taken
        for node in sorted(nodes - set(taken.values())):
            yield self._none(node, "node failed (no longer admitted)", Reason.NODE_FAILED)

    def _is_to_repeat(self, question: _Question, node: int, reply: Message, now: float) -> bool:
        """Whether a reply says no more than that the message was lost, in a way that calls for another."""
        if _is(reply, *LOST) and node not in question.lost:
            question.lost.add(node)
            question.again.add(node)
            return True
        if _is(reply, AWAY) and self._online.may_come_back(node, now):
            question.away.add(node)
            return True
        return False

    def _given_up(self, question: _Question, now: float) -> list[int]:
        """Nodes that were away too long; those that are back will be asked again."""
        if not question.away:
            return []
        back = question.away & self._look(LOOK_S)
        gone = {node for node in question.away - back if not self._online.may_come_back(node, now)}
        question.away -= back | gone
        question.again |= back
        return sorted(gone)

    def _look(self, pause_s: float = 0.0) -> set[int]:
        """Nodes that are online now, or were at the last look if that was less than a pause ago."""
        now = time.monotonic()
        if now - self._online.looked >= pause_s:
            names = {node.node_id: node.name for node in self._grid.get_nodes()}
            self._names |= names
            self._online.see(names, now)
        return self._online.there

    def _pushed(self, messages: Mapping[int, Message]) -> dict[str, int]:
        """Push messages; gives the nodes of those that were taken by what identifies the message."""
        for left in reversed(range(PUSHES)):
            try:
                identities = list(self._grid.push_messages(list(messages.values())))
                break
            except Exception:
                if not left:
                    raise
                LOG.warning("SuperLink did not take all of a message, it is pushed again", exc_info=True)
        return {identity: node for identity, node in zip(identities, messages, strict=True) if identity}

    def _none(self, node: int, why: str, code: Reason = Reason.OTHER) -> Answer:
        return Answer(node, None, failure=why, code=code, name=self._names.get(node, ""))

    def _failed(self, node: int, flower: int) -> Answer:
        return self._none(node, f"node failed (Flower error {flower})", Reason.NODE_FAILED)

    def _answer(self, node: int, reply: Message) -> Answer:
        if reply.has_error():  # where it is Flower that says so, the source is none of the nodes
            return self._failed(node, reply.error.code)
        if reply.metadata.src_node_id != node:
            return self._none(node, "an answer of another node")
        try:
            header = str(reply.content.config_records[HEADER_RECORD][HEADER_KEY])
        except KeyError:
            return self._none(node, "an answer without a header")
        tensors = reply.content.array_records.get(PAYLOAD_RECORD)
        if tensors is not None and (
            list(tensors) != [PAYLOAD_KEY] or tensors[PAYLOAD_KEY].stype != PAYLOAD_STYPE
        ):
            return self._none(node, "tensors in another form", Reason.LAYOUT)
        payload = b"" if tensors is None else tensors[PAYLOAD_KEY].data
        return Answer(node, header, payload, name=self._names.get(node, ""))


class _Question:
    """What nodes are asked, and who has to be asked again.

    Args:
        requests: Headers by node.
        payload: For all of them.
        deadline_s: Of the question.
    """

    def __init__(self, requests: Mapping[int, str], payload: bytes, deadline_s: float) -> None:
        self._requests = requests
        array = Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)
        self._tensors = ArrayRecord({PAYLOAD_KEY: array}) if payload else None
        self._ttl_s = deadline_s + OUTLIVES_S
        self.lost: set[int] = set()  # whose message SuperLink has lost once
        self.away: set[int] = set()  # that may come back
        self.again: set[int] = set()  # to be asked at the next opportunity

    def to(self, nodes: Collection[int]) -> dict[int, Message]:
        """A new message to each."""
        return {node: _message(node, self._requests[node], self._tensors, self._ttl_s) for node in nodes}


class _Online:
    """Who was there at the last look, and when each node was there last."""

    def __init__(self) -> None:
        self.there: set[int] = set()
        self.looked = float("-inf")
        self._last: dict[int, float] = {}

    def see(self, nodes: Collection[int], now: float) -> None:
        self.there, self.looked = set(nodes), now
        self._last |= dict.fromkeys(nodes, now)

    def may_come_back(self, node: int, now: float) -> bool:
        """Whether a node that is offline was there a moment ago."""
        if node in self.there:  # it left after the last look, which may be a long training ago
            self.there.remove(node)
            self._last[node] = now
        return now - self._last.get(node, float("-inf")) < BACK_S


def _is(reply: Message, *codes: int) -> bool:
    return reply.has_error() and reply.error.code in codes


def _message(node: int, header: str, tensors: ArrayRecord | None, ttl_s: float) -> Message:
    content = RecordDict({HEADER_RECORD: ConfigRecord({HEADER_KEY: header})})
    if tensors is not None:
        content[PAYLOAD_RECORD] = tensors
    kind = _TYPES[decode(Request, header).task]
    return Message(content, dst_node_id=node, message_type=kind, ttl=ttl_s)
