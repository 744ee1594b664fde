"""SuperLink's list of sites and the kit's records, brought into agreement by Flower's own command line.

Flower keeps a public key for ever: a site that was unregistered cannot be registered again with the same key
(seen in 1.41: code 23). So a revoked key stays revoked, and a site that comes back makes a new one. Its list
names node ids only; whose they are, the records say.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from mmare.errors import InputError, RunError
from mmare.host.files import write_whole
from server.membership.records import Admitted, SiteState, find, listed, save

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from server.membership.kit import Kit

__all__ = [
    "CONNECTION",
    "Agreement",
    "Node",
    "flower_environment",
    "register",
    "register_admitted",
    "registered",
    "superlink_answers",
    "unregister",
    "write_connection",
]

LOG = logging.getLogger(__name__)

CONNECTION: Final = "coordinator"  # SuperLink's name in Flower's own settings: flwr … coordinator
COMMAND_S: Final = 60.0  # a call takes two seconds; longer is a machine in trouble
KEY_IN_USE: Final = 23  # codes of Flower's ApiErrorCode
NODE_UNKNOWN: Final = 24
OFF: Final = "unregistered"
_CODE: Final = re.compile(r"\[code: (\d+)\]\s*(.*)")
_LOOPBACK: Final = "127.0.0.1,localhost"


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


class _FlowerError(Exception):
    """What SuperLink said no with."""

    def __init__(self, code: int | None, text: str) -> None:
        super().__init__(text)
        self.code = code


def flower_environment(kit: Kit) -> dict[str, str]:
    """What the coordinator's Flower programs have in their environment, beside that of this process.

    No telemetry, no look for updates, no installing while running, and no proxy for this machine itself.
    """
    given = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    direct = f"{given},{_LOOPBACK}" if given else _LOOPBACK
    return {
        "FLWR_HOME": str(kit.flwr_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
    }


def write_connection(kit: Kit) -> None:
    """Tell Flower's command line where SuperLink is: ``[superlink.coordinator]`` in ``FLWR_HOME``.

    Raises:
        InputError: If it cannot be written.
    """
    where = {
        "address": f"127.0.0.1:{kit.superlink_port}",
        "root-certificates": str(kit.ca_certificate),
    }
    content = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: where}}).encode()
    path = kit.flwr_home / "config.toml"
    try:
        if not path.exists() or path.read_bytes() != content:
            kit.flwr_home.mkdir(parents=True, mode=0o700, exist_ok=True)
            write_whole(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({type(error).__name__})") from None


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
        except _FlowerError as error:
            raise RunError(f"SuperLink does not take the site {site!r}: {error}") from None


def unregister(kit: Kit, node_id: int) -> None:
    """Take a node off SuperLink's list; nothing happens if it is off already.

    Raises:
        RunError: If SuperLink does not answer or refuses.
    """
    try:
        _flower(kit, "unregister", str(node_id))
    except _FlowerError as error:
        if error.code != NODE_UNKNOWN:
            raise RunError(f"SuperLink does not let go of node {node_id}: {error}") from None


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
            except _FlowerError as error:
                LOG.error("SuperLink does not take the site %s: %s", record.site, error)  # noqa: TRY400 - one line
                refused[record.site] = str(error)
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
            answer = _flower(kit, "register", str(key), name=record.site)
        node = int(answer["node-id"])
    except _FlowerError as error:
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
        raise _FlowerError(
            KEY_IN_USE,
            "it has had this key before and let it go, and takes no key twice; the site makes a new one with "
            "mmare-site kit request --new-key, which mmare-server kit admit --replace takes",
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
        found = _flower(kit, "list")["nodes"]
        return {int(node["node-id"]): str(node["status"]) for node in found}
    except _FlowerError as error:
        raise RunError(
            f"SuperLink on 127.0.0.1:{kit.superlink_port} does not list its sites: {error}"
        ) from None


def _flower(kit: Kit, command: str, *arguments: str, name: str | None = None) -> dict[str, Any]:
    """What ``flwr supernode`` answers; it exits 0 whatever happened, so the answer itself is looked at.

    Raises:
        RunError: If the command cannot be run, or answers something else than it should.
        _FlowerError: If it says no.
    """
    write_connection(kit)
    named = () if name is None else ("--name", name)
    full = [_program(), "supernode", command, *arguments, CONNECTION, *named, "--format", "json"]
    environment = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            full,
            env={**environment, **flower_environment(kit), "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"flwr supernode {command}: no answer after {COMMAND_S:.0f} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
        succeeded, said = answer["success"], str(answer.get("error-message", ""))
    except (ValueError, KeyError, TypeError):
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word"]
        raise RunError(f"flwr supernode {command}: exit code {done.returncode}, {last[0][:200]}") from None
    if not succeeded:
        code = _CODE.search(said)
        last_line = said.strip().splitlines()[-1] if said.strip() else "no reason given"
        raise _FlowerError(int(code[1]), code[2]) if code else _FlowerError(None, last_line)
    return answer


def _program() -> str:
    """Flower's command line beside this Python, else on ``PATH``."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which("flwr", path=places)
    if found is None:
        raise RunError("flwr: not found beside this Python nor on PATH; the installation is not whole")
    return found
