"""Synchronises SuperLink's nodes with the kit's records, through Flower's command line.

Flower never forgets a public key: an unregistered one cannot be registered again (1.41: code 23). So a
revoked key stays revoked, and a site that returns makes a new one. Flower lists node ids only; the records
map them to sites.
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
    "Node",
    "NodeChanges",
    "register",
    "register_admitted",
    "registered",
    "superlink_answers",
    "unregister",
]

LOG = logging.getLogger(__name__)

KEY_IN_USE: Final = 23  # of Flower's ApiErrorCode
NODE_UNKNOWN: Final = 24  # likewise
UNREGISTERED: Final = "unregistered"


@dataclass(frozen=True)
class Node:
    """A node that SuperLink knows."""

    node_id: int
    status: str  # registered (never connected), online, offline or unregistered
    site: str | None = None  # None if no record names the node
    public_key: str | None = None  # only if it is the site's current one


@dataclass(frozen=True)
class NodeChanges:
    """What was changed at SuperLink."""

    registered: tuple[str, ...] = ()  # sites
    unregistered: tuple[int, ...] = ()  # nodes of revoked sites, of replaced keys and without a record
    refused: Mapping[str, str] = field(default_factory=dict)  # reason by site


def superlink_answers(kit: Kit, timeout_s: float = 2.0) -> bool:
    """Whether this kit's SuperLink answers on 127.0.0.1 with a certificate of the kit's authority."""
    context = ssl.create_default_context(cafile=str(kit.ca_certificate))
    connection = http.client.HTTPSConnection(
        "127.0.0.1", kit.superlink_port, timeout=timeout_s, context=context
    )
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):  # TLS errors are OSErrors
        return False
    finally:
        connection.close()


def registered(kit: Kit) -> tuple[Node, ...]:
    """Nodes that SuperLink knows, including unregistered ones, sorted by id.

    Raises:
        RunError: If SuperLink does not answer.
    """
    owners = _owners(listed(kit))
    nodes = []
    for node_id, status in sorted(_statuses(kit).items()):
        record = owners.get(node_id)
        if record is None:
            nodes.append(Node(node_id, status))
        else:
            key = record.public_key if record.node_id == node_id else None
            nodes.append(Node(node_id, status, record.site, key))
    return tuple(nodes)


def register(kit: Kit, site: str) -> int:
    """Register an admitted site's key; records and returns its node id.

    Raises:
        InputError: If the site is not admitted.
        RunError: If SuperLink does not answer or refuses.
    """
    with kit.locked():
        record = find(kit, site)
        if record.state is not SiteState.ADMITTED:
            raise InputError(f"{kit.folder}: {site!r} is {record.state}, expected an admitted site")
        try:
            return _register(kit, record, _statuses(kit))
        except FlowerRefusedError as error:
            raise RunError(f"SuperLink rejects the site {site!r}: {error.detail}") from None


def unregister(kit: Kit, node_id: int) -> None:
    """Unregister a node at SuperLink; does nothing if it already is.

    Raises:
        RunError: If SuperLink does not answer or refuses.
    """
    try:
        flower_answer(kit, "supernode unregister", str(node_id), CONNECTION)
    except FlowerRefusedError as error:
        if error.code != NODE_UNKNOWN:
            raise RunError(f"SuperLink does not unregister node {node_id}: {error.detail}") from None


def register_admitted(kit: Kit) -> NodeChanges:
    """Register every admitted site that SuperLink lacks; unregister all other nodes.

    Raises:
        RunError: If SuperLink does not answer.
    """
    with kit.locked():
        statuses = _statuses(kit)
        done, refused = [], {}
        for record in listed(kit):
            if record.state is not SiteState.ADMITTED or _is_registered(record, statuses):
                continue
            try:
                _register(kit, record, statuses)
                done.append(record.site)
            except FlowerRefusedError as error:
                LOG.error("SuperLink rejects the site %s: %s", record.site, error.detail)  # noqa: TRY400 - one line
                refused[record.site] = error.detail
        keep = {record.node_id for record in listed(kit) if record.state is SiteState.ADMITTED}
        surplus = tuple(
            node for node, status in statuses.items() if status != UNREGISTERED and node not in keep
        )
        for node in surplus:
            unregister(kit, node)
    return NodeChanges(tuple(done), surplus, refused)


def _register(kit: Kit, record: Admitted, statuses: Mapping[int, str]) -> int:
    """Register a key; if SuperLink has it already, find its node.

    A process killed between registering and recording leaves one node without a record: sites are registered
    and recorded one at a time.
    """
    if record.node_id is not None and _is_registered(record, statuses):
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
    """The only registered node without a record."""
    owners = _owners(listed(kit))
    found = [node for node, status in statuses.items() if node not in owners and status != UNREGISTERED]
    if len(found) != 1:
        raise FlowerRefusedError(
            "supernode register",
            "this key was unregistered before and cannot be registered again; the site makes a new one with "
            "mmare-site kit request --new-key, which mmare-server kit admit --replace accepts",
            KEY_IN_USE,
        )
    return found[0]


def _is_registered(record: Admitted, statuses: Mapping[int, str]) -> bool:
    return record.node_id is not None and statuses.get(record.node_id, UNREGISTERED) != UNREGISTERED


def _owners(records: Iterable[Admitted]) -> dict[int, Admitted]:
    """Records by node id, including the nodes of former keys."""
    return {
        node: record
        for record in records
        for node in (record.node_id, *(former.node_id for former in record.former))
        if node is not None
    }


def _statuses(kit: Kit) -> dict[int, str]:
    """Status of every node that SuperLink knows."""
    try:
        found = flower_answer(kit, "supernode list", CONNECTION)["nodes"]
        return {int(node["node-id"]): str(node["status"]) for node in found}
    except FlowerRefusedError as error:
        raise RunError(
            f"SuperLink on 127.0.0.1:{kit.superlink_port} does not list its nodes: {error.detail}"
        ) from None
