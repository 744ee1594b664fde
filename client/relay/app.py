"""Flower's ClientApp: relays Flower messages to the site's service; has no access to data.

Imports neither torch nor a data reader. The node configuration locates the service: ``socket`` is the site
worker's, ``spool`` a folder that leads to one on another machine, ``site-factory`` names a registered or
installed factory. The default is the factory installed as entry point ``mmare.site_factory``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.relay.patched.__main__ import FOLDER_VARIABLE
from mmare.errors import SiteCode, SiteError
from mmare.wire.line import LINE_KEY, LINE_RECORD, ROUND_BYTES_KEY
from mmare.wire.messages import (
    HEADER_KEY,
    HEADER_RECORD,
    PAYLOAD_KEY,
    PAYLOAD_RECORD,
    PAYLOAD_STYPE,
    Endpoint,
    Refusal,
    encode,
)

__all__ = ["Factory", "app", "register_factory"]

LOG = logging.getLogger(__name__)

FACTORY_KEY: Final = "site-factory"  # keys of the node configuration
SOCKET_KEY: Final = "socket"
SPOOL_KEY: Final = "spool"
ENTRY_POINTS: Final = "mmare.site_factory"

Factory = Callable[
    [Mapping[str, object], Mapping[str, object]], Endpoint
]  # arguments: node and run configuration

_FACTORIES: dict[str, Factory] = {}

app = ClientApp()


def register_factory(name: str, factory: Factory) -> None:
    """Register ``factory`` for nodes of this process whose ``site-factory`` is ``name``."""
    _FACTORIES[name] = factory


def _factory(context: Context) -> Factory:
    name = context.node_config.get(FACTORY_KEY)
    if name is None and {SOCKET_KEY, SPOOL_KEY} & set(context.node_config):
        return _worker
    if isinstance(name, str) and name in _FACTORIES:
        return _FACTORIES[name]
    return _installed_factory(None if name is None else str(name))


def _worker(node_config: Mapping[str, object], _run_config: Mapping[str, object]) -> Endpoint:
    if SPOOL_KEY in node_config:
        from client.relay.spool import SpoolLink  # noqa: PLC0415 - as below

        return SpoolLink(Path(str(node_config[SPOOL_KEY])))
    from client.relay.worker_link import WorkerLink  # noqa: PLC0415 - gRPC is slow to import, and only needed here

    return WorkerLink(Path(str(node_config[SOCKET_KEY])))


@cache
def _installed_factory(name: str | None) -> Factory:
    """Cached: reading the installed entry points takes milliseconds."""
    installed = entry_points(group=ENTRY_POINTS)
    for entry in installed:
        if name in (None, entry.name):
            factory: Factory = entry.load()
            return factory
    raise LookupError(f"no site factory {name!r}; installed: {', '.join(entry.name for entry in installed)}")


def _line(header: str, round_bytes: int) -> tuple[float | None, bool]:
    """Bytes per second of the line, if a roll call asks for it, and whether it carries the rounds in time."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not round_bytes or folder is None:
        return None, True
    from client.relay.line import asked_to_carry, read_line  # noqa: PLC0415 - of the roll call alone
    from client.relay.worker_link import deadline_s  # noqa: PLC0415 - as above

    line = read_line(Path(folder))
    if line is None:
        return None, True
    study = str(json.loads(header)["body"]["study"]["study"]["name"])
    return line.bytes_per_s, asked_to_carry(Path(folder), line, study, round_bytes, deadline_s(header))


@app.query()
@app.train()
@app.evaluate()
def relay(message: Message, context: Context) -> Message:
    """Pass a message to the site and return its answer.

    Raises:
        SiteError: On any failure, with a code only: Flower sends an exception's text to the server.
    """
    try:
        site = _factory(context)(context.node_config, context.run_config)
        given = message.content.config_records[HEADER_RECORD]
        header = str(given[HEADER_KEY])
        tensors = message.content.array_records.get(PAYLOAD_RECORD)
        line, fits = _line(header, int(str(given.get(ROUND_BYTES_KEY, 0))))
        if fits:
            answer, payload = site(header, b"" if tensors is None else tensors[PAYLOAD_KEY].data)
        else:
            answer, payload = encode(Refusal(SiteCode.LINE)), b""
        content = RecordDict({HEADER_RECORD: ConfigRecord({HEADER_KEY: answer})})
        if line is not None:
            content[LINE_RECORD] = ConfigRecord({LINE_KEY: line})
        if payload:
            array = Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)
            content[PAYLOAD_RECORD] = ArrayRecord({PAYLOAD_KEY: array})
    except (Exception, SystemExit):  # the detail stays here; an exit would send no answer
        LOG.exception("the site could not be asked")
        code = SiteCode.INTERNAL
    else:
        return Message(content, reply_to=message)
    raise SiteError(code)
