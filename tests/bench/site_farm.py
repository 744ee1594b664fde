"""Many SuperNodes in one process: Flower's own connection, this project's relay and service, a thread each.

``python -m tests.bench.site_farm FEDERATION ADDRESS CA`` serves every site of a federation folder whose key
the coordinator has admitted, until SIGTERM. What a site costs its own hospital, such as processes and polling
of the relay on loopback, is left out: this loads a coordinator.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from client.relay.app import app
from client.relay.patched.clock import AdaptiveClock
from client.relay.patched.supernode import BACKOFF_S, BUSY, MESSAGE_POLL_S
from mmare.host.signals import stop_on_signals
from mmare.wire.joining import SiteKit
from sites.config import SiteConfig
from sites.federation import site_folders

ONE_AT_A_TIME = threading.Lock()  # Flower holds who a process works for in one place


class Node:
    """One site's SuperNode.

    Args:
        site: With its key.
        place: Its node configuration, by which the relay finds its service.
        federation: Of the run configuration.
    """

    def __init__(self, site: SiteConfig, place: dict[str, int], federation: str) -> None:
        self._key = load_ssh_private_key(SiteKit(site.coordinator.kit).key.read_bytes(), None)
        self._place = place
        self._run_config = {"federation": federation}

    def serve(self, address: str, authority: str) -> None:
        """Answer messages as long as the process lives."""
        keys: Any = (self._key, self._key.public_key())
        with http_request_response(address, False, authority, keys) as connection:
            node, receive, send, _run, _fab, pull, push, confirm = connection
            clock = AdaptiveClock(BUSY)
            while True:
                found = receive()
                if found is None:
                    clock.sleep(MESSAGE_POLL_S)
                    continue
                clock.worked()
                with suppress(RunNotRunningException):
                    self._answer(node, found, send, pull, push, confirm)
                clock.worked()

    def _answer(self, node: int, found: Any, *calls: Callable[..., Any]) -> None:
        send, pull, push, confirm = calls
        head, tree = found
        run = head.metadata.run_id
        message = pull_and_inflate_object_from_tree(
            tree,
            lambda identity: pull(run, identity),
            lambda identity: confirm(run, identity),
            return_type=Message,
            initial_backoff=BACKOFF_S,
        )
        message.metadata.__dict__["_message_id"] = head.metadata.message_id
        context = Context(
            run_id=run,
            node_id=node,
            node_config=dict(self._place),
            state=RecordDict(),
            run_config=dict(self._run_config),
        )
        began = time.monotonic()
        with ONE_AT_A_TIME:
            TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run, 1, node
            reply = app(message, context)
            reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            wanted, session = send(reply, tree, time.monotonic() - began)
            for identity in wanted:
                push(run, session, identity, objects[identity].deflate())


def main(federation: str, address: str, authority: str) -> None:
    torch.set_num_threads(1)
    sites = site_folders(Path(federation))
    with stop_on_signals() as stop:
        for index, site in enumerate(sites):
            node = Node(site, {"partition-id": index, "num-partitions": len(sites)}, federation)
            threading.Thread(target=node.serve, args=(address, authority), daemon=True).start()
        stop.wait()
    os._exit(0)  # threads may be asking a coordinator that is not there any more


if __name__ == "__main__":
    main(*sys.argv[1:])
