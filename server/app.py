"""Flower's ServerApp: settings from the run configuration, nodes from the Grid, then the round loop."""

from __future__ import annotations

import logging
import time
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
from server.fleet import Answer
from server.rounds import Mode
from server.run_folder import RunSettings, execute

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmare.study import Study
    from server.journal import Listener

__all__ = ["GridFleet", "app", "run_on", "settings_of"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which shows what a run says

POLL_S: Final = 0.2  # between looks for replies; the in-process Grid waits by itself
SETTLED_S: Final = 1.0  # that the number of nodes must stay the same where it is not known
_TYPES: Final = {
    Task.TRAIN: "train",
    Task.EVALUATE: "evaluate",
    Task.COMPARE: "evaluate",
    Task.DESCRIBE: "query",
    Task.STATISTICS: "query",
}

app = ServerApp()


class GridFleet:
    """Carries headers and payloads as Flower messages.

    Args:
        grid: Flower's.
        poll_s: Pause between looks for replies.
    """

    def __init__(self, grid: Grid, poll_s: float = POLL_S) -> None:
        self._grid = grid
        self._poll_s = poll_s

    def nodes(self, at_least: int, deadline_s: float) -> Sequence[int]:
        """Node ids, once ``at_least`` are there and no more come."""
        end = time.monotonic() + deadline_s
        found: list[int] = []
        since = time.monotonic()
        while True:
            now = sorted(self._grid.get_node_ids())
            if now != found:
                found, since = now, time.monotonic()
            settled = not self._poll_s or time.monotonic() - since >= SETTLED_S
            if (len(found) >= at_least and settled) or time.monotonic() > end:
                return found
            time.sleep(self._poll_s)

    def ask(self, requests: Mapping[int, str], payload: bytes, deadline_s: float) -> Iterator[Answer]:
        """Push one message per node and yield replies as they come, until all are in or the deadline."""
        end = time.monotonic() + deadline_s
        tensors = ArrayRecord({PAYLOAD_KEY: Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)})
        messages = [_message(node, header, tensors if payload else None) for node, header in requests.items()]
        waiting = set(self._grid.push_messages(messages))
        while waiting and time.monotonic() < end:
            replies = list(self._grid.pull_messages(waiting))
            for reply in replies:
                waiting.discard(reply.metadata.reply_to_message_id)
                yield _answer(reply)
            if not replies:
                time.sleep(self._poll_s)


def _message(node: int, header: str, tensors: ArrayRecord | None) -> Message:
    content = RecordDict({HEADER_RECORD: ConfigRecord({HEADER_KEY: header})})
    if tensors is not None:
        content[PAYLOAD_RECORD] = tensors
    return Message(content, dst_node_id=node, message_type=_TYPES[decode(Request, header).task])


def _answer(reply: Message) -> Answer:
    node = reply.metadata.src_node_id
    if reply.has_error():
        return Answer(node, None, failure=f"node failed (Flower error {reply.error.code})")
    try:
        header = str(reply.content.config_records[HEADER_RECORD][HEADER_KEY])
    except KeyError:
        return Answer(node, None, failure="an answer without a header")
    tensors = reply.content.array_records.get(PAYLOAD_RECORD)
    if tensors is None:
        return Answer(node, header)
    if list(tensors) != [PAYLOAD_KEY] or tensors[PAYLOAD_KEY].stype != PAYLOAD_STYPE:
        return Answer(node, None, failure="tensors in another form")
    return Answer(node, header, tensors[PAYLOAD_KEY].data)


def settings_of(run_config: Mapping[str, object]) -> tuple[Study, RunSettings]:
    """Study and settings from Flower's run configuration (``pyproject.toml`` lists the keys).

    Raises:
        InputError: If a value cannot be used.
    """
    federation = str(run_config.get("federation") or "")
    folder = Path(federation) if federation else _embedded()
    assignments = [part for part in str(run_config.get("set") or "").split(";") if part.strip()]
    study = load_study(folder / "study.toml").override(assignments)
    mode = str(run_config.get("mode") or Mode.FEDERATED)
    if mode not in list(Mode):
        raise InputError(f"mode must be one of {', '.join(Mode)}, found {mode!r}")
    out = Path(str(run_config.get("out") or "") or f"runs/{study.name}-{mode}-seed{study.seed}")
    return study, RunSettings(
        out=out.absolute(),
        federation=str(folder.resolve()),
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
    result, out = run_on(grid, context.run_config)
    LOG.info("%s rounds, best %s; %s", result["rounds_run"], result["best_round"], out)
    for entry in entry_points(group="mmare.report"):
        LOG.info("report: %s", entry.load()(out))
