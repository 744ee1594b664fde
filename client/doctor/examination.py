"""``mmare-site check --network``: what stands between a hospital and a run, and what to do about it.

::

    keys, bundle                                                    client.doctor.kit
    name ─► TCP or proxy ─► TLS ─► /health, clock, /v1/fleet/       client.doctor.network
    disk, memory, versions, device                                  client.doctor.machine
    worker and relay                                                client.doctor.running
    open ports                                                      client.doctor.sockets
    study, approval, encoders and their weights                     client.doctor.study

It opens neither the manifest nor a scan nor a table of features: it can be run and shown to anyone. Nothing
waits for ever: what takes too long is a row that says so.
"""

from __future__ import annotations

import getpass
import os
import time
from typing import TYPE_CHECKING, Final

from client.doctor.background import in_background
from client.doctor.findings import problem
from client.doctor.kit import look_at_kit
from client.doctor.machine import look_at_device, look_at_disk, look_at_memory, look_at_versions
from client.doctor.network import look_at_network
from client.doctor.running import look_at_relay, look_at_worker
from client.doctor.sockets import look_at_doors
from client.doctor.study import look_at_encoders, look_at_study, read_study
from mmare.errors import InputError
from mmare.wire.joining import SiteKit

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from client.doctor.findings import Finding
    from sites.config import SiteConfig

__all__ = ["examine"]

MOST_S: Final = 28.0  # of all checks together


def examine(site: SiteConfig, study_path: Path | None = None) -> list[Finding]:
    """Look at all that a run needs, at most for half a minute.

    Args:
        site: Of the hospital.
        study_path: Of the study; by default the one that came with the bundle.

    Returns:
        What was found, the way to the coordinator first.

    Raises:
        InputError: If no bundle is installed, or this user may not read it.
    """
    kit = SiteKit(site.coordinator.kit)
    if kit.folder.exists() and not os.access(kit.folder, os.R_OK | os.X_OK):
        raise InputError(
            f"{kit.folder}: cannot be entered by the user {getpass.getuser()}; run this check as the one "
            "who runs the site"
        )
    coordinator = kit.coordinator()
    end = time.monotonic() + MOST_S
    path = study_path or kit.study
    study, unread = read_study(path)
    port = site.coordinator.runtime_port
    slow = [("network", in_background(lambda: look_at_network(coordinator, kit.ca, port)))]
    slow.append(("device", in_background(lambda: look_at_device(site.device))))
    if study is not None:
        slow.append(("encoders", in_background(lambda: look_at_encoders(site, study))))
    findings = look_at_kit(kit, coordinator, site)
    quick = [*look_at_disk(site), *look_at_memory(), *look_at_versions(), *look_at_doors(site)]
    quick += [*look_at_worker(site), *look_at_relay(site), *unread]
    if study is not None:
        quick += look_at_study(site, study, path)
    waited = {name: _result(name, work, end) for name, work in slow}
    return [*findings, *waited.pop("network"), *quick, *waited.pop("device"), *waited.pop("encoders", [])]


def _result(name: str, work: Future[list[Finding]], end: float) -> list[Finding]:
    try:
        return work.result(timeout=max(end - time.monotonic(), 0.0))
    except TimeoutError:
        said = f"no result after {MOST_S:.0f} s"
        return [
            problem(
                name, said, "run the check again; if it stays so, a disk or a driver of this machine hangs"
            )
        ]
