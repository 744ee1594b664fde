"""SuperLink's list of sites and the kit's records, brought into agreement by Flower's own command line.

Flower keeps a public key for ever: a site that was unregistered cannot be registered again with the same key
(seen in 1.41: code 23). So a revoked key stays revoked, and a site that comes back makes a new one. Its list
names node ids only; whose they are, the records say.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmare.errors import InputError, RunError
from server.membership.flower_cli import CONNECTION, FlowerRefusedError, flower_answer
from server.membership.records import Admitted, SiteState, find, listed, save

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from server.membership.kit import Kit

__all__ = [
    "Agreement",
    "Node",
    "register",
    "register_admitted",
    "registered",
    "superlink_answers",
    "unregister",
]

LOG = logging.getLogger(__name__)

KEY_IN_USE: Final = 23  # codes of Flower's ApiErrorCode
NODE_UNKNOWN: Final = 24
OFF: Final = "unregistered"


@dataclass(frozen=True)
class Node:
    """A node that SuperLink knows.

    Args:
        node_id: Flower's number of it.
        status: ``registered`` (never connected), ``online``, ``offline`` or ``unregistered``.
        site: By the kit's records; none where no record names the node.
        public_key: As above, of a site's present key.
    """

    node_id: int
    status: str
    site: str | None = None
    public_key: str | None = None


@dataclass(frozen=True)
class Agreement:
    """What was changed at SuperLink.

    Args:
        registered: Sites.
        unregistered: Node ids of revoked sites, replaced keys and nodes that no record names.
        refused: Why SuperLink does not take a site, by site.
    """

    registered: tuple[str, ...] = ()
    unregistered: tuple[int, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def superlink_answers(kit: Kit, timeout_s: float = 2.0) -> bool:
    """Whether SuperLink of this kit answers on 127.0.0.1, with a certificate of the kit's authority."""
    context = ssl.create_default_context(cafile=str(kit.ca_certificate))
    connection = http.client.HTTPSConnection(
        "127.0.0.1", kit.superlink_port, timeout=timeout_s, context=context
    )
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):  # TLS errors are of the first kind
        return False
    finally:
        connection.close()


def registered(kit: Kit) -> tuple[Node, ...]:
    """Nodes that SuperLink knows, those it has unregistered included, in the order of their ids.

    Raises:
        RunError: If SuperLink does not answer.
    """
    owners = _owners(listed(kit))
    nodes = []
    for node_id, status in sorted(_statuses(kit).items()):
        record = owners.get(node_id)
        current = record is not None and record.node_id == node_id
        nodes.append(
            Node(
                node_id,
                status,
                record.site if record is not None else None,
                record.public_key if record is not None and current else None,
            )
        )
    return tuple(nodes)


def register(kit: Kit, site: str) -> int:
    """Register an admitted site's key and record its node id.

    Returns:
        The node id.

    Raises:
        InputError: If the site is not admitted.
        RunError: If SuperLink does not answer or refuses.
    """
    with kit.locked():
        record = find(kit, site)
        if record.state is not SiteState.ADMITTED:
            raise InputError(f"{kit.folder}: {site!r} is {record.state}; a site is admitted first")
        try:
            return _register(kit, record, _statuses(kit))
        except FlowerRefusedError as error:
            raise RunError(f"SuperLink does not take the site {site!r}: {error.said}") from None


def unregister(kit: Kit, node_id: int) -> None:
    """Take a node off SuperLink's list; nothing happens if it is off already.

    Raises:
        RunError: If SuperLink does not answer or refuses.
    """
    try:
        flower_answer(kit, "supernode unregister", str(node_id), CONNECTION)
    except FlowerRefusedError as error:
        if error.code != NODE_UNKNOWN:
            raise RunError(f"SuperLink does not let go of node {node_id}: {error.said}") from None


def register_admitted(kit: Kit) -> Agreement:
    """Register every admitted site that SuperLink lacks; unregister whoever is not admitted.

    The records are the truth: a node that no record names is taken off, too.

    Raises:
        RunError: If SuperLink does not answer.
    """
    with kit.locked():
        statuses = _statuses(kit)
        done, refused = [], {}
        for record in listed(kit):
            if record.state is not SiteState.ADMITTED or _is_on(record, statuses):
                continue
            try:
                _register(kit, record, statuses)
                done.append(record.site)
            except FlowerRefusedError as error:
                LOG.error("SuperLink does not take the site %s: %s", record.site, error.said)  # noqa: TRY400 - one line
                refused[record.site] = error.said
        keep = {record.node_id for record in listed(kit) if record.state is SiteState.ADMITTED}
        gone = tuple(node for node, status in statuses.items() if status != OFF and node not in keep)
        for node in gone:
            unregister(kit, node)
    return Agreement(tuple(done), gone, refused)


def _register(kit: Kit, record: Admitted, statuses: Mapping[int, str]) -> int:
    """Register a key; if SuperLink has it already, find out as which node.

    Killed between registering and recording, the kit lacks one node id. Sites are registered one at a time
    and each is recorded before the next, so it is the one node that no record names.
    """
    if record.node_id is not None and _is_on(record, statuses):
        return record.node_id
    try:
        with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
            key = Path(folder) / "node.pub"
            key.write_text(record.public_key + "\n", encoding="utf-8")
            answer = flower_answer(kit, "supernode register", str(key), CONNECTION, "--name", record.site)
        node = int(answer["node-id"])
    except FlowerRefusedError as error:
        if error.code != KEY_IN_USE:
            raise
        node = _unnamed(kit, statuses)
    save(kit, replace(record, node_id=node))
    return node


def _unnamed(kit: Kit, statuses: Mapping[int, str]) -> int:
    """The only node that no record names."""
    owners = _owners(listed(kit))
    found = [node for node, status in statuses.items() if node not in owners and status != OFF]
    if len(found) != 1:
        raise FlowerRefusedError(
            "supernode register",
            "it has had this key before and let it go, and takes no key twice; the site makes a new one with "
            "mmare-site kit request --new-key, which mmare-server kit admit --replace takes",
            KEY_IN_USE,
        )
    return found[0]


def _is_on(record: Admitted, statuses: Mapping[int, str]) -> bool:
    return record.node_id is not None and statuses.get(record.node_id, OFF) != OFF


def _owners(records: Iterable[Admitted]) -> dict[int, Admitted]:
    owners = {}
    for record in records:
        for node in (record.node_id, *(former.node_id for former in record.former)):
            if node is not None:
                owners[node] = record
    return owners


def _statuses(kit: Kit) -> dict[int, str]:
    """Of every node that SuperLink knows."""
    try:
        found = flower_answer(kit, "supernode list", CONNECTION)["nodes"]
        return {int(node["node-id"]): str(node["status"]) for node in found}
    except FlowerRefusedError as error:
        raise RunError(
            f"SuperLink on 127.0.0.1:{kit.superlink_port} does not list its sites: {error.said}"
        ) from None
