"""Checks that a site's worker and relay are running."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from client.doctor.findings import fine, problem, warning
from client.relay.programs import RelayFolder
from client.relay.status_file import last_contact, read_state, worker_status
from client.relay.worker_link import LONGEST_PATH
from client.status import worker_text

if TYPE_CHECKING:
    from pathlib import Path

    from client.doctor.findings import Finding
    from sites.config import SiteConfig

__all__ = ["check_relay", "check_worker"]

START: Final = "start it with mmare-site start, or by its systemd unit"
SUBMIT: Final = "submit its job: sbatch worker.sbatch (deploy/slurm)"
SILENT_S: Final = 90.0  # three heartbeats of a SuperNode


def check_worker(site: SiteConfig) -> list[Finding]:
    """Check that the worker runs and that this user can connect to it, as the relay's user must."""
    place = (site.worker.spool or site.worker.socket).absolute()
    unreachable = (_too_long(place) if site.worker.spool is None else None) or _unreachable(place)
    if unreachable is not None:
        return [unreachable]
    status = worker_status(site.worker)
    if status is None and site.worker.spool is not None:
        return [warning("worker", worker_text(site.worker, None, datetime.now(UTC)), SUBMIT)]
    if status is None:
        return [warning("worker", f"nothing answers on {place}", START)]
    found = f"runs for {status.site}, process {status.pid}, version {status.software}"
    if status.site != site.id:
        advice = "give each site of this machine its own socket: [worker] socket"
        return [problem("worker", f"{found}, not for {site.id}", advice)]
    if status.software != version("federated-mmare"):
        found = f"{found}; installed is {version('federated-mmare')}"
        return [warning("worker", found, "restart it to run the installed version")]
    return [fine("worker", found)]


def _too_long(socket: Path) -> Finding | None:
    length = len(os.fsencode(socket))
    if length <= LONGEST_PATH:
        return None
    found = f"[worker] socket is {socket}, of {length} bytes; a socket's path has at most {LONGEST_PATH}"
    return problem("worker", found, "name a shorter path, such as /run/mmare/worker.sock")


def _unreachable(place: Path) -> Finding | None:
    """Why the socket or spool cannot be used, if that is clear beforehand."""
    try:
        place.stat()
    except FileNotFoundError:
        return warning("worker", f"does not run: {place} is not there", START)
    except OSError as error:
        return _not_for_us(place, error.strerror or "")
    if not os.access(place, os.R_OK | os.W_OK):
        return _not_for_us(place, "its mode excludes this user")
    return None


def _not_for_us(place: Path, reason: str) -> Finding:
    return warning(
        "worker",
        f"{place} cannot be opened by the user {getpass.getuser()} ({reason})",
        "the relay's user must be in the group of [worker] group; run this check as that user",
    )


def check_relay(site: SiteConfig) -> list[Finding]:
    """Check that SuperNode and SuperExec run, and when the coordinator last answered."""
    folder = RelayFolder.of(site)
    try:
        state, contact = read_state(folder), last_contact(folder)
    except PermissionError:
        return [fine("relay", "belongs to another user, who can see its state with mmare-site status")]
    if state is None:
        return [warning("relay", "does not run", START)]
    down = [each for each in state.programs if each.pid is None]
    if down:
        found = "; ".join(f"{each.name} {each.ended or 'has not started'}" for each in down)
        logs = ", ".join(str(folder.log(each.name)) for each in down)
        advice = (
            f"it restarts by itself; if that does not help, see the end of {logs}. The coordinator rejects a "
            "key that is not admitted, and for a minute one that it considers still connected"
        )
        return [warning("relay", found, advice)]
    silent_s = None if contact is None else (datetime.now(UTC) - contact).total_seconds()
    if silent_s is None or silent_s > SILENT_S:
        since = "yet" if silent_s is None else f"for {silent_s:.0f} s"
        found = f"runs, but has not reached the coordinator {since}"
        return [warning("relay", found, "see the rows about the connection to the coordinator")]
    return [fine("relay", f"runs; the coordinator answered {silent_s:.0f} s ago")]
