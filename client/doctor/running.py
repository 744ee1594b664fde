"""Whether a site's two halves run: the worker that reads data, the relay that speaks to the coordinator."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from client.doctor.findings import fine, problem, warning
from client.relay.programs import RelayFolder
from client.relay.status_file import last_contact, read_state
from client.relay.worker_link import WorkerLink

if TYPE_CHECKING:
    from pathlib import Path

    from client.doctor.findings import Finding
    from sites.config import SiteConfig

__all__ = ["look_at_relay", "look_at_worker"]

START: Final = "start it with mmare-site start, or by its systemd unit"
LONGEST_PATH: Final = 107  # bytes of a Unix socket's path that the kernel takes
SILENT_S: Final = 90.0  # a SuperNode says that it is there every 30 s


def look_at_worker(site: SiteConfig) -> list[Finding]:
    """Whether a worker runs, and whether this user may ask it, as the relay's user must.

    Args:
        site: Says where its socket is.
    """
    socket = site.worker.socket.absolute()
    closed = _closed(socket)
    if closed is not None:
        return [closed]
    status = WorkerLink(socket).status()
    if status is None:
        return [warning("worker", f"nothing answers on {socket}", START)]
    said = f"runs for {status.site}, process {status.pid}, version {status.software}"
    if status.site != site.id:
        advice = "give each site of this machine a socket of its own: [worker] socket"
        return [problem("worker", f"{said}, not for {site.id}", advice)]
    if status.software != version("federated-mmare"):
        installed = f"{said}; installed is {version('federated-mmare')}"
        return [warning("worker", installed, "start it again, so that it runs what is installed")]
    return [fine("worker", said)]


def _closed(socket: Path) -> Finding | None:
    """Why a worker cannot be asked, where that shows before it is."""
    length = len(os.fsencode(socket))
    if length > LONGEST_PATH:
        said = (
            f"[worker] socket is {socket}, of {length} bytes, and a socket's path has at most {LONGEST_PATH}"
        )
        return problem("worker", said, "name a shorter path, such as /run/mmare/worker.sock")
    try:
        socket.stat()
    except FileNotFoundError:
        return warning("worker", f"does not run: {socket} is not there", START)
    except OSError as error:
        return _not_for_us(socket, error.strerror or "")
    if not os.access(socket, os.R_OK | os.W_OK):
        return _not_for_us(socket, "its mode is closed to this user")
    return None


def _not_for_us(socket: Path, reason: str) -> Finding:
    return warning(
        "worker",
        f"{socket} cannot be opened by the user {getpass.getuser()} ({reason})",
        "the relay's user must be in the group that [worker] group names; run this check as that user",
    )


def look_at_relay(site: SiteConfig) -> list[Finding]:
    """Whether SuperNode and SuperExec run, and when the coordinator answered last.

    Args:
        site: Whose.
    """
    folder = RelayFolder.of(site)
    try:
        state, contact = read_state(folder), last_contact(folder)
    except PermissionError:
        return [fine("relay", "belongs to another user, who sees how it does: mmare-site status")]
    if state is None:
        return [warning("relay", "does not run", START)]
    down = [each for each in state.programs if each.pid is None]
    if down:
        said = "; ".join(f"{each.name} {each.ended or 'has not started'}" for each in down)
        logs = ", ".join(str(folder.log(each.name)) for each in down)
        advice = (
            f"it is started again by itself; if that does not help, the end of {logs} says why. A key that "
            "the coordinator has not admitted is turned away, and for a minute one that it holds to be there"
        )
        return [warning("relay", said, advice)]
    silent_s = None if contact is None else (datetime.now(UTC) - contact).total_seconds()
    if silent_s is None or silent_s > SILENT_S:
        since = "yet" if silent_s is None else f"for {silent_s:.0f} s"
        return [
            warning(
                "relay",
                f"runs, but has not reached the coordinator {since}",
                "the rows about the way to the coordinator say where it ends",
            )
        ]
    return [fine("relay", f"runs; the coordinator answered {silent_s:.0f} s ago")]
