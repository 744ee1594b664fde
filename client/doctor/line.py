"""Measures a site's line to its coordinator for the relay: ``python -m client.doctor.line SITE``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from client.doctor.findings import Obstacle
from client.doctor.network import FLEET
from client.doctor.proxies import proxy_for
from client.doctor.route import Route, Trace
from client.doctor.speed import key_header, measure_speed
from client.relay.line import Line, write_line
from client.relay.programs import RelayFolder
from mmare.errors import MmareError
from mmare.wire.joining import SiteKit
from sites.config import load_site

__all__ = ["main", "measure_line"]


def measure_line(kit: SiteKit) -> float:
    """Bytes per second to the coordinator.

    Raises:
        InputError: If the kit is unusable.
        Obstacle: If the coordinator does not answer.
    """
    coordinator = kit.coordinator()
    proxy = proxy_for("https", coordinator.host, coordinator.port)
    route = Route(coordinator, kit.ca, proxy, key=key_header(kit.public_key))
    return measure_speed(route, FLEET, route.ask("POST", FLEET, Trace()))


def main() -> None:
    """Measure once; exit code 1 if that failed."""
    site = load_site(Path(sys.argv[1]))
    try:
        speed = measure_line(SiteKit(site.coordinator.kit))
        write_line(RelayFolder.of(site).folder, Line(speed, time.time()))
    except (MmareError, Obstacle, OSError):
        sys.exit(1)


if __name__ == "__main__":
    main()
