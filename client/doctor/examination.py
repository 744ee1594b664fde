"""``mmare-site check --network``: find what would keep a hospital from a run, with remedies.

::

    keys, bundle                                                    client.doctor.kit
    name ─► TCP or proxy ─► TLS ─► /health, clock, /v1/fleet/       client.doctor.network
    speed, against the study's model and deadline                   client.doctor.speed
    disk, memory, versions, device                                  client.doctor.machine
    worker and relay                                                client.doctor.running
    open ports                                                      client.doctor.sockets
    study, approval, encoders and their weights                     client.doctor.study

Reads neither manifest nor scans nor feature tables, so its output can be shown to anyone. A check that takes
too long becomes a row that says so.
"""

from __future__ import annotations

import getpass
import os
import time
from typing import TYPE_CHECKING, Final

from client.doctor.background import in_background
from client.doctor.findings import problem, warning
from client.doctor.kit import check_kit
from client.doctor.machine import check_device, check_disk, check_memory, check_versions
from client.doctor.network import check_network
from client.doctor.running import check_relay, check_worker
from client.doctor.sockets import check_ports
from client.doctor.speed import judge_speed, key_header
from client.doctor.study import check_encoders, check_study, read_study
from mmare.errors import InputError
from mmare.wire.joining import SiteKit

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from client.doctor.findings import Finding
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["examine"]

MOST_S: Final = 28.0  # for all checks together


def examine(site: SiteConfig, study_path: Path | None = None) -> list[Finding]:
    """Run all checks, the connection to the coordinator first; takes at most half a minute.

    Args:
        site: The site to check.
        study_path: By default the study of the bundle.

    Raises:
        InputError: If no bundle is installed or this user may not read it.
    """
    kit = SiteKit(site.coordinator.kit)
    if kit.folder.exists() and not os.access(kit.folder, os.R_OK | os.X_OK):
        raise InputError(
            f"{kit.folder}: cannot be entered by the user {getpass.getuser()}; run this check as the user "
            "who runs the site"
        )
    coordinator = kit.coordinator()
    end = time.monotonic() + MOST_S
    path = study_path or kit.study
    study, unread = read_study(path)
    port = site.coordinator.runtime_port
    speeds: list[float] = []
    key = key_header(kit.public_key)
    network = in_background(lambda: check_network(coordinator, kit.ca, port, speeds.append, key))
    slow = [("network", network), ("speed", in_background(lambda: _speed(network, speeds, study)))]
    slow.append(("device", in_background(lambda: check_device(site.device))))
    if study is not None:
        slow.append(("encoders", in_background(lambda: check_encoders(site, study))))
    findings = check_kit(kit, coordinator, site)
    quick = [*check_disk(site), *check_memory(), *check_versions(), *check_ports(site)]
    quick += [*check_worker(site), *check_relay(site), *unread]
    if study is not None:
        quick += check_study(site, study, path)
    waited = {name: _result(name, work, end) for name, work in slow}
    return [
        *findings,
        *waited.pop("network"),
        *waited.pop("speed"),
        *quick,
        *waited.pop("device"),
        *waited.pop("encoders", []),
    ]


def _speed(network: Future[list[Finding]], speeds: list[float], study: Study | None) -> list[Finding]:
    """What was measured on the way, held against a study: a row of its own, since that imports torch."""
    network.result()
    return [judge_speed(speed, study) for speed in speeds]


def _result(name: str, work: Future[list[Finding]], end: float) -> list[Finding]:
    try:
        return work.result(timeout=max(end - time.monotonic(), 0.0))
    except TimeoutError:
        found = f"no result after {MOST_S:.0f} s"
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > cores:
            found = f"{found}: this machine is busy, {load:.0f} processes want its {cores} cores"
            return [warning(name, found, "run the check again when it has less to do")]
        advice = "run the check again; if this persists, a disk or a driver of this machine hangs"
        return [problem(name, found, advice)]
