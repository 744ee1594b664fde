"""Flower's ServerApp: settings from the run configuration, nodes from the Grid, then the round loop."""

from __future__ import annotations

import inspect
import logging
import time
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from mmare.errors import InputError
from mmare.exchange import (
    HEADER_KEY,
    HEADER_RECORD,
    PAYLOAD_KEY,
    PAYLOAD_RECORD,
    PAYLOAD_STYPE,
    Request,
    Task,
    decode,
)
from mmare.study import load_study
from server.fleet import LATE, Answer
from server.rounds import Mode
from server.run_folder import RunSettings, execute
from server.supervisor import BAD_INPUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mmare.study import Study
    from server.journal import Listener

__all__ = ["GridFleet", "app", "run_on", "settings_of"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which shows what a run says

POLL_S: Final = 0.2  # between looks for replies; the in-process Grid waits by itself
SETTLED_S: Final = 1.0  # that the number of nodes must stay the same where it is not known
BLOCKED_S: Final = 2.0  # a look for replies that took longer waited for tensors still on their way
LEFT_S: Final = 1.0  # for tensors that were announced, once the deadline has passed
PUSHES: Final = 2  # of the same message; SuperLink, killed in the middle of one, does not know what it took
LOST: Final = (3, 4)  # of Flower's codes: the message, or the reply to it, is unavailable
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

app = ServerApp()


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

    def nodes(self, at_least: int, deadline_s: float) -> Sequence[int]:
        """Node ids, once ``at_least`` are there and no more come."""
        end = time.monotonic() + deadline_s
        found: list[int] = []
        since = time.monotonic()
        while True:
            self._names = {node.node_id: node.name for node in self._grid.get_nodes()}
            now = sorted(self._names)
            if now != found:
                found, since = now, time.monotonic()
            settled = not self._poll_s or time.monotonic() - since >= SETTLED_S
            if (len(found) >= at_least and settled) or time.monotonic() > end:
                return found
            time.sleep(self._poll_s)

    def ask(self, requests: Mapping[int, str], payload: bytes, deadline_s: float) -> Iterator[Answer]:
        """Push one message per node and yield replies as they come, until all are in or the deadline.

        Where SuperLink has lost a message or its reply, as when it was killed in the middle, the node is
        asked once more: a site that does the same work again gives the same answer.
        """
        _TENSORS.end = end = time.monotonic() + deadline_s
        tensors = ArrayRecord({PAYLOAD_KEY: Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)})

        def message(node: int) -> Message:
            return _message(node, requests[node], tensors if payload else None, deadline_s + OUTLIVES_S)

        waiting = self._pushed({node: message(node) for node in requests})
        for node in sorted(set(requests) - set(waiting.values())):
            yield self._none(node, "node failed (no longer admitted)")
        once_more = set(requests)
        blocked = False
        while waiting and (blocked or time.monotonic() < end):
            began = time.monotonic()
            replies = list(self._grid.pull_messages(set(waiting)))
            now = time.monotonic()
            blocked = began < end < now and now - began > BLOCKED_S  # others came meanwhile: one more look
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id, 0)
                if node in once_more and _is_lost(reply) and time.monotonic() < end:
                    once_more.remove(node)
                    waiting |= self._pushed({node: message(node)})
                elif node:  # a second answer to the same message is none
                    yield self._answer(node, reply)
            if not replies:
                time.sleep(self._poll_s)
        for node in waiting.values():
            yield self._none(node, LATE)

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

    def _none(self, node: int, why: str) -> Answer:
        return Answer(node, None, failure=why, name=self._names.get(node, ""))

    def _answer(self, node: int, reply: Message) -> Answer:
        if reply.has_error():  # where it is Flower that says so, the source is none of the nodes
            return self._none(node, f"node failed (Flower error {reply.error.code})")
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
            return self._none(node, "tensors in another form")
        payload = b"" if tensors is None else tensors[PAYLOAD_KEY].data
        return Answer(node, header, payload, name=self._names.get(node, ""))


def _is_lost(reply: Message) -> bool:
    return reply.has_error() and reply.error.code in LOST


def _message(node: int, header: str, tensors: ArrayRecord | None, ttl_s: float) -> Message:
    content = RecordDict({HEADER_RECORD: ConfigRecord({HEADER_KEY: header})})
    if tensors is not None:
        content[PAYLOAD_RECORD] = tensors
    kind = _TYPES[decode(Request, header).task]
    return Message(content, dst_node_id=node, message_type=kind, ttl=ttl_s)


def settings_of(run_config: Mapping[str, object]) -> tuple[Study, RunSettings]:
    """Study and settings from Flower's run configuration (``pyproject.toml`` lists the keys).

    Raises:
        InputError: If a value cannot be used.
    """
    federation = str(run_config.get("federation") or "")
    source = Path(federation) if federation else _embedded()  # a folder, or a study file alone
    assignments = [part for part in str(run_config.get("set") or "").split(";") if part.strip()]
    study = load_study(source / "study.toml" if source.is_dir() else source).override(assignments)
    mode = str(run_config.get("mode") or Mode.FEDERATED)
    if mode not in list(Mode):
        raise InputError(f"mode must be one of {', '.join(Mode)}, found {mode!r}")
    out = Path(str(run_config.get("out") or "") or f"runs/{study.name}-{mode}-seed{study.seed}")
    return study, RunSettings(
        out=out.absolute(),
        federation=str(source.resolve()),
        mode=Mode(mode),
        backend=str(run_config.get("backend") or "flower"),
        overwrite=bool(run_config.get("overwrite") or False),
        trainer=str(run_config.get("trainer") or ""),
        expected_nodes=int(str(run_config.get("nodes") or 0)),
        subsets=bool(run_config.get("subsets") or False),
    )


def _embedded() -> Path:
    for entry in entry_points(group="mmare.embedded_federation"):
        folder: Path = entry.load()()
        return folder
    raise InputError("federation is empty and no embedded one is installed")


def run_on(
    grid: Grid, run_config: Mapping[str, object], listeners: tuple[Listener, ...] = (), poll_s: float = POLL_S
) -> tuple[dict[str, Any], Path]:
    """Run what a run configuration says on a Grid; returns the result and its folder."""
    study, settings = settings_of(run_config)
    return execute(GridFleet(grid, poll_s), study, settings, listeners), settings.out


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run configuration names, and write its report where one is installed."""
    _TENSORS.hurry()
    try:
        result, out = run_on(grid, context.run_config)
    except InputError as error:
        raise InputError(f"{BAD_INPUT}{error}") from None
    LOG.info("%s rounds, best %s; %s", result["rounds_run"], result["best_round"], out)
    for entry in entry_points(group="mmare.report"):
        LOG.info("report: %s", entry.load()(out))
