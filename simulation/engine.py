"""Backends of a simulation: a Grid in this process, or Flower's Ray engine, both with the same apps."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from client.relay.app import app as client_app
from mmare.study.choices import Backend
from server.rounds.flower_fleet import GridFleet
from server.run.folder import execute
from simulation.pace import PACE

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.supercore.run import Run

    from server.run.request import RunRequest
    from server.store.journal import Listener

__all__ = ["InProcessGrid", "held_up_s", "run_in_process", "run_with_ray"]

SERVER_NODE: Final = 1
CLIENT_APP_RAISED: Final = 2  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
HELD_UP_S: Final = 2.0
HELD_UP_SHARE: Final = 0.1  # of the deadline, if that is shorter
WAIT_S: Final = 0.05  # longest wait for a reply in one pull


@dataclass
class _Node:
    """A simulated node."""

    context: Context
    turn: threading.Lock = field(default_factory=threading.Lock)  # one message at a time


class InProcessGrid(Grid):
    """A Grid whose nodes call the ClientApp in this process, one after the other.

    The next site starts when the coordinator asks for replies again: both at once would wait for each other's
    interpreter lock. After ``held_up_s`` of a site's work the next one starts beside it, so a site that hangs
    costs only its own round, as in a real federation.

    Args:
        app: The ClientApp.
        node_configs: One per node, in partition order.
        run_config: Of the run.
        workers: Sites that compute in parallel from the start.
        held_up_s: Seconds that a site may keep the next one waiting.
    """

    def __init__(
        self,
        app: ClientApp,
        node_configs: Iterable[Mapping[str, Any]],
        run_config: Mapping[str, Any],
        workers: int = 1,
        held_up_s: float = HELD_UP_S,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SERVER_NODE
        self._app = app
        self._nodes = {
            node: _Node(Context(1, node, dict(config), RecordDict(), dict(run_config)))
            for node, config in enumerate(node_configs, start=SERVER_NODE + 1)
        }
        self._parallel = workers
        self._held_up_s = held_up_s
        self._workers: list[_Worker] = []
        self._todo: deque[Message] = deque()
        self._done: SimpleQueue[Message] = SimpleQueue()
        self._count = 0

    def set_run(self, run: Run) -> None:
        """Not needed: there is one run."""

    @property
    def run(self) -> Run:
        """Not needed: there is one run."""
        raise RuntimeError("a grid in one process has no run record")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message, as Flower's deprecated method does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Node ids in partition order."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; earlier ones not yet started are dropped, as their deadline has passed."""
        self._todo.clear()
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = str(self._count)
            ids.append(str(self._count))
            self._todo.append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies received so far; waits up to `WAIT_S` for the first."""
        wanted = set(message_ids)
        self._keep_working()
        replies: list[Message] = []
        timeout: float | None = WAIT_S
        while True:
            try:
                reply = self._done.get(timeout=timeout) if timeout else self._done.get_nowait()
            except Empty:
                return replies
            timeout = None
            if reply.metadata.reply_to_message_id in wanted:
                replies.append(reply)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and pull until all replies are in or the timeout has passed."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            found = self.pull_messages(waiting)
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            replies += found
        return replies

    def _keep_working(self) -> None:
        """Hand waiting messages to workers, in place of those whose site holds them up."""
        now = time.monotonic()
        for worker in self._workers:
            worker.retired |= bool(self._todo) and now - worker.since > self._held_up_s
        self._workers = [worker for worker in self._workers if not worker.retired]
        while len(self._workers) < self._parallel:
            worker = _Worker(self._app, self._nodes, self._done)
            self._workers.append(worker)
            worker.start()
        for worker in self._workers:
            if self._todo and worker.since == math.inf:
                worker.take(self._todo.popleft())


class _Worker(threading.Thread):
    """Answers messages until it is retired; one thread for all rounds, so that memory is reused."""

    def __init__(self, app: ClientApp, nodes: Mapping[int, _Node], done: SimpleQueue[Message]) -> None:
        super().__init__(daemon=True)
        self._app, self._nodes, self._done = app, nodes, done
        self._given: SimpleQueue[Message] = SimpleQueue()
        self.since = math.inf  # start of the current message
        self.retired = False

    def take(self, message: Message) -> None:
        """Answer a message next."""
        self.since = time.monotonic()
        self._given.put(message)

    def run(self) -> None:
        while not self.retired:
            message = self._given.get()
            node = self._nodes[message.metadata.dst_node_id]
            with node.turn:
                try:
                    reply = self._app(message, node.context)
                except Exception as error:  # as in Flower's engines, the node answers with an error
                    reply = Message(Error(CLIENT_APP_RAISED, str(error)), reply_to=message)
            self.since = math.inf
            self._done.put(reply)


def held_up_s(deadline_s: float) -> float:
    """Seconds that a simulated site may keep the next one waiting."""
    return min(HELD_UP_S, HELD_UP_SHARE * deadline_s)


def run_in_process(
    request: RunRequest,
    listeners: tuple[Listener, ...] = (),
    node_configs: Iterable[Mapping[str, Any]] | None = None,
) -> None:
    """Run the two apps in this process.

    Args:
        request: Of as many nodes as it says.
        listeners: Called with every event of the journal.
        node_configs: By default one for each partition.

    Raises:
        MmareError: If the run fails.
    """
    node_configs = node_configs or [
        {"partition-id": index, "num-partitions": request.nodes} for index in range(request.nodes)
    ]
    patience_s = held_up_s(request.study.federation.deadline_s)
    grid = InProcessGrid(client_app, node_configs, request.to_config(), held_up_s=patience_s)
    request = replace(request, backend=Backend.INPROCESS)
    with PACE.relaxed(request.study):
        execute(GridFleet(grid, poll_s=0.0), request, listeners, PACE.keeps)


@dataclass(frozen=True)
class _ConfiguredClient:
    """A picklable ClientApp with its run configuration, which Flower's engine leaves empty."""

    run_config: dict[str, Any]

    def __call__(self, message: Message, context: Context) -> Message:
        original = context.run_config
        context.run_config = dict(self.run_config)
        try:
            return client_app(message, context)
        finally:
            context.run_config = original  # the engine refuses a changed one


def run_with_ray(
    request: RunRequest,
    listeners: tuple[Listener, ...] = (),
    backend_config: Mapping[str, Any] | None = None,
) -> None:
    """Run the two apps with Flower's Ray engine.

    Args:
        request: Of as many nodes as it says.
        listeners: Called with every event of the journal.
        backend_config: Of Flower's engine; by default one CPU per client.

    Raises:
        MmareError: If the run fails.
    """
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from flwr.simulation import run_simulation  # noqa: PLC0415 - imports Ray, which takes seconds

    logging.getLogger("flwr").addFilter(_not_deprecation)
    failures: list[BaseException] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:
        try:
            execute(GridFleet(grid), request, listeners)
        except BaseException as error:  # SystemExit too: the engine would report success
            failures.append(error)

    run: Callable[..., None] = run_simulation
    run(
        server_app=server,
        client_app=_ConfiguredClient(request.to_config()),
        num_supernodes=request.nodes,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, **(backend_config or {})},
    )
    if failures:
        raise failures[0]


def _not_deprecation(record: logging.LogRecord) -> bool:
    """Drop the notice that `run_simulation`, which this backend needs, is deprecated."""
    return "`run_simulation` function is deprecated" not in record.getMessage()


_RAY_ENVIRONMENT: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
